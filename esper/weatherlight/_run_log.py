"""How a run stands by its own partitions of the log, for commands that act on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from esper.core.errors import UsageError
from esper.leyline import messages as ly
from esper.oona import Event, Fabric

_TOPICS: Final = ("run-requests", "runs", "system-state")
#: A run's partitions are read to their ends; a million records take some ten seconds.
_READ_SECONDS: Final = 60.0


@dataclass(frozen=True)
class RunLog:
    """What the log says of one run, as far as it matters to whoever commands it."""

    run_id: str
    request: ly.TrainingRunRequested | None = None
    #: The state packet of the highest epoch.
    packet: ly.SystemStatePacket | None = None
    #: Highest epoch that has its outcome.
    epochs: int = 0
    #: "finished", "failed", or "" while it is not over.
    end: str = ""


def read_run_log(fabric: Fabric, run_id: str) -> RunLog:
    """Return how a run stands now.

    Raises:
        UsageError: the log knows no such run.
        BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
    """
    with fabric.reader({(topic, fabric.partition_of(topic, run_id)): "begin" for topic in _TOPICS}) as reader:
        events = [event for event in reader.read_to_end(_READ_SECONDS) if event.meta.subject == run_id]
    if not events:
        raise UsageError(f"there is no run {run_id!r} in the log", next_step="`esper runs list` shows all runs")
    return run_log_of(run_id, events)


def run_log_of(run_id: str, events: Iterable[Event]) -> RunLog:
    """Return how a run stands after its own events; pure."""
    request: ly.TrainingRunRequested | None = None
    packet: ly.SystemStatePacket | None = None
    epochs, end = 0, ""
    for event in events:
        message = event.message
        if isinstance(message, ly.TrainingRunRequested):
            request = request or message
        elif isinstance(message, ly.SystemStatePacket):
            packet = message if packet is None or message.current_epoch > packet.current_epoch else packet
        elif isinstance(message, ly.CommandOutcome):
            epochs = max(epochs, message.epoch)
        elif isinstance(message, ly.TrainingRunFinished | ly.TrainingRunFailed):
            end = end or ("finished" if isinstance(message, ly.TrainingRunFinished) else "failed")
    return RunLog(run_id, request, packet, epochs, end)


def check_open(run: RunLog, what: str) -> None:
    """Raise UsageError when the run is over: `what` says what cannot be done then."""
    if run.end:
        raise UsageError(
            what,
            cause=f"it is over: it {run.end}",
            next_step=f"`esper runs show {run.run_id}` shows how it ended",
        )
