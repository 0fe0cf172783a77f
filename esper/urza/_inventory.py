"""What the log says of stored kernels, for people: which artifacts there are, and which bytes it names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from google.protobuf.message import Message

from esper.core.kernel import BlobStore
from esper.leyline import messages as ly
from esper.urza._catalog import KernelEntry, fold_catalogue
from esper.urza._maintenance import MISSING, Listed, StoreFacts, eviction_id, removal_id

if TYPE_CHECKING:
    from esper.oona import Fabric, Reader

_TOPICS: Final = ("kernel-catalog", "kernel-store", "runs")
_READ_SECONDS: Final = 600.0
_PartKey = tuple[str, str, int, str, bytes]


@dataclass
class Inventory:
    """A fold of kernel-catalog, kernel-store and runs, each on its own."""

    #: Kernel id -> its last update; artifact -> the update that catalogued it last, superseded ones among them.
    updates: dict[str, ly.KernelCatalogUpdate] = field(default_factory=dict)
    artifacts: dict[str, ly.KernelCatalogUpdate] = field(default_factory=dict)
    entries: dict[str, KernelEntry] = field(default_factory=dict)
    strategies: dict[str, str] = field(default_factory=dict)
    #: The last record of each compiled part, by kernel, artifact, kind, forge and platform.
    parts: dict[_PartKey, ly.KernelPartCompiled] = field(default_factory=dict)
    facts: StoreFacts = field(default_factory=StoreFacts)
    #: Kernel id -> why the log says that its bytes are gone, under the id of that event.
    evictions: dict[str, str] = field(default_factory=dict)
    #: Digests that runs name, with what each is: what a restore (checkpoints) or a re-execution (kernels) needs.
    checkpoints: dict[str, str] = field(default_factory=dict)
    kernels_of_runs: dict[str, str] = field(default_factory=dict)
    #: Kernel id -> when it was catalogued last, by the broker's clock.
    catalogued_ms: dict[str, int] = field(default_factory=dict)

    def fold(self, message: Message, append_time_ms: int = 0) -> None:
        """Take one more event into the inventory; of other events nothing is kept."""
        fold_catalogue(self.entries, message)
        self.facts.fold(message)
        if isinstance(message, ly.KernelCatalogUpdate):
            self.updates[message.meta.subject] = self.artifacts[message.artifact_ref] = message
            self.catalogued_ms[message.meta.subject] = append_time_ms
        elif isinstance(message, ly.CompileFinished):
            self.strategies[message.artifact_ref] = message.strategy
        elif isinstance(message, ly.KernelPartCompiled):
            platform = message.platform.SerializeToString(deterministic=True)
            self.parts[(message.kernel_id, message.artifact_ref, message.kind, message.forge, platform)] = message
        elif isinstance(message, ly.KernelEvicted):
            self.evictions[message.meta.event_id] = message.reason
        elif isinstance(message, ly.CheckpointSaved) and message.blob_digest:
            self.checkpoints[message.blob_digest] = f"checkpoint of run {message.run_id}, epoch {message.epoch}"
        elif isinstance(message, ly.CommandOutcome) and message.kernel_digest:
            self.kernels_of_runs[message.kernel_digest] = f"kernel of run {message.run_id}, epoch {message.epoch}"

    def eviction(self, name: str) -> str:
        """Return why the log says that the bytes of a kernel's last artifact are gone; "" where it does not."""
        listed = self.facts.listed.get(name, Listed())
        removed = self.evictions.get(removal_id(name, listed), "")
        return removed or self.evictions.get(eviction_id(name, listed), "")

    def removed(self, name: str) -> bool:
        """Return whether somebody removed a kernel's last artifact on purpose."""
        return bool(reason := self.eviction(name)) and not reason.startswith(MISSING)

    def parts_of(self, artifact_ref: str, *, home_id: str | None = None) -> list[ly.KernelPartCompiled]:
        """Return the compiled parts of an artifact that have bytes, of one home's forge where it is given."""
        return [
            part
            for part in self.parts.values()
            if part.artifact_ref == artifact_ref and part.part_digest and home_id in (None, part.forge)
        ]

    def named(self, *, home_id: str, since_ms: int = 0) -> set[str]:
        """Return the digests of what is in use: last artifacts with their parts, and whatever runs name.

        An artifact that was catalogued before `since_ms` is in use only where a run names it.
        """
        found = {*self.checkpoints, *self.kernels_of_runs}
        current = {
            update.artifact_ref: update
            for name, update in self.updates.items()
            if not self.removed(name) and self.catalogued_ms[name] >= since_ms
        }
        used = current | {ref: self.artifacts[ref] for ref in self.kernels_of_runs if ref in self.artifacts}
        for artifact_ref, update in used.items():
            found |= {artifact_ref, update.manifest.spec_digest, update.manifest.weights_digest}
            found |= {part.part_digest for part in self.parts_of(artifact_ref, home_id=home_id)}
        return found


