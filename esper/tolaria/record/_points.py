"""Where a run can return to: checkpoints at hand in memory, and those that the log names and the store holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from esper.core.checkpoint import refused
from esper.core.ids import sha256_hex
from esper.core.kernel import BlobMissing, BlobStore
from esper.leyline import messages as ly
from esper.tolaria.record._checkpoint import Checkpoint

#: Newest checkpoints that stay in memory; a return is then as fast as a copy. Beyond the size the store must do.
_HELD: Final = 2
_HELD_BYTES_MAX: Final = 256 * 2**20


class ReturnPoints:
    """The checkpoints of one run that can be restored, by epoch.

    `recorded` are the returns of an earlier attempt, by the epoch at whose edge they were done: an epoch that one of
    them goes to is held in memory when the repeat comes by it. `kept` are checkpoints that the log names.
    """

    def __init__(
        self,
        *,
        store: BlobStore | None = None,
        kept: Iterable[ly.CheckpointSaved] = (),
        recorded: Mapping[int, ly.RunRolledBack] | None = None,
        repeated_epochs: int = 0,
    ) -> None:
        #: Epochs that are lived again as they stand in a record.
        self.repeated_epochs = repeated_epochs
        self._store = store
        self._digests = {saved.epoch: saved.blob_digest for saved in kept} if store is not None else {}
        self._needed = {one.to_epoch: one.from_epoch for one in sorted((recorded or {}).values(), key=_from_epoch)}
        self._held: dict[int, bytes] = {}

    def wants(self, epoch: int) -> bool:
        """Return whether the state at the end of `epoch` is needed again."""
        return epoch in self._needed

    def keep(self, checkpoint: Checkpoint) -> None:
        """Hold a checkpoint that was just taken."""
        self._digests[checkpoint.epoch] = sha256_hex(checkpoint.content)
        if len(checkpoint.content) <= _HELD_BYTES_MAX or self._store is None or self.wants(checkpoint.epoch):
            self._held[checkpoint.epoch] = checkpoint.content
        spare = [epoch for epoch in sorted(self._held) if self._needed.get(epoch, 0) <= checkpoint.epoch]
        for epoch in spare[:-_HELD]:
            del self._held[epoch]

    def epochs(self) -> list[int]:
        """Return the epochs that may be at hand, the latest first; only `content` tells."""
        return sorted(self._digests, reverse=True)

    def content(self, epoch: int, *, digest: str = "") -> bytes:
        """Return the file of `epoch`'s end, with the `digest` that a record names.

        Raises:
            BlobMissing: it is not at hand.
            IntegrityError: what is there is something else.
        """
        wanted = digest or self._digests.get(epoch, "")
        content = self._held.get(epoch)
        if content is None:
            if self._store is None or not wanted:
                raise BlobMissing(f"no checkpoint of epoch {epoch} is at hand", next_step="Name an epoch that has one")
            content = self._store.get(wanted)
        found = sha256_hex(content)
        if found != wanted:
            raise refused(f"the checkpoint of epoch {epoch} has the digest {found}, the log says {wanted}")
        return content


def _from_epoch(event: ly.RunRolledBack) -> int:
    return event.from_epoch
