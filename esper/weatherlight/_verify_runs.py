"""`esper runs verify`, `restore` and `diff`: what a recorded run is worth can be computed again from the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esper.core.clock import SYSTEM_CLOCK
from esper.core.errors import IntegrityError, UsageError
from esper.core.files import write_atomically
from esper.oona import Fabric
from esper.weatherlight._run_record import OtherEnvironment, elsewhere, read_record, recording_factory

if TYPE_CHECKING:
    from torch import Tensor

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
    from esper.tolaria import check_re_executable, re_execute

    record = read_record(fabric, run_id)
    check_re_executable(record.request)
    others = elsewhere(record)
    if others and not anyway:
        raise OtherEnvironment(run_id, others)
    past = record.past
    comparison = re_execute(
        record.request,
        past.recording.outcomes.values(),
        past.recording.packets.values(),
        recording_factory(fabric),
        finished=past.finished,
        checkpoints=past.checkpoints,
        on_epoch=on_epoch,
    )
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
    from esper.core.kernel import DirectoryBlobStore
    from esper.tolaria import NotRepeated, state_at, weights_in

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
    store = DirectoryBlobStore(fabric.home.blobs)
    try:
        found = state_at(record.request, record.past, epoch, recording_factory(fabric), store=store, on_epoch=on_epoch)
    except NotRepeated as error:
        others = elsewhere(record)
        if others:
            raise OtherEnvironment(run_id, others, found=error.cause) from error
        raise
    seconds = SYSTEM_CLOCK.monotonic() - began
    if packet.weights_digest not in ("", found.checkpoint.weights_digest):
        raise IntegrityError(
            f"epoch {epoch} of run {run_id} is not restored",
            cause=f"its digest is {found.checkpoint.weights_digest}, the log says {packet.weights_digest}",
            next_step="`esper verify` shows whether records were altered",
        )
    weights = weights_in(found.checkpoint.content)
    _write(to, weights, {"run_id": run_id, "epoch": str(epoch), "weights_digest": found.checkpoint.weights_digest})
    return {
        "run_id": run_id,
        "epoch": epoch,
        "digest": found.checkpoint.weights_digest,
        "file": str(to),
        "tensors": len(weights),
        "from_epoch": found.from_epoch,
        "repeated_epochs": epoch - found.from_epoch,
        "seconds": seconds,
    }


def _write(to: Path, weights: Mapping[str, Tensor], facts: dict[str, str]) -> None:
    from safetensors.torch import save

    try:
        write_atomically(to, save({**weights}, metadata={"format": "pt", **facts}), mode=0o644)
    except OSError as error:
        raise UsageError(
            f"{to} cannot be written", cause=error.strerror or str(error), next_step="Name another file"
        ) from error
