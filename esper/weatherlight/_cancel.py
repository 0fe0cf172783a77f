"""Ending a run that nobody is to go on with."""

from __future__ import annotations

from esper.core.errors import UsageError
from esper.leyline import messages as ly
from esper.oona import Fabric

_ENDS = (ly.TrainingRunFinished, ly.TrainingRunFailed)
#: The one partition of a run is read to its end; a million records take some ten seconds.
_READ_SECONDS = 60.0


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
    partition = fabric.partition_of("runs", run_id)
    with fabric.reader({("run-requests", partition): "begin", ("runs", partition): "begin"}) as reader:
        events = [event for event in reader.read_to_end(_READ_SECONDS) if event.meta.subject == run_id]
    if not events:
        raise UsageError(f"there is no run {run_id!r} in the log", next_step="`esper runs list` shows all runs")
    ends = [event.message for event in events if isinstance(event.message, _ENDS)]
    if ends:
        raise UsageError(
            f"run {run_id} cannot be cancelled",
            cause="it is over: " + ("it finished" if isinstance(ends[0], ly.TrainingRunFinished) else "it failed"),
            next_step=f"`esper runs show {run_id}` shows how it ended",
        )
    epochs = [event.message.epoch for event in events if isinstance(event.message, ly.CommandOutcome)]
    end_run(fabric, run_id, "cancelled", epochs=max(epochs, default=0))
