"""The artifacts used last, for as long as they are believed without another look at the store."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.kernel import KernelArtifact, VerifiedKernel

#: What a worker keeps of kernels it may want again; a seed has some 10 KB.
_CACHE_BYTES_MAX: Final = 64 * 1024 * 1024
_CACHE_SECONDS: Final = 3_600.0


@dataclass(frozen=True)
class OpenedArtifact(KernelArtifact):
    """An artifact after every check, with what it was found to hold."""

    verified: VerifiedKernel


A = TypeVar("A", bound=KernelArtifact)


class ArtifactCache(Generic[A]):
    """Artifacts by their digest, up to a number of bytes, each for `seconds` after it was put; one thread at a time.

    What does not fit goes in the order of last use (LRU). `evictions` counts what went for either reason.
    """

    def __init__(
        self, bytes_max: int = _CACHE_BYTES_MAX, *, seconds: float = _CACHE_SECONDS, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._bytes_max = bytes_max
        self._seconds = seconds
        self._clock = clock
        self._bytes = 0
        self._held: OrderedDict[str, tuple[A, float]] = OrderedDict()
        self.evictions = 0

    def get(self, artifact_ref: str) -> A | None:
        """Return the artifact and count it as used, or None where it is not held or has expired."""
        held = self._held.get(artifact_ref)
        if held is None:
            return None
        if self._clock.monotonic() - held[1] >= self._seconds:
            self._drop(artifact_ref)
            return None
        self._held.move_to_end(artifact_ref)
        return held[0]

    def put(self, artifact_ref: str, artifact: A) -> None:
        """Keep the artifact from now on; drop those that were not used for longest until all fit."""
        known = self._held.pop(artifact_ref, None)
        if known is not None:
            self._bytes -= _size(known[0])
        self._held[artifact_ref] = (artifact, self._clock.monotonic())
        self._bytes += _size(artifact)
        while self._bytes > self._bytes_max:
            self._drop(next(iter(self._held)))

    def expire(self) -> int:
        """Drop what has expired; return how many."""
        now = self._clock.monotonic()
        expired = [name for name, (_, since) in self._held.items() if now - since >= self._seconds]
        for name in expired:
            self._drop(name)
        return len(expired)

    def clear(self) -> int:
        """Drop everything; return how many bytes that were."""
        freed = self._bytes
        for name in list(self._held):
            self._drop(name)
        return freed

    def __len__(self) -> int:
        return len(self._held)

    def _drop(self, artifact_ref: str) -> None:
        artifact, _ = self._held.pop(artifact_ref)
        self._bytes -= _size(artifact)
        self.evictions += 1


def _size(artifact: KernelArtifact) -> int:
    return len(artifact.spec) + len(artifact.weights)
