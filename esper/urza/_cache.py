"""The artifacts used last, for as long as they are believed without another look at the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.kernel import KernelArtifact, VerifiedKernel
from esper.core.lru import SizedLru

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

    What does not fit goes in the order of last use (LRU).
    """

    def __init__(
        self, bytes_max: int = _CACHE_BYTES_MAX, *, seconds: float = _CACHE_SECONDS, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._held: SizedLru[tuple[A, float]] = SizedLru(bytes_max)

    @property
    def evictions(self) -> int:
        """How many went because they were old, or for want of room."""
        return self._held.evictions

    def get(self, artifact_ref: str) -> A | None:
        """Return the artifact and count it as used, or None where it is not held or has expired."""
        held = self._held.get(artifact_ref)
        if held is None:
            return None
        if self._is_old(held[1]):
            self._held.evict([artifact_ref])
            return None
        return held[0]

    def put(self, artifact_ref: str, artifact: A) -> None:
        """Keep the artifact from now on; those that were not used for longest go until all fit."""
        self._held.put(artifact_ref, (artifact, self._clock.monotonic()), _size(artifact))

    def expire(self) -> int:
        """Drop what has expired; return how many."""
        expired = [name for name, (_, since) in self._held.items() if self._is_old(since)]
        self._held.evict(expired)
        return len(expired)

    def clear(self) -> int:
        """Drop everything; return how many bytes that were."""
        return self._held.clear()

    def __len__(self) -> int:
        return len(self._held)

    def _is_old(self, since: float) -> bool:
        return self._clock.monotonic() - since >= self._seconds


def _size(artifact: KernelArtifact) -> int:
    return len(artifact.spec) + len(artifact.weights)
