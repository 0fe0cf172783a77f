"""What `on_log_loss` makes of a run: its journal, its kernels, and how long its end waits for a broker."""

from __future__ import annotations

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import BrokerUnavailable
from esper.core.ports import BlueprintRuntime
from esper.core.rng import jitter
from esper.oona import Fabric
from esper.tolaria import TrainingJournal
from esper.weatherlight._grafting import kernel_runtime
from esper.weatherlight._grow._gap import GapJournal, RenewedRuntime
from esper.weatherlight._grow._record import GrowRecord
from esper.weatherlight._grow._wishes import LogLoss

#: How long an edge in a gap looks for a broker before training goes on.
_LOOK_SECONDS = 0.2
#: The end of a block waits between two looks, from the first to the most.
_POLL_SECONDS, _POLL_SECONDS_MOST = 0.1, 2.0


def runtime_for(loss: LogLoss, fabric: Fabric) -> BlueprintRuntime:
    """Return where the run gets its kernels from."""
    return RenewedRuntime(lambda: kernel_runtime(fabric)) if loss.degrade else kernel_runtime(fabric)


def journal_for(loss: LogLoss, fabric: Fabric, record: GrowRecord) -> TrainingJournal:
    """Return the journal of the run's epochs.

    Raises:
        BrokerUnavailable: the log cannot be written.
    """
    if not loss.degrade:
        return record.open_journal()
    return GapJournal(
        connect=record.open_journal,
        answers=lambda: _answers(fabric),
        tell_gap=lambda first, last, seconds: record.tell_gap(first_epoch=first, last_epoch=last, seconds=seconds),
    )


def _answers(fabric: Fabric) -> bool:
    try:
        fabric.cluster.metadata(seconds=_LOOK_SECONDS)
    except BrokerUnavailable:
        return False
    return True


def close_gap(journal: TrainingJournal | None, *, run_id: str, wait_seconds: float) -> None:
    """Wait until nothing is unsaid.

    Raises:
        BrokerUnavailable: no broker answered for `wait_seconds`.
    """
    if not isinstance(journal, GapJournal):
        return
    deadline, pause = Deadline(wait_seconds), _POLL_SECONDS
    while not journal.try_to_close(unpaced=True):
        if deadline.expired:
            raise BrokerUnavailable(
                f"run {run_id} came to its end, and the log does not know",
                cause=f"no broker answered for {wait_seconds:g} s; the model is trained",
                next_step="Start the broker before the block ends; `esper runs cancel` ends the run",
            )
        SYSTEM_CLOCK.sleep(min(jitter(pause), deadline.remaining_seconds))
        pause = min(2.0 * pause, _POLL_SECONDS_MOST)
