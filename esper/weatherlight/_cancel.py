"""Ending a run that nobody is to go on with."""

from __future__ import annotations

from esper.core.home import live_members
from esper.core.stacks import COLLECTOR, check_alone
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.weatherlight._run_log import check_open, read_run_log


def end_run(fabric: Fabric, run_id: str, reason: str, *, epochs: int) -> None:
    """Say in the log that the run is over, so that whoever trains it stops and nobody takes it up again.

    Raises:
        BrokerUnavailable: not acknowledged within `settings.broker_retry_seconds`.
    """
    with fabric.publisher("weatherlight") as publisher:
        publisher.publish(ly.TrainingRunFailed(run_id=run_id, reason=reason, epochs=epochs), key=run_id)


def cancel_run(fabric: Fabric, run_id: str) -> None:
    """End a run as cancelled: one in training, one that waits, or one whose process died without a word.

    Raises:
        UsageError: the log knows no such run, or it is over already.
        BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
    """
    run = read_run_log(fabric, run_id)
    check_open(run, f"run {run_id} cannot be cancelled")
    if run.request is not None and any(one.name.startswith(COLLECTOR) for one in live_members(fabric.home)):
        # Of a stack that nobody trains any more, each run may be ended by hand.
        check_alone(run.request, f"run {run_id} cannot be cancelled")
    end_run(fabric, run_id, "cancelled", epochs=run.epochs)
