"""Collecting garbage: blobs that no record of the log names, and that are not about to be named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from esper.core.errors import EsperError
from esper.core.ids import digests_in
from esper.core.kernel import DirectoryBlobStore, StoredBlob
from esper.leyline import messages as ly
from esper.urza._inventory import Inventory
from esper.urza._maintenance import eviction_id

if TYPE_CHECKING:
    from esper.oona import Fabric, Publisher

#: Bytes are stored before the event that names them: younger ones are never garbage.
GRACE_SECONDS: Final = 3_600.0
#: Topics whose records name bytes that may be made again; of them only what is in use counts (`Inventory.named`).
_OF_KERNELS: Final = frozenset({"kernel-catalog", "kernel-requests", "kernel-replies", "kernel-store"})
_BATCH: Final = 500
_SEARCHED_BYTES_MAX: Final = 64 * 1024
UNNAMED: Final = "unnamed: another artifact stands in its place"
EXPIRED: Final = "expired: nobody grafted it and it is old"
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True)
class Garbage:
    """What may go: blobs, the superseded artifacts among them, and files that writers left when they died."""

    blobs: tuple[StoredBlob, ...]
    artifacts: tuple[ly.KernelCatalogUpdate, ...]
    strays: tuple[Path, ...]
    kept: int

    @property
    def size_bytes(self) -> int:
        """Bytes that the blobs take."""
        return sum(blob.size_bytes for blob in self.blobs)


def named_by_the_log(fabric: Fabric) -> set[str]:
    """Return every digest that a record outside the topics of kernels holds, in any field, believed or not.

    Runs, checkpoints, policies, reports and events of users' own count alike: nothing that anybody names is garbage.

    Raises:
        BrokerUnavailable: no broker answered.
    """
    specs = [spec for spec in fabric.topics if spec.truth and spec.name not in _OF_KERNELS]
    places = [(spec.name, partition) for spec in specs for partition in range(spec.partitions)]
    found: set[str] = set()
    with fabric.reader(dict.fromkeys(places, "begin")) as reader:
        ends = {place: high for place, (_, high) in fabric.cluster.watermarks(places).items()}
        while any(reader.positions()[place] < end for place, end in ends.items()):  # ends at the ends seen first
            for record in reader.read_raw(1.0, _BATCH):
                found |= digests_in(record.value or b"")
    return found


def find_garbage(
    inventory: Inventory,
    store: DirectoryBlobStore,
    named: Iterable[str],
    *,
    home_id: str,
    now_ns: int,
    expired_days: float | None = None,
) -> Garbage:
    """Return what may be removed of the store at the time `now_ns`: nobody names it, and it is an hour old.

    With `expired_days`, a kernel that was catalogued longer ago and that no run names is garbage, too. `named` are the
    digests that records outside the topics of kernels hold. What a named small blob names in its turn, as a manifest
    does, is kept too.
    """
    since_ms = 0 if expired_days is None else now_ns // 1_000_000 - int(expired_days * _DAY_MS)
    kept = _closure(store, inventory.named(home_id=home_id, since_ms=since_ms) | set(named))
    before_ns = now_ns - int(GRACE_SECONDS * 1e9)
    stored = list(store.blobs())
    blobs = tuple(blob for blob in stored if blob.digest not in kept and blob.stored_ns < before_ns)
    gone = {blob.digest for blob in blobs}
    artifacts = tuple(update for ref, update in sorted(inventory.artifacts.items()) if ref in gone)
    return Garbage(blobs, artifacts, tuple(store.strays(before_ns=before_ns)), kept=len(stored) - len(blobs))


def remove_garbage(
    garbage: Garbage, inventory: Inventory, store: DirectoryBlobStore, publisher: Publisher, *, now_ns: int
) -> int:
    """Say of each artifact that it goes, then remove the blobs and the files of dead writers; return the bytes freed.

    A blob that was stored again meanwhile stays.

    Raises:
        OSError: the folder cannot be written.
        BrokerUnavailable: the log could not be written; nothing was removed.
    """
    sizes = {blob.digest: blob.size_bytes for blob in garbage.blobs}
    for update in garbage.artifacts:
        manifest = update.manifest
        freed = sum(sizes.get(d, 0) for d in {update.artifact_ref, manifest.spec_digest, manifest.weights_digest})
        name = update.meta.subject
        listed = inventory.facts.listed[name]
        last = listed.artifact_ref == update.artifact_ref
        event = ly.KernelEvicted(
            kernel_id=name,
            artifact_ref=update.artifact_ref,
            reason=EXPIRED if last else UNNAMED,
            freed_bytes=freed,
        )
        # Of its last artifact a kernel's eviction has one name, so that maintenance does not miss it once more.
        event_id = eviction_id(name, listed)
        publisher.publish(event, key=name, event_id=event_id if last and event_id not in inventory.evictions else None)
    before_ns = now_ns - int(GRACE_SECONDS * 1e9)
    freed = sum(store.remove(blob.digest, stored_before_ns=before_ns) for blob in garbage.blobs)
    for path in garbage.strays:
        if path.name.startswith((".new-", ".gone-")) and not path.is_dir():
            path.unlink(missing_ok=True)
    return freed


def _closure(store: DirectoryBlobStore, named: set[str]) -> set[str]:
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
