"""Compiled parts of kernels as bytes: how one is written down, and every check before one is opened.

A compiled part is machine code. It is derived from an artifact, never leaves the home whose forge made it, and is
opened only when a verified record of that forge (`KernelPartCompiled`, which is the part's signed manifest) lists its
digest for this very artifact and platform. Whoever reads a topic through `esper.oona.Reader` reads verified records.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from esper.core.ids import sha256_hex
from esper.core.kernel._integrity import COMPILED_PART, ArtifactRefused
from esper.leyline import messages as ly

#: Largest difference from eager, forward and backward, that a part may show.
PARITY_TOLERANCE: Final = 1e-5
#: A part must be so many times faster than eager, measured where it is used.
SPEEDUP_MIN: Final = 1.1
#: Opening a part in a fresh process may take this share of making it.
WARM_SHARE_MAX: Final = 0.5
_PART_BYTES_MAX: Final = 1 << 28
_MAGIC: Final = b"esper-part-1\n"
_COUNTS: Final = {ly.COMPILED_KIND_AOT_PACKAGE: 1, ly.COMPILED_KIND_AOT_TRAIN_PACKAGE: 2}
_LENGTH = struct.Struct(">Q")


def pack_part(packages: Sequence[bytes]) -> bytes:
    """Return a part that holds these packages: forward, and backward where it trains."""
    return _MAGIC + b"".join(_LENGTH.pack(len(each)) + each for each in packages)


def unpack_part(content: bytes, kind: ly.CompiledKind) -> list[bytes]:
    """Return the packages of a part; check its digest first.

    Raises:
        ArtifactRefused: the bytes are no part of this kind.
    """
    if not content.startswith(_MAGIC) or kind not in _COUNTS:
        raise _refused(f"it is no part of kind {kind}")
    packages, at = [], len(_MAGIC)
    while at < len(content):
        if at + _LENGTH.size > len(content):
            raise _refused("it ends within a length")
        length = _LENGTH.unpack_from(content, at)[0]
        at += _LENGTH.size
        if length > len(content) - at:
            raise _refused("it ends within a package")
        packages.append(content[at : at + length])
        at += length
    if len(packages) != _COUNTS[kind]:
        raise _refused(f"it holds {len(packages)} packages where {_COUNTS[kind]} belong")
    return packages


def check_part(
    record: ly.KernelPartCompiled, content: bytes, *, artifact_ref: str, home_id: str, platform: ly.Platform
) -> None:
    """Refuse a part that this process may not open; `record` must come from a verified record of the forge's topic.

    Raises:
        ArtifactRefused: it was made by another home's forge, for another artifact or platform, was not found equal to
            eager, or these are not the bytes that the record lists.
    """
    if record.forge != home_id:
        raise _refused(f"the forge of home {record.forge[:64]!r} made it, this is home {home_id!r}")
    if record.artifact_ref != artifact_ref:
        raise _refused(f"it belongs to artifact {record.artifact_ref[:64]}")
    if record.platform != platform:
        raise _refused(f"it was made for {_words(record.platform)}, this is {_words(platform)}")
    if not record.parity.passed or record.parity.tolerance > PARITY_TOLERANCE:
        raise _refused("it was not found equal to eager")
    if len(content) > _PART_BYTES_MAX or len(content) != record.part_bytes:
        raise _refused(f"it has {len(content)} bytes, the record says {record.part_bytes}")
    if sha256_hex(content) != record.part_digest:
        raise _refused("it has another SHA-256 than the record says")


def choose_part(
    records: Iterable[ly.KernelPartCompiled],
    *,
    kind: ly.CompiledKind,
    artifact_ref: str,
    home_id: str,
    platform: ly.Platform,
) -> ly.KernelPartCompiled | None:
    """Return the last record of a part of this kind that is to be used here; None where eager is. Pure."""
    here = [
        each
        for each in records
        if (each.kind, each.artifact_ref, each.forge) == (kind, artifact_ref, home_id) and each.platform == platform
    ]
    return here[-1] if here and here[-1].chosen else None


def why_eager(record: ly.KernelPartCompiled) -> str:
    """Return why a part that was made and measured is not used; "" when it is. Pure."""
    parity = record.parity
    if not parity.passed:
        worst = max(parity.forward_abs_max, parity.backward_abs_max)
        return f"parity: it differs from eager by {worst:.3g}, at most {parity.tolerance:.0e} is allowed"
    if not record.speedup >= SPEEDUP_MIN:
        return f"slow: {record.speedup:.2f} times as fast as eager here, {SPEEDUP_MIN} is needed"
    if not record.warm_compile_ms <= WARM_SHARE_MAX * record.compile_ms:
        return f"cold: opening it takes {record.warm_compile_ms:.0f} ms, making it {record.compile_ms:.0f} ms"
    return ""


def _words(platform: ly.Platform) -> str:
    return f"torch {platform.torch_version} on {platform.device} {platform.isa}, {platform.threads} thread(s)"


def _refused(cause: str) -> ArtifactRefused:
    return ArtifactRefused(
        "compiled part is refused", part=COMPILED_PART, cause=cause, next_step="the kernel runs eagerly without it"
    )
