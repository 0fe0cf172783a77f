"""A run as its partitions of the log hold it, whole enough to compute it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from esper.core.errors import IntegrityError, NotReadyError, UsageError
from esper.leyline import messages as ly
from esper.oona import Fabric

if TYPE_CHECKING:
    from esper.tolaria import ControllerFactory, Elsewhere, Past

_TOPICS: Final = ("run-requests", "runs", "system-state")
#: A million records take some ten seconds.
_READ_SECONDS: Final = 600.0
#: Enough of what differs to see why; a fingerprint has a dozen parts.
_NAMED_MAX: Final = 6


@dataclass(frozen=True)
class RunRecord:
    """A run's request and everything that was recorded of it."""

    request: ly.TrainingRunRequested
    past: Past

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.request.run_id


class OtherEnvironment(NotReadyError):
    """A run cannot be judged here: numerics, code or data are other than when it was recorded."""

    retriable = False

    def __init__(self, run_id: str, elsewhere: tuple[Elsewhere, ...], *, found: str = "") -> None:
        named = "; ".join(map(str, elsewhere[:_NAMED_MAX]))
        more = f"; and {len(elsewhere) - _NAMED_MAX} more" if len(elsewhere) > _NAMED_MAX else ""
        super().__init__(
            f"run {run_id} was recorded under other numerics, code or data",
            cause=f"{named}{more}" + (f"; and so {found}" if found else ""),
            next_step="Compute it again where these are the same, or with --anyway to see whether it comes out equal",
        )
        self.elsewhere = elsewhere


def read_record(fabric: Fabric, run_id: str) -> RunRecord:
    """Return what the log holds of a run.

    Raises:
        UsageError: the log knows no such run.
        IntegrityError: the log lacks its request, or an epoch.
        BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
    """
    from esper.tolaria import past_of

    with fabric.reader({(topic, fabric.partition_of(topic, run_id)): "begin" for topic in _TOPICS}) as reader:
        events = [event for event in reader.read_to_end(_READ_SECONDS) if event.meta.subject == run_id]
    if not events:
        raise UsageError(f"there is no run {run_id!r} in the log", next_step="`esper runs list` shows all runs")
    for event in events:
        if isinstance(event.message, ly.TrainingRunRequested):
            return RunRecord(event.message, past_of(events))
    raise IntegrityError(
        f"the log holds events of run {run_id}, but not its request", next_step="`esper verify` shows what was lost"
    )


def recording_factory(fabric: Fabric) -> ControllerFactory:
    """Return what makes the controller of a repeat: kernels by their digests alone, nothing is asked for."""
    from esper.core.kernel import DirectoryBlobStore
    from esper.urza import UrzaRuntime
    from esper.weatherlight._grafting import controller

    runtime = UrzaRuntime(fabric, store=DirectoryBlobStore(fabric.home.blobs))
    return lambda setup: controller(setup, runtime)


def elsewhere(record: RunRecord) -> tuple[Elsewhere, ...]:
    """Return what the run's attempts had otherwise than this process; makes the run's task to see."""
    from esper.tolaria import Environment, differences, prepared

    with prepared(record.request) as setup:
        return differences(record.past.starts, Environment.here(setup))
