"""`esper runs verify`, `restore` and `diff`: what a recorded run is worth can be computed again from the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esper.core.clock import SYSTEM_CLOCK
from esper.core.errors import IntegrityError, UsageError
from esper.core.files import write_atomically
from esper.core.stacks import is_stacked
from esper.oona import Fabric
from esper.weatherlight._run_record import OtherEnvironment, RunRecord, elsewhere, read_record, recording_factory
from esper.weatherlight._stack_records import compare_member, member_weights

if TYPE_CHECKING:
    from torch import Tensor

    from esper.tolaria import Comparison, Elsewhere

Tell = Callable[[int], None]


@dataclass(frozen=True)
class Verified:
    """What a re-execution came to: the document of `runs verify`, and what was otherwise here than recorded."""

    document: dict[str, Any]
    elsewhere: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether everything that was recorded came out again."""
        return bool(self.document["equal"])


def verify_run(fabric: Fabric, run_id: str, *, anyway: bool = False, on_epoch: Tell | None = None) -> Verified:
    """Compute a run again from its request and outcomes and compare every packet, every checkpoint and the end.

    With `anyway` it is computed also where numerics, code or data are other than recorded; it may come out equal.

    Raises:
        OtherEnvironment: they are, and nothing was asked for `anyway`, or it did not come out equal.
        UsageError: there is no such run, or it cannot be computed here.
        IntegrityError: the log lacks an epoch of it.
        KernelUnavailable: no store holds a kernel that was grafted.
    """
    from esper.tolaria import check_re_executable

    record = read_record(fabric, run_id)
    check_re_executable(record.request)
    if is_stacked(record.request):
        comparison, others = compare_member(fabric, record, anyway=anyway, on_epoch=on_epoch)
    else:
        comparison, others = _compare(fabric, record, anyway=anyway, on_epoch=on_epoch)
    difference = comparison.first_difference
    if difference is not None and others:
        found = f"epoch {difference.epoch} does not repeat: {difference.field} is {difference.repeated} now"
        raise OtherEnvironment(run_id, others, found=f"{found} and was {difference.recorded}")
    document = {
        "run_id": run_id,
        "epochs": comparison.epochs,
        "equal": comparison.equal,
        "first_difference": None if difference is None else asdict(difference),
    }
    return Verified(document, tuple(map(str, others)))


def _compare(
    fabric: Fabric, record: RunRecord, *, anyway: bool, on_epoch: Tell | None
) -> tuple[Comparison, tuple[Elsewhere, ...]]:
    from esper.tolaria import re_execute

    others, past = elsewhere(record), record.past
    if others and not anyway:
        raise OtherEnvironment(record.run_id, others)
    comparison = re_execute(
        record.request,
        past.recording.outcomes.values(),
        past.recording.packets.values(),
        recording_factory(fabric),
        finished=past.finished,
        checkpoints=past.checkpoints,
        on_epoch=on_epoch,
    )
    return comparison, others


def restore_run(fabric: Fabric, run_id: str, epoch: int, to: Path, *, on_epoch: Tell | None = None) -> dict[str, Any]:
    """Write the weights at the end of an epoch to `to` as safetensors, bit for bit those of the epoch's digest.

    They are those of the network as the epoch's state packet describes it, before that epoch's command: the host's by
    their names, those of a seed that is not yet part of it as "SEED:NAME". Nothing is computed where a checkpoint of
    the epoch is kept.

    Raises:
        UsageError: there is no such run or epoch, or the file cannot be written.
        OtherEnvironment: computed again under other numerics, code or data, the run does not come out as recorded.
        IntegrityError: it does not, although they are the same.
        KernelUnavailable: no store holds a kernel that was grafted.
    """
    from esper.tolaria import NotRepeated

    record = read_record(fabric, run_id)
    packet = record.past.recording.packets.get(epoch)
    if packet is None or epoch > record.past.recording.epochs:
        known = record.past.recording.epochs
        raise UsageError(
            f"epoch {epoch} of run {run_id} cannot be restored",
            cause=f"the log holds epochs 1 to {known} of it" if known else "no epoch of it is over",
            next_step=f"`esper runs show {run_id}` lists its epochs",
        )
    began = SYSTEM_CLOCK.monotonic()
    try:
        weights, digest, from_epoch = _restored(fabric, record, epoch, on_epoch)
    except NotRepeated as error:
        others = elsewhere(record)
        if others:
            raise OtherEnvironment(run_id, others, found=error.cause) from error
        raise
    seconds = SYSTEM_CLOCK.monotonic() - began
    if packet.weights_digest not in ("", digest):
        raise IntegrityError(
            f"epoch {epoch} of run {run_id} is not restored",
            cause=f"its digest is {digest}, the log says {packet.weights_digest}",
            next_step="`esper verify` shows whether records were altered",
        )
    _write(to, weights, {"run_id": run_id, "epoch": str(epoch), "weights_digest": digest})
    return {
        "run_id": run_id,
        "epoch": epoch,
        "digest": digest,
        "file": str(to),
        "tensors": len(weights),
        "from_epoch": from_epoch,
        "repeated_epochs": epoch - from_epoch,
        "seconds": seconds,
    }


def _restored(
    fabric: Fabric, record: RunRecord, epoch: int, on_epoch: Tell | None
) -> tuple[dict[str, Tensor], str, int]:
    """Return the weights of an epoch, their digest, and the epoch of the checkpoint that they were computed from."""
    from esper.core.kernel import DirectoryBlobStore
    from esper.tolaria import state_at, weights_in

    if is_stacked(record.request):
        return *member_weights(fabric, record, epoch, on_epoch=on_epoch), 0
    store = DirectoryBlobStore(fabric.home.blobs)
    found = state_at(record.request, record.past, epoch, recording_factory(fabric), store=store, on_epoch=on_epoch)
    return weights_in(found.checkpoint.content), found.checkpoint.weights_digest, found.from_epoch


def _write(to: Path, weights: Mapping[str, Tensor], facts: dict[str, str]) -> None:
    from esper.weatherlight._tensor_file import tensor_file

    try:
        write_atomically(to, tensor_file(weights, facts), mode=0o644)
    except OSError as error:
        raise UsageError(
            f"{to} cannot be written", cause=error.strerror or str(error), next_step="Name another file"
        ) from error
