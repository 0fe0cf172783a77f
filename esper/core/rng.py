"""Randomness by name: every stream of random numbers comes from a seed and the words that name its use."""

from __future__ import annotations

import hashlib
import random
import secrets


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the stream called `names` of the experiment `seed`.

    The same arguments give the same number on every machine and in every process.
    """
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream_of(seed: int) -> random.Random:
    """Return the stream of `seed`: for draws that are drawn again, never for secrets."""
    return random.Random(seed)  # noqa: S311 - as the docstring says


def jitter(seconds: float) -> float:
    """Return a waiting time drawn evenly from half of `seconds` to all of it ("equal jitter")."""
    return seconds / 2 + random.random() * seconds / 2  # noqa: S311 - spreads retries, guards nothing


def new_secret() -> str:
    """Return 256 fresh bits from the operating system as 64 hexadecimal digits."""
    return secrets.token_hex(32)
