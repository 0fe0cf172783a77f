"""Collecting garbage: blobs that no record of the log names, and that are not about to be named.

A blob is stored, or fetched, before the event that names it. Either makes it young, and young ones stay; the store
looks at their age once more at the moment of removal, under the lock that writers hold. What was named between the
first look at the log and the removal is found by another look, before each batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from esper.core.errors import EsperError
from esper.core.ids import digests_in
from esper.core.kernel import DirectoryBlobStore, StoredBlob, Stray
from esper.leyline import messages as ly
from esper.urza._inventory import Inventory
from esper.urza._maintenance import MISSING, removal_id
from esper.urza._named import Names

if TYPE_CHECKING:
    from esper.core.ids import EventId
    from esper.oona import Publisher

#: Bytes are stored before the event that names them: younger ones are never garbage.
GRACE_SECONDS: Final = 3_600.0
_BATCH: Final = 200
_SEARCHED_BYTES_MAX: Final = 64 * 1024
UNNAMED: Final = "unnamed: another artifact stands in its place"
EXPIRED: Final = "expired: nobody grafted it and it is old"
#: Of one that an earlier collection removed before it died, or that was lost.
GONE_ALREADY: Final = f"{EXPIRED}; its bytes were gone already"
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True)
class Garbage:
    """What may go: blobs, the superseded or expired artifacts among them, and files that writers left when they died.

    `lost` are expired artifacts whose manifest is gone already, and of which the log does not say so.
    """

    blobs: tuple[StoredBlob, ...]
    artifacts: tuple[ly.KernelCatalogUpdate, ...]
    lost: tuple[ly.KernelCatalogUpdate, ...]
    strays: tuple[Stray, ...]
    kept: int

    @property
    def size_bytes(self) -> int:
        """Bytes that the blobs take."""
        return sum(blob.size_bytes for blob in self.blobs)


@dataclass
class Removed:
    """What went: digests with the bytes freed; artifacts of which the log was told; what could not be removed, why."""

    blobs: dict[str, int] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def freed_bytes(self) -> int:
        """Bytes that are free now."""
        return sum(self.blobs.values())


@dataclass(frozen=True)
class Terms:
    """On what terms bytes are garbage: whose compiled parts count, what time it is, and after how long kernels expire.

    With `expired_days`, a kernel that was catalogued longer ago and that no run names is garbage, too.
    """

    home_id: str
    now_ns: int
    expired_days: float | None = None

    @property
    def before_ns(self) -> int:
        """Only what was stored before this time may go."""
        return self.now_ns - int(GRACE_SECONDS * 1e9)

    @property
    def since_ms(self) -> int:
        """Kernels that were catalogued before this time have expired."""
        return 0 if self.expired_days is None else self.now_ns // 1_000_000 - int(self.expired_days * _DAY_MS)

    def named(self, names: Names) -> set[str]:
        """Return the digests of what is in use."""
        return names.inventory.named(home_id=self.home_id, since_ms=self.since_ms) | names.digests


def find_garbage(names: Names, store: DirectoryBlobStore, terms: Terms) -> Garbage:
    """Return what may be removed of the store: nobody names it, and it is an hour old.

    What a named small blob names in its turn, as a manifest does, is kept too.

    Raises:
        IntegrityError: the store's folder is a link, or none.
    """
    store.check_root()
    inventory = names.inventory
    named = terms.named(names)
    kept = named | _closure(store, named)
    stored = list(store.blobs())
    blobs = tuple(blob for blob in stored if blob.digest not in kept and blob.stored_ns < terms.before_ns)
    gone, there = {blob.digest for blob in blobs}, {blob.digest for blob in stored}
    artifacts = tuple(update for ref, update in sorted(inventory.artifacts.items()) if ref in gone)
    lost = tuple(
        update
        for name, update in sorted(inventory.updates.items())
        if update.artifact_ref not in kept | there and not inventory.removed(name)
    )
    strays = tuple(store.strays(before_ns=terms.before_ns))
    return Garbage(blobs, artifacts, lost, strays, kept=len(stored) - len(blobs))


def remove_garbage(
    garbage: Garbage, names: Names, store: DirectoryBlobStore, publisher: Publisher, terms: Terms
) -> Removed:
    """Remove the blobs and the files of dead writers; say of each artifact that it is gone, once its manifest is.

    What was named, fetched or stored again meanwhile stays, and so does the rest of its artifact. Killed in between,
    this leaves at most one artifact removed and not told of; the next collection tells (`Garbage.lost`).

    Raises:
        NotReadyError, BrokerUnavailable: the log could not be read or written; what was removed so far is gone.
    """
    collector = _Collector(names, store, publisher, terms, {blob.digest for blob in garbage.blobs})
    for update in garbage.artifacts:
        collector.remove_artifact(update)
    for update in garbage.lost:
        collector.tell_lost(update)
    collector.remove_rest()
    for stray in garbage.strays:
        if stray.leftover:
            collector.unlink(stray)
    return collector.removed


class _Collector:
    """One collection: what is left to remove, and what the log names by now."""

    def __init__(
        self, names: Names, store: DirectoryBlobStore, publisher: Publisher, terms: Terms, digests: set[str]
    ) -> None:
        self._names = names
        self._store = store
        self._publisher = publisher
        self._terms = terms
        #: What may still go.
        self._left = digests
        self._named: set[str] = set()
        self.removed = Removed()

    def remove_artifact(self, update: ly.KernelCatalogUpdate) -> None:
        """Remove a manifest, then what it names, then say so; where the manifest stays, all of it does."""
        self._look_again()
        manifest, artifact_ref = update.manifest, update.artifact_ref
        parts = [part.part_digest for part in self._names.inventory.parts_of(artifact_ref)]
        others = [manifest.spec_digest, manifest.weights_digest, *parts]
        if not self._remove([artifact_ref]):
            self._left -= {artifact_ref, *others}
            return
        freed = self.removed.blobs[artifact_ref] + sum(self._remove(others).values())
        last = self._names.inventory.updates[update.meta.subject].artifact_ref == artifact_ref
        self._tell(update, EXPIRED if last else UNNAMED, freed, last=last)

    def tell_lost(self, update: ly.KernelCatalogUpdate) -> None:
        """Say that a kernel is gone which an earlier collection removed, unless it was made again meanwhile."""
        self._look_again()
        name, artifact_ref = update.meta.subject, update.artifact_ref
        if artifact_ref not in self._named and not self._store.has(artifact_ref):
            last = self._names.inventory.updates[name].artifact_ref == artifact_ref
            self._tell(update, GONE_ALREADY, 0, last=last)

    def remove_rest(self) -> None:
        """Remove what belongs to no artifact."""
        rest = sorted(self._left)
        for start in range(0, len(rest), _BATCH):
            self._look_again()
            self._remove(rest[start : start + _BATCH])

    def unlink(self, stray: Stray) -> None:
        """Remove what a writer left when it died."""
        try:
            stray.path.unlink(missing_ok=True)
        except OSError as error:
            self.removed.failed[stray.path.name] = error.strerror or str(error)

    def _look_again(self) -> None:
        """Spare what the log has come to name since the last look."""
        self._names.read()
        new = self._terms.named(self._names) - self._named
        if new:
            self._named |= new
            self._left -= new | _closure(self._store, new)

    def _remove(self, digests: Sequence[str]) -> dict[str, int]:
        """Remove those that may still go; return the bytes that each has freed."""
        found: dict[str, int] = {}
        for digest in digests:
            if digest not in self._left:
                continue
            self._left.discard(digest)
            try:
                freed = self._store.remove(digest, stored_before_ns=self._terms.before_ns)
            except OSError as error:
                self.removed.failed[digest] = error.strerror or str(error)
                continue
            if freed is not None:
                found[digest] = freed
        self.removed.blobs |= found
        return found

    def _tell(self, update: ly.KernelCatalogUpdate, reason: str, freed: int, *, last: bool) -> None:
        name, inventory = update.meta.subject, self._names.inventory
        event = ly.KernelEvicted(kernel_id=name, artifact_ref=update.artifact_ref, reason=reason, freed_bytes=freed)
        self._publisher.publish(event, key=name, event_id=_event_id(inventory, name) if last else None)
        self.removed.artifacts.append(name)


def _event_id(inventory: Inventory, name: str) -> EventId | None:
    """Return the id under which a kernel's last artifact is said to be gone on purpose, so that nobody misses it.

    Another than that of maintenance, which may find the bytes gone before the log says why. None: it was said before.
    """
    said = inventory.eviction(name)
    return removal_id(name, inventory.facts.listed[name]) if not said or said.startswith(MISSING) else None


def _closure(store: DirectoryBlobStore, named: Iterable[str]) -> set[str]:
    """Return `named` and what small blobs among them name."""
    sizes = {blob.digest: blob.size_bytes for blob in store.blobs()}
    found: set[str] = set()
    queue = [digest for digest in named if digest in sizes]
    while queue:  # ends: no name is taken twice, and the store is finite
        digest = queue.pop()
        if digest not in found:
            found.add(digest)
            if sizes[digest] <= _SEARCHED_BYTES_MAX:
                queue += [other for other in digests_in(_content(store, digest)) if other in sizes]
    return found


def _content(store: DirectoryBlobStore, digest: str) -> bytes:
    try:
        return store.get(digest, bytes_max=_SEARCHED_BYTES_MAX)
    except EsperError:  # A damaged blob names nothing; it is kept, and `verify` tells of it.
        return b""
