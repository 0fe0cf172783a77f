"""The library: artifacts out of the store and through every check, kept for a while, and spared when it is slow."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from esper.core.breaker import CircuitBreaker
from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import NotReadyError
from esper.core.kernel import (
    CATALOGUE_ENTRY,
    ArtifactRefused,
    BlobMissing,
    BlobStore,
    RefusalTeller,
    check_kernel,
    get_artifact,
    verify_artifact,
)
from esper.leyline import messages as ly
from esper.oona import MemberMetrics, Publisher
from esper.urza import _metrics as names
from esper.urza._cache import ArtifactCache, OpenedArtifact
from esper.urza._catalog import KernelEntry

_logger = logging.getLogger("esper.urza")

#: Slow answers of the store in a row after which it is spared, and for how long.
_SLOW_MAX: Final = 3
_SPARED_SECONDS: Final = 30.0


class StoreSpared(NotReadyError):
    """The store was slow several times in a row: what is not in the cache is not asked of it for a while."""


class UrzaLibrary:
    """Opens artifacts: from the cache, else from the store, size and digest of every part before any is parsed.

    An answer of the store that takes `slow_seconds` or fails counts against it; after three in a row the library is
    conservative: for 30 s it serves what it holds and refuses the rest, then it tries one. What is wrong with an
    artifact says nothing about the store's speed. For one thread at a time.
    """

    def __init__(
        self,
        store: BlobStore,
        *,
        metrics: MemberMetrics,
        teller: RefusalTeller,
        cache: ArtifactCache[OpenedArtifact],
        slow_seconds: float,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._teller = teller
        self._cache = cache
        self._slow_seconds = slow_seconds
        self._clock = clock
        self._breaker = CircuitBreaker(failures_max=_SLOW_MAX, open_seconds=_SPARED_SECONDS)
        self._evictions_counted = 0

    @property
    def conservative(self) -> bool:
        """Whether the store is spared now."""
        return self._breaker.state(self._clock.monotonic()) != ly.CIRCUIT_STATE_CLOSED

    def open(
        self, artifact_ref: str, name: str | None, *, entry: KernelEntry | None = None, fresh: bool = False
    ) -> OpenedArtifact:
        """Return the verified artifact of this digest, which must be that of kernel `name` and agree with `entry`.

        With `fresh` the store is asked even for what is in the cache, unless it is spared. What is handed out counts
        as stored just now, so that nobody collects it before it is named.

        Raises:
            BlobMissing: the store lacks a part of it, or cannot read it.
            ArtifactRefused: what is stored is something else; the log has been told.
            StoreSpared: the library is conservative and does not hold it.
        """
        held = self._cache.get(artifact_ref)
        if held is not None and name is not None and not self.conservative and not self._kept(artifact_ref, held):
            held = None  # Whoever asks by name is about to name it in the log: it must be there.
        self._metrics.count(names.CACHE_MISSES if held is None else names.CACHE_HITS)
        try:
            allowed = self._breaker.allows(self._clock.monotonic())
            if held is None or (fresh and allowed):
                held = self._read(artifact_ref, allowed=allowed)
            check_kernel(held, artifact_ref, name)
            _check_entry(held, artifact_ref, entry)
        except ArtifactRefused as error:
            self.refuse(name or "", artifact_ref, error)
            raise
        finally:
            self._report()
        return held

    def refuse(self, name: str, artifact_ref: str, error: ArtifactRefused) -> None:
        """Count that an artifact was refused, and tell the log of it once."""
        self._metrics.count(names.INTEGRITY_FAILURES)
        self._teller.tell(name, artifact_ref, error)

    def maintain(self) -> int:
        """Drop what has expired from the cache; return how many artifacts."""
        expired = self._cache.expire()
        self._report()
        return expired

    def release(self) -> int:
        """Drop all that is held; return its bytes."""
        freed = self._cache.clear()
        self._report()
        return freed

    def _read(self, artifact_ref: str, *, allowed: bool) -> OpenedArtifact:
        began = self._clock.monotonic()
        if not allowed:
            raise StoreSpared(
                f"artifact {artifact_ref} is not asked of the store",
                cause=f"it was slow or failed {_SLOW_MAX} times in a row",
                next_step=f"it is tried again in {self._breaker.seconds_until_probe(began):.0f} s; look after its disk",
            )
        self._breaker = self._breaker.began(began)
        failed = False
        try:
            artifact = get_artifact(self._store, artifact_ref)
            opened = OpenedArtifact(artifact.manifest, artifact.spec, artifact.weights, verify_artifact(artifact))
            self._keep(artifact_ref, opened)
        except BlobMissing as error:
            failed = isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError)
            raise
        except OSError:
            failed = True
            raise
        finally:
            self._settle(began, failed=failed)
        self._cache.put(artifact_ref, opened)
        return opened

    def _keep(self, artifact_ref: str, opened: OpenedArtifact) -> None:
        if not self._kept(artifact_ref, opened):
            raise BlobMissing(
                f"artifact {artifact_ref} is missing",
                cause="it was removed while it was read",
                next_step="have the kernel compiled again",
            )

    def _kept(self, artifact_ref: str, opened: OpenedArtifact) -> bool:
        """Let every part of an artifact count as stored just now; return whether all are there, the manifest first."""
        manifest = opened.manifest
        return all(
            self._store.touch(digest) for digest in (artifact_ref, manifest.spec_digest, manifest.weights_digest)
        )

    def _settle(self, began: float, *, failed: bool) -> None:
        """Let the breaker know how the store answered."""
        now = self._clock.monotonic()
        self._metrics.observe(names.LIBRARY_LATENCY, now - began)
        slow = now - began >= self._slow_seconds
        if slow:
            self._metrics.count(names.SLOW_QUERIES)
        before = self._breaker.state(now)
        self._breaker = self._breaker.failed(now) if slow or failed else self._breaker.succeeded()
        if self._breaker.state(now) != before:
            state = ly.CircuitBreakerState.Name(self._breaker.state(now))
            _logger.warning("the store answered in %.0f ms, its breaker is %s", 1e3 * (now - began), state)

    def _report(self) -> None:
        state = self._breaker.state(self._clock.monotonic())
        self._metrics.gauge(names.BREAKER_STATE, state)
        self._metrics.gauge(names.CONSERVATIVE_MODE, float(state != ly.CIRCUIT_STATE_CLOSED))
        evicted, self._evictions_counted = self._cache.evictions - self._evictions_counted, self._cache.evictions
        if evicted:
            self._metrics.count(names.EVICTIONS, evicted)


def _check_entry(artifact: OpenedArtifact, artifact_ref: str, entry: KernelEntry | None) -> None:
    """Refuse an artifact that the catalogue describes otherwise than its own manifest does."""
    manifest = artifact.manifest
    if entry is None or (entry.checksum, entry.guard_digest) == (manifest.weights_digest, manifest.guard_digest):
        return
    raise ArtifactRefused(
        f"artifact {artifact_ref} is not what the catalogue says",
        part=CATALOGUE_ENTRY,
        cause="the digests of its weights or of its guard differ from the manifest's",
        next_step="have the kernel compiled again",
    )


def publish_refusals(publisher: Publisher | None) -> Callable[[ly.KernelIntegrityFailed, str], object] | None:
    """Return what appends a refusal to kernel-store as this publisher; None without one."""
    return None if publisher is None else lambda event, key: publisher.publish(event, key=key)
