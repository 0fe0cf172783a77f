"""What goes into quarantine, as bytes: length-prefixed parts, none of which is code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import BinaryIO, Final

from esper.core.errors import IntegrityError
from esper.core.kernel import KernelArtifact, canonical_json, manifest_bytes, parse_manifest

_LENGTH_BYTES: Final = 8
#: Far above the weights of the largest kernel and a batch of activations.
_PART_BYTES_MAX: Final = 1 << 30
_PARTS: Final = 5


@dataclass(frozen=True)
class Trial:
    """A kernel and what it is to be trained on.

    `batch` is a safetensors file with "inputs" (B, *in_shape), copies of activations, and "targets" (B, *out_shape),
    what the kernel's output is to come near. `seed` starts the random streams inside.
    """

    artifact: KernelArtifact
    batch: bytes
    seed: int = 0


@dataclass(frozen=True)
class Settings:
    """What a process in quarantine is told of its limits."""

    steps: int
    learning_rate: float
    memory_bytes: int
    wall_seconds: float


def encode(trial: Trial, settings: Settings) -> bytes:
    """Return the trial and its settings as one stream of bytes."""
    header = canonical_json({**vars(settings), "seed": trial.seed})
    artifact = trial.artifact
    parts = (header, manifest_bytes(artifact.manifest), artifact.spec, artifact.weights, trial.batch)
    return b"".join(len(part).to_bytes(_LENGTH_BYTES, "little") + part for part in parts)


def decode(stream: BinaryIO) -> tuple[Trial, Settings]:
    """Read what `encode` wrote, to its last byte.

    Raises:
        IntegrityError: the stream ends early or a part is larger than any trial's.
    """
    header, manifest, spec, weights, batch = (_part(stream) for _ in range(_PARTS))
    fields = json.loads(header)
    seed = fields.pop("seed")
    return Trial(KernelArtifact(parse_manifest(manifest), spec, weights), batch, seed), Settings(**fields)


def _part(stream: BinaryIO) -> bytes:
    prefix = stream.read(_LENGTH_BYTES)
    length = int.from_bytes(prefix, "little")
    content = stream.read(length) if length <= _PART_BYTES_MAX else b""
    if len(prefix) != _LENGTH_BYTES or len(content) != length:
        raise IntegrityError(
            "the trial for the quarantine is cut off",
            cause=f"a part of {length} bytes has {len(content)}",
            next_step="this is a fault of Esper: the process that asked may have died",
        )
    return content
