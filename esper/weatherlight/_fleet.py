"""Many runs at once over several workers: asks for all of them, keeps the workers alive, and waits for every end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Final

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import NotReadyError, UsageError
from esper.core.home import Home, live_members
from esper.core.ids import RunId, new_run_id
from esper.core.settings import Settings
from esper.leyline import messages as ly
from esper.oona import Event, Fabric, Reader
from esper.weatherlight._cancel import end_run
from esper.weatherlight._members import SUBSYSTEMS, Member
from esper.weatherlight._readiness import await_answering
from esper.weatherlight._supervisor import Supervisor, missing_members
from esper.weatherlight._training import CLAIM_SECONDS, Requested, TrainingRequest, result_document

#: More would wait in the log for days; ask for them in parts.
RUNS_MAX: Final = 10_000
WORKERS_MAX: Final = 64
_TRAINER: Final = "tolaria"
_POLL_SECONDS: Final = 0.1
_GATHER_SECONDS: Final = 0.1


def grid(
    base: TrainingRequest, *, seeds: Sequence[int], policies: Sequence[str] = (), hosts: Sequence[str] = ()
) -> list[TrainingRequest]:
    """Return a request for every host, policy and seed; what is not given is that of `base`.

    Raises:
        UsageError: there are none, more than `RUNS_MAX`, or one is named twice.
    """
    axes = (tuple(hosts) or (base.host,), tuple(policies) or (base.policy,), tuple(seeds))
    repeated = [value for axis in axes for value in axis if axis.count(value) > 1]
    if repeated:
        raise UsageError(f"{repeated[0]!r} is named twice", next_step="name every host, policy and seed once")
    count = len(axes[0]) * len(axes[1]) * len(axes[2])
    if not 1 <= count <= RUNS_MAX:
        raise UsageError(f"a fleet of {count} runs cannot be asked for", next_step=f"ask for 1 to {RUNS_MAX}")
    return [replace(base, host=host, policy=policy, seed=seed) for host, policy, seed in product(*axes)]


@contextmanager
def fleet_members(settings: Settings, *, workers: int) -> Iterator[Supervisor]:
    """Have one member of each subsystem and `workers` trainers: start what is missing; drain what was started.

    Raises:
        UsageError: so many workers cannot be started.
    """
    if not 1 <= workers <= WORKERS_MAX:
        raise UsageError(f"{workers} workers cannot be started", next_step=f"ask for 1 to {WORKERS_MAX}")
    home = Home.open(settings)
    alive = {member.name for member in live_members(home)}
    others = missing_members(home, [name for name in SUBSYSTEMS if name != _TRAINER])
    trainers = [member for index in range(workers) if (member := Member(_TRAINER, index)).name not in alive]
    with Supervisor(home, [*others, *trainers], wanted=tuple(SUBSYSTEMS)) as supervisor:
        yield supervisor


@dataclass
class FleetRun:
    """One run of a fleet as the log shows it so far."""

    run_id: RunId
    request: ly.TrainingRunRequested
    worker: str = ""
    attempt: int = 0
    epochs: int = 0
    document: dict[str, Any] | None = None

    @property
    def over(self) -> bool:
        """Whether the log holds its end."""
        return self.document is not None

    def fold(self, message: object) -> None:
        """Take note of one more event of the run; what a fenced attempt still says counts for nothing."""
        if self.over:
            return
        if isinstance(message, ly.TrainingRunClaimed) and message.attempt == self.attempt + 1:
            self.worker, self.attempt = message.worker, message.attempt
        elif isinstance(message, ly.CommandOutcome):
            self.epochs = max(self.epochs, message.epoch)
        elif isinstance(message, ly.TrainingRunFinished) and message.attempt >= self.attempt:
            self.document = result_document(self.request, message) | self._by()
        elif isinstance(message, ly.TrainingRunFailed) and (not message.attempt or message.attempt >= self.attempt):
            self.document = self._failed(message)

    def _by(self) -> dict[str, Any]:
        return {"worker": self.worker, "attempts": self.attempt}

    def _failed(self, failed: ly.TrainingRunFailed) -> dict[str, Any]:
        asked = {name: getattr(self.request, name) for name in ("run_id", "task", "host", "policy", "seed")}
        facts = {"epochs": failed.epochs, "status": "failed", "reason": failed.reason, "detail": failed.detail}
        return asked | facts | {"seeds": []} | self._by()


@dataclass
class Fleet:
    """All runs of a fleet, folded from the log; pure but for `document` of the runs it holds."""

    runs: dict[str, FleetRun] = field(default_factory=dict)

    def fold(self, events: Iterable[Event]) -> list[FleetRun]:
        """Fold events of any runs; return those of ours that ended by them."""
        ended: list[FleetRun] = []
        for event in events:
            run = self.runs.get(event.meta.subject)
            if run is not None and not run.over:
                run.fold(event.message)
                ended += [run] if run.over else []
        return ended

    @property
    def waiting(self) -> list[FleetRun]:
        """Those without an end."""
        return [run for run in self.runs.values() if not run.over]

    def counts(self) -> Mapping[str, int]:
        """Return how many were asked for, are trained, finished and failed, and the epochs that are over."""
        runs = self.runs.values()
        ended = [run.document["status"] for run in runs if run.document is not None]
        return {
            "requested": sum(not run.over and not run.attempt for run in runs),
            "running": sum(not run.over and run.attempt > 0 for run in runs),
            "finished": ended.count("finished"),
            "failed": ended.count("failed"),
            "epochs": sum(run.document["epochs"] if run.document else run.epochs for run in runs),
        }


def train_fleet(
    fabric: Fabric,
    requests: Sequence[Requested],
    supervisor: Supervisor,
    *,
    progress: Callable[[Mapping[str, int]], None] | None = None,
    on_end: Callable[[FleetRun], None] | None = None,
) -> list[dict[str, Any]]:
    """Ask for every run, wait for all ends, and return their documents in the order of `requests`.

    Workers take runs as they are free, each run once; what a killed one leaves is gone on with by its next life or by
    another. A run that fails does not end the others. Interrupted, the runs without an end are cancelled.

    Raises:
        NotReadyError: nobody is left to train, or a member cannot run.
        BrokerUnavailable: the broker was away for longer than `broker_retry_seconds`.
    """
    await_answering(fabric, supervisor)
    fleet = Fleet()
    reader = fabric.reader(
        {("runs", partition): "end" for partition in range(fabric.topics["runs"].partitions)},
        gather_seconds=_GATHER_SECONDS,
    )
    try:
        with fabric.publisher("cli") as publisher:
            for request in requests:
                run_id = new_run_id()
                message = request.message(run_id, fabric.settings)
                fleet.runs[run_id] = FleetRun(run_id, message)
                publisher.publish(message, key=run_id)
        _wait(fabric, fleet, reader, supervisor, progress, on_end)
        return [run.document for run in fleet.runs.values() if run.document is not None]
    except KeyboardInterrupt:
        _end(fabric, fleet.waiting, "cancelled")
        raise
    except NotReadyError:
        _end(fabric, fleet.waiting, "worker_lost")
        raise
    finally:
        reader.close()


def _wait(
    fabric: Fabric,
    fleet: Fleet,
    reader: Reader,
    supervisor: Supervisor,
    progress: Callable[[Mapping[str, int]], None] | None,
    on_end: Callable[[FleetRun], None] | None,
) -> None:
    deadline = Deadline(CLAIM_SECONDS, clock=SYSTEM_CLOCK)
    while fleet.waiting:  # ends with the last run, or when nobody is left to train
        for run in fleet.fold(reader.read(_POLL_SECONDS)):
            if on_end is not None:
                on_end(run)
        if progress is not None:
            progress(fleet.counts())
        supervisor.check()
        if any(member.name.startswith(f"{_TRAINER}-") for member in live_members(fabric.home)):
            deadline = Deadline(CLAIM_SECONDS, clock=SYSTEM_CLOCK)
        elif deadline.expired:
            raise NotReadyError(
                f"{len(fleet.waiting)} runs of the fleet have nobody to train them",
                cause=f"no worker lived for {CLAIM_SECONDS:.0f} s",
                next_step="`esper status` shows the members; `esper serve` starts them",
            )


def _end(fabric: Fabric, runs: Iterable[FleetRun], reason: str) -> None:
    """End runs; where the broker is what is away they stay, and are gone on with when it is back."""
    with suppress(NotReadyError):
        for run in runs:
            end_run(fabric, run.run_id, reason, epochs=run.epochs)
