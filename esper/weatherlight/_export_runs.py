"""`esper runs export`: the network that a recorded run ended with, computed again from the log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esper.core.errors import IntegrityError, UsageError
from esper.core.stacks import check_alone
from esper.oona import Fabric
from esper.weatherlight._run_record import OtherEnvironment, elsewhere, read_record, recording_factory

if TYPE_CHECKING:
    from esper.core.ports import GraftController
    from esper.tolaria import TrainingSetup

_SAMPLES = 4


def export_run(
    fabric: Fabric, run_id: str, path: Path, to: str, *, on_epoch: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Compute a run again, compare it with its record, and write the network that it came to; see `export_network`.

    A run that is not over is exported as it stands after its last recorded command.

    Raises:
        UsageError: there is no such run, it cannot be computed here, or it cannot be written so.
        OtherEnvironment: under other numerics, code or data it does not come out as recorded.
        IntegrityError: it does not, although they are the same; or the log lacks an epoch of it.
        KernelUnavailable: no store holds a kernel that was grafted.
    """
    from esper.tolaria import check_re_executable, re_execute
    from esper.weatherlight._export import check_target, export_network

    check_target(path, to)
    record = read_record(fabric, run_id)
    check_re_executable(record.request)
    check_alone(record.request, f"run {run_id} cannot be exported")
    past = record.past
    if not past.recording.epochs:
        raise UsageError(f"run {run_id} cannot be exported", cause="no epoch of it is over")
    setups: list[TrainingSetup] = []
    factory = recording_factory(fabric)

    def keeping(setup: TrainingSetup) -> GraftController:
        setups.append(setup)
        return factory(setup)

    comparison = re_execute(
        record.request,
        past.recording.outcomes.values(),
        past.recording.packets.values(),
        keeping,
        finished=past.finished,
        on_epoch=on_epoch,
    )
    difference = comparison.first_difference
    if difference is not None:
        found = f"in epoch {difference.epoch} {difference.field} is {difference.repeated}"
        others = elsewhere(record)
        if others:
            raise OtherEnvironment(run_id, others, found=found)
        raise IntegrityError(
            f"run {run_id} does not come out as recorded",
            cause=f"{found}, the log says {difference.recorded}",
            next_step="`esper verify` shows whether records were altered",
        )
    setup = setups[-1]
    exported = export_network(setup.model, setup.train.inputs[:_SAMPLES], path, to)
    return {
        "run_id": run_id,
        "epochs": comparison.epochs,
        "format": to,
        "files": [str(file) for file in exported.files],
        "difference": exported.difference,
    }
