"""Identifiers: random where something new begins, derived where a replay must give the same one."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections import deque
from typing import Final, NewType

RunId = NewType("RunId", str)
SeedId = NewType("SeedId", str)
SlotId = NewType("SlotId", str)
BlueprintId = NewType("BlueprintId", str)
EventId = NewType("EventId", str)
CommandId = NewType("CommandId", str)
ProducerId = NewType("ProducerId", str)
Digest = NewType("Digest", str)

#: 128 bits: a collision among 10^12 events has a chance of about 10^-15.
_ID_HEX_LENGTH = 32
_IDS_AT_ONCE = 64


#: Fresh ids that nobody has yet. The system is asked for many at once: each question lets other threads interrupt.
_fresh: deque[str] = deque()
os.register_at_fork(after_in_child=_fresh.clear)


def new_event_id() -> EventId:
    """Return a fresh random id of 32 hexadecimal digits."""
    while True:  # ends with the first id that no other thread takes
        try:
            return EventId(_fresh.popleft())
        except IndexError:
            drawn = os.urandom(_IDS_AT_ONCE * _ID_HEX_LENGTH // 2).hex()
            _fresh.extend(drawn[at : at + _ID_HEX_LENGTH] for at in range(0, len(drawn), _ID_HEX_LENGTH))


def new_run_id() -> RunId:
    """Return a fresh run id, short enough to type."""
    return RunId(f"run-{uuid.uuid4().hex[:12]}")


def new_producer_id(source: str) -> ProducerId:
    """Return the id of one life of one producer; a restarted process gets another."""
    return ProducerId(f"{source}:{uuid.uuid4().hex[:16]}")


def derive_id(*parts: str | int) -> EventId:
    """Return the id that these parts always give: SHA-256 over length-prefixed parts, 128 bits.

    Used for events that follow from other events, so that a handler that runs twice
    names its results alike and the first offset wins.
    """
    pieces: list[bytes] = []
    for part in parts:
        encoded = str(part).encode()
        pieces += (len(encoded).to_bytes(4, "big"), encoded)
    return EventId(hashlib.sha256(b"".join(pieces)).hexdigest()[:_ID_HEX_LENGTH])


def sha256_hex(content: bytes) -> Digest:
    """Return the SHA-256 of `content` as 64 hexadecimal digits."""
    return Digest(hashlib.sha256(content).hexdigest())


_DIGEST: Final = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
#: Maps digits of digests to one byte and all others to another: a search for 64 of them costs a twentieth of a match.
_DIGITS: Final = bytes(0x30 if byte in b"0123456789abcdef" else 0x20 for byte in range(256))
_RUN: Final = b"0" * 64


def digests_in(content: bytes) -> set[str]:
    """Return everything in it that has the form of a SHA-256 in hexadecimal digits."""
    if _RUN not in content.translate(_DIGITS):
        return set()
    return {found.decode() for found in _DIGEST.findall(content)}