def read_inventory(fabric: Fabric) -> Inventory:
    """Return what the log says now; only what is signed by those who may say it counts.

    Raises:
        NotReadyError, BrokerUnavailable: the log could not be read to its end.
    """
    inventory = Inventory()
    with inventory_reader(fabric) as reader:
        read_on(inventory, reader)
    return inventory


def inventory_reader(fabric: Fabric) -> Reader:
    """Return a reader of all that an inventory is a fold of, from its beginning."""
    places = [(topic, part) for topic in _TOPICS for part in range(fabric.topics[topic].partitions)]
    return fabric.reader(dict.fromkeys(places, "begin"))


def read_on(inventory: Inventory, reader: Reader) -> None:
    """Take what the log holds by now into the inventory; raises as `read_inventory` does."""
    for event in reader.read_to_end(_READ_SECONDS):
        inventory.fold(event.message, event.record.append_time_ms)


def list_artifacts(inventory: Inventory, store: BlobStore) -> list[dict[str, object]]:
    """Return a row for each kernel, by blueprint: what it is, what it costs, and whether its bytes are stored.

    `state` is stored, missing, or removed; only `verify_artifacts` looks at the bytes themselves.
    """
    rows = [_row(inventory, name, update, store) for name, update in inventory.updates.items()]
    return sorted(rows, key=lambda row: (str(row["blueprint_id"]), str(row["layout"]), str(row["kernel_id"])))


def _row(inventory: Inventory, name: str, update: ly.KernelCatalogUpdate, store: BlobStore) -> dict[str, object]:
    manifest, entry = update.manifest, inventory.entries[name]
    stored = _all_there(store, (update.artifact_ref, manifest.spec_digest, manifest.weights_digest))
    parts = inventory.parts_of(update.artifact_ref)
    return {
        "kernel_id": name,
        "blueprint_id": update.blueprint_id,
        "artifact_ref": update.artifact_ref,
        "layout": manifest.request.layout,
        "in_shape": list(manifest.request.in_shape),
        "dtype": manifest.request.dtype,
        "parameters": manifest.parameters,
        "size_bytes": manifest.spec_bytes + manifest.weights_bytes,
        "strategy": inventory.strategies.get(update.artifact_ref, manifest.strategy),
        "prewarm_p50_ms": entry.prewarm.p50_ms if entry.prewarm else None,
        "prewarm_p95_ms": entry.prewarm.p95_ms if entry.prewarm else None,
        "compiled_parts": len(parts),
        "compiled_chosen": sum(part.chosen for part in parts),
        "state": "stored" if stored else "removed" if inventory.removed(name) else "missing",
    }


def _all_there(store: BlobStore, digests: Iterable[str]) -> bool:
    return all(store.has(digest) for digest in digests)


def kernel_of_blobs(inventory: Inventory) -> Mapping[str, tuple[str, str, str]]:
    """Return for each digest that kernels name: the kernel's id, its artifact, and which part of it that is."""
    found: dict[str, tuple[str, str, str]] = {}
    for artifact_ref, update in inventory.artifacts.items():
        name, manifest = update.meta.subject, update.manifest
        found[artifact_ref] = (name, artifact_ref, "manifest")
        found[manifest.spec_digest] = (name, artifact_ref, "spec")
        found[manifest.weights_digest] = (name, artifact_ref, "weights")
    for part in inventory.parts.values():
        found[part.part_digest] = (part.kernel_id, part.artifact_ref, "compiled part")
    return found
