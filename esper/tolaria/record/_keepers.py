"""Where checkpoints go: into the blob store and the log, against the record of a repeat, or into memory."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from esper.core.checkpoint import refused
from esper.core.errors import IntegrityError
from esper.core.ids import derive_id, sha256_hex
from esper.core.kernel import BlobMissing, BlobStore
from esper.core.ports import KernelUnavailable
from esper.leyline import messages as ly
from esper.oona import Publisher
from esper.tolaria.record._checkpoint import Checkpoint, digest_in
from esper.tolaria.record._recording import Difference, NotRepeated

_log = logging.getLogger("esper.tolaria.checkpoints")


class LoggedCheckpoints:
    """Keeps every so many epochs: the blob first, then the event that names it; 0 epochs is never.

    Epochs up to `repeated_epochs` are a repeat of what `recorded` says was kept: nothing is appended for them, but
    a blob that is missing or damaged is written again where the repeat gives the very bytes of it.
    A disk that takes no blob costs the run its checkpoint and no more.
    """

    def __init__(
        self,
        *,
        run_id: str,
        attempt: int,
        every_epochs: int,
        store: BlobStore,
        publisher: Publisher,
        recorded: Iterable[ly.CheckpointSaved] = (),
        repeated_epochs: int = 0,
    ) -> None:
        self._run_id = run_id
        self._attempt = attempt
        self._every_epochs = every_epochs
        self._store = store
        self._publisher = publisher
        self._recorded = {(saved.epoch, saved.blob_digest) for saved in recorded}
        self._repeated_epochs = repeated_epochs

    def wants(self, epoch: int) -> bool:
        """Return whether `epoch` is one of every so many, or was kept by an earlier attempt."""
        if epoch <= self._repeated_epochs:
            return any(kept == epoch for kept, _ in self._recorded)
        return self._every_epochs > 0 and epoch % self._every_epochs == 0

    def keep(self, checkpoint: Checkpoint) -> None:
        """Store the blob; append CheckpointSaved once it is durable."""
        epoch, content = checkpoint.epoch, checkpoint.content
        repeated = epoch <= self._repeated_epochs
        if repeated and (epoch, sha256_hex(content)) not in self._recorded:
            _log.warning("run %s: the checkpoint of epoch %d comes out otherwise than it was kept", self._run_id, epoch)
            return
        try:
            digest = self._store.put(content)
        except OSError as error:
            _log.warning("run %s: no checkpoint of epoch %d: %s", self._run_id, epoch, error)
            return
        if not repeated:
            self._append(checkpoint, digest)

    def _append(self, checkpoint: Checkpoint, digest: str) -> None:
        saved = ly.CheckpointSaved(
            run_id=self._run_id,
            attempt=self._attempt,
            epoch=checkpoint.epoch,
            blob_digest=digest,
            size_bytes=len(checkpoint.content),
            weights_digest=checkpoint.weights_digest,
        )
        event_id = derive_id(self._run_id, "checkpoint", checkpoint.epoch, self._attempt)
        self._publisher.publish(saved, key=self._run_id, event_id=event_id)


class ComparedCheckpoints:
    """Holds the checkpoints of a repeat against those that the log names: the whole state, not its weights alone."""

    def __init__(self, run_id: str, recorded: Iterable[ly.CheckpointSaved]) -> None:
        self._run_id = run_id
        self._recorded = {saved.epoch: saved for saved in recorded}

    def wants(self, epoch: int) -> bool:
        """Return whether the log names a checkpoint of `epoch`."""
        return epoch in self._recorded

    def keep(self, checkpoint: Checkpoint) -> None:
        """Compare it.

        Raises:
            NotRepeated: it has other bytes.
        """
        recorded, found = self._recorded[checkpoint.epoch].blob_digest, sha256_hex(checkpoint.content)
        if recorded != found:
            raise NotRepeated(self._run_id, Difference(checkpoint.epoch, "checkpoint", recorded, found))


@dataclass
class HeldCheckpoints:
    """Holds the checkpoints of `epochs` in memory, by epoch."""

    epochs: frozenset[int]
    held: dict[int, Checkpoint] = field(default_factory=dict)

    def wants(self, epoch: int) -> bool:
        """Return whether it is one of `epochs`."""
        return epoch in self.epochs

    def keep(self, checkpoint: Checkpoint) -> None:
        """Hold it."""
        self.held[checkpoint.epoch] = checkpoint


class CheckpointUnusable(IntegrityError):
    """A checkpoint that the log names is missing or damaged; an earlier one, or none, serves as well."""


@contextmanager
def unusable_unless_whole() -> Iterator[None]:
    """Turn what restoring a checkpoint raises into CheckpointUnusable, so that it is told apart from a wrong run."""
    try:
        yield
    except (BlobMissing, IntegrityError, KernelUnavailable) as error:
        raise CheckpointUnusable(error.what, cause=error.cause, next_step=error.next_step) from error


def verified_checkpoint(store: BlobStore, saved: ly.CheckpointSaved, packet: ly.SystemStatePacket) -> bytes:
    """Return the file that `saved` names: its bytes have that digest, its weights those of event and packet.

    Raises:
        BlobMissing: the store does not hold it.
        IntegrityError: it is damaged, or has other weights.
    """
    content = store.get(saved.blob_digest)
    found = digest_in(content)
    if found != saved.weights_digest or packet.weights_digest not in ("", found):
        raise refused(f"its weights have the digest {found}, the log says {packet.weights_digest}")
    return content


def restorable(
    checkpoints: Iterable[ly.CheckpointSaved], outcomes: Mapping[int, ly.CommandOutcome], *, until: int
) -> list[ly.CheckpointSaved]:
    """Return the checkpoints from which epoch `until` can be reached, the latest first; one for each epoch."""
    by_epoch: dict[int, ly.CheckpointSaved] = {}
    for saved in checkpoints:
        if 0 < saved.epoch <= until and saved.epoch in outcomes:
            by_epoch.setdefault(saved.epoch, saved)
    return [by_epoch[epoch] for epoch in sorted(by_epoch, reverse=True)]
