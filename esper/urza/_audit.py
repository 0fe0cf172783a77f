"""Looking at every stored byte: what the log names is there and right, and nothing else lies in the store unnoticed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Final

from esper.core.errors import EsperError, IntegrityError
from esper.core.kernel import (
    CATALOGUE_ENTRY,
    COMPILED_PART,
    ArtifactRefused,
    BlobMissing,
    DirectoryBlobStore,
    RefusalTeller,
    check_kernel,
    get_artifact,
    manifest_digest,
    part_of,
    verify_artifact,
)
from esper.leyline import messages as ly
from esper.urza._inventory import Inventory, kernel_of_blobs

#: The part that a blob is of which no kernel is known: a checkpoint, or what nobody names.
BLOB: Final = "blob"
#: What lies in the store's folder and is no blob; its `digest` is where it lies.
FOREIGN: Final = "foreign"
_PLACE_CHARACTERS_MAX: Final = 200


@dataclass(frozen=True)
class StoreFault:
    """Bytes that are missing or wrong."""

    kernel_id: str
    artifact_ref: str
    part: str
    digest: str
    reason: str


@dataclass
class StoreVerdict:
    """What was found: how much was looked at, and each fault."""

    artifacts: int = 0
    blobs: int = 0
    bytes: int = 0
    #: Files that a writer left unfinished, or is about to finish; garbage collection removes the old ones.
    leftovers: int = 0
    bad: list[StoreFault] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything named is there and everything there is right."""
        return not self.bad

    def document(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return {"ok": self.ok, **asdict(self)}


def verify_artifacts(
    inventory: Inventory, store: DirectoryBlobStore, *, home_id: str, teller: RefusalTeller | None = None
) -> StoreVerdict:
    """Read every artifact that the catalogue lists or a run names, every part of this home's forge, and every blob.

    What lies in the store's folder and is no blob is a fault, too. Each fault is told to `teller`. What was removed on
    purpose (`KernelEvicted`) is not missed, unless a run names it. However large a file is, a piece of it is held.
    """
    verdict = StoreVerdict()
    for fault in _faults(inventory, store, home_id, verdict):
        # The pass over all blobs finds again what the passes over names found.
        if not any(fault.digest == known.digest for known in verdict.bad):
            verdict.bad.append(fault)
            if teller is not None:
                teller.tell(fault.kernel_id, fault.artifact_ref, IntegrityError(fault.reason), part=fault.part)
    return verdict


def _faults(
    inventory: Inventory, store: DirectoryBlobStore, home_id: str, verdict: StoreVerdict
) -> Iterator[StoreFault]:
    for name, update in inventory.updates.items():
        if not inventory.removed(name):
            verdict.artifacts += 1
            yield from _of_kernel(name, update, store)
    for part in inventory.parts.values():
        update_of = inventory.updates.get(part.kernel_id)
        current = update_of is not None and update_of.artifact_ref == part.artifact_ref
        if current and part.forge == home_id and part.part_digest and not inventory.removed(part.kernel_id):
            yield from _of_blob(part.part_digest, store, (part.kernel_id, part.artifact_ref, COMPILED_PART))
    yield from _of_runs(inventory, store, verdict)
    kernels = kernel_of_blobs(inventory)
    for blob in store.blobs():
        verdict.blobs, verdict.bytes = verdict.blobs + 1, verdict.bytes + blob.size_bytes
        yield from _of_blob(blob.digest, store, kernels.get(blob.digest, ("", blob.digest, BLOB)))
    yield from _foreign(store, verdict)


def _of_runs(inventory: Inventory, store: DirectoryBlobStore, verdict: StoreVerdict) -> Iterator[StoreFault]:
    """Yield the faults of what runs name: checkpoints, and kernels whether or not another stands in their place."""
    for digest, what in inventory.checkpoints.items():
        yield from _of_blob(digest, store, ("", digest, what))
    for digest, what in inventory.kernels_of_runs.items():
        update = inventory.artifacts.get(digest)
        if update is None:
            yield from _of_blob(digest, store, ("", digest, what))
            continue
        name = update.meta.subject
        if inventory.updates[name].artifact_ref != digest or inventory.removed(name):
            verdict.artifacts += 1
            yield from _of_kernel(name, update, store)


def _foreign(store: DirectoryBlobStore, verdict: StoreVerdict) -> Iterator[StoreFault]:
    """Yield what lies in the store's folder and is no blob, and the folder itself where it is none."""
    try:
        store.check_root()
    except IntegrityError as error:
        yield StoreFault("", store.root.name, FOREIGN, store.root.name, _words(error))
    for stray in store.strays():
        if stray.leftover:
            verdict.leftovers += 1
            continue
        place = os.fsencode(stray.path.relative_to(store.root)).decode("utf-8", "backslashreplace")
        digest = place.rpartition("/")[2]
        where = digest if place == f"{digest[:2]}/{digest}" else place
        yield StoreFault("", where[:_PLACE_CHARACTERS_MAX], FOREIGN, where, f"{place!r} is no blob: {stray.reason}")


def _of_kernel(name: str, update: ly.KernelCatalogUpdate, store: DirectoryBlobStore) -> Iterator[StoreFault]:
    """Yield the first fault of a catalogued kernel: in its entry, or in a part."""
    artifact_ref, manifest = update.artifact_ref, update.manifest
    digests = {"spec": manifest.spec_digest, "weights": manifest.weights_digest}
    try:
        _check_entry(name, update)
        artifact = get_artifact(store, artifact_ref)
        check_kernel(artifact, artifact_ref, name)
        verify_artifact(artifact)
    except BlobMissing as error:
        lacking = [part for part, digest in digests.items() if digest in error.what]
        part = lacking[0] if lacking else "manifest"
        yield StoreFault(name, artifact_ref, part, digests.get(part, artifact_ref), _words(error))
    except IntegrityError as error:
        part = part_of(error)
        yield StoreFault(name, artifact_ref, part, digests.get(part, artifact_ref), _words(error))


def _check_entry(name: str, update: ly.KernelCatalogUpdate) -> None:
    manifest = update.manifest
    said = (name, update.artifact_ref, update.checksum, update.guard_digest)
    if said == (update.kernel_id, manifest_digest(manifest), manifest.weights_digest, manifest.guard_digest):
        return
    raise ArtifactRefused(
        f"the catalogue contradicts itself about kernel {name}",
        part=CATALOGUE_ENTRY,
        cause="its key, its digests and those of the manifest in it differ",
    )


def _of_blob(digest: str, store: DirectoryBlobStore, of: tuple[str, str, str]) -> Iterator[StoreFault]:
    name, artifact_ref, part = of
    try:
        store.check(digest)
    except (BlobMissing, IntegrityError) as error:
        yield StoreFault(name, artifact_ref, part, digest, _words(error))


def _words(error: EsperError) -> str:
    return f"{error.what}: {error.cause}" if error.cause else error.what
