"""Asks for a training run, keeps the members alive that it needs, and waits for its end in the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import NotReadyError, OperationFailed
from esper.core.home import Home, live_members
from esper.core.ids import RunId, new_run_id
from esper.core.settings import Settings
from esper.leyline import messages as ly
from esper.oona import Event, Fabric, Reader
from esper.weatherlight._cancel import end_run
from esper.weatherlight._members import SUBSYSTEMS
from esper.weatherlight._readiness import await_answering
from esper.weatherlight._supervisor import Supervisor, missing_members

#: A fresh member imports torch, joins its group and reads its past before it takes a run.
CLAIM_SECONDS = 90.0
_POLL_SECONDS = 0.1
#: A progress bar may lag by as much; in exchange it takes nothing from the run.
_GATHER_SECONDS = 0.1

Progress = Callable[[ly.SystemStatePacket], None]


@dataclass(frozen=True)
class TrainingRequest:
    """What a person asks for; everything that decides how the run goes, given its outcomes."""

    task: str
    host: str = "mlp"
    policy: str = "heuristic"
    epochs: int = 40
    seed: int = 0
    device: str = "cpu"
    experiment: str = ""
    hyperparameters: dict[str, float] = field(default_factory=dict)
    policy_parameters: dict[str, float] = field(default_factory=dict)
    slots: tuple[str, ...] = ()
    digest_every_epochs: int = 1
    #: (slot, canonical spec): kernels that the host has from its beginning.
    built_in: tuple[tuple[str, bytes], ...] = ()

    def message(self, run_id: RunId, settings: Settings) -> ly.TrainingRunRequested:
        """Return the event that asks for this run."""
        return ly.TrainingRunRequested(
            run_id=run_id,
            task=self.task,
            host=self.host,
            policy=self.policy,
            policy_parameters=self.policy_parameters,
            epochs=self.epochs,
            seed=self.seed,
            experiment_name=self.experiment,
            device=self.device,
            hyperparameters=self.hyperparameters,
            re_executable=True,
            decision_wait_seconds=settings.decision_wait_seconds,
            kernel_wait_seconds=settings.kernel_wait_seconds,
            digest_every_epochs=self.digest_every_epochs,
            slots=self.slots,
            built_in=[ly.BuiltIn(slot=slot, spec=spec) for slot, spec in self.built_in],
        )


class Requested(Protocol):
    """What can be trained: a request of its own, or a fork of a recorded run."""

    def message(self, run_id: RunId, settings: Settings, /) -> ly.TrainingRunRequested:
        """Return the event that asks for it."""


@contextmanager
def members_for_a_while(settings: Settings, *, wanted: tuple[str, ...] = tuple(SUBSYSTEMS)) -> Iterator[Supervisor]:
    """Have one member of each wanted subsystem: start what is missing, now or later; drain what was started."""
    home = Home.open(settings)
    with Supervisor(home, missing_members(home, wanted), wanted=wanted) as supervisor:
        yield supervisor


def result_document(request: ly.TrainingRunRequested, end: ly.TrainingRunFinished) -> dict[str, Any]:
    """Return the JSON shape of `esper train` for a finished run."""
    return {
        "run_id": request.run_id,
        "task": request.task,
        "host": request.host,
        "policy": request.policy,
        "seed": request.seed,
        "epochs": end.epochs,
        "status": "finished",
        "accuracy": end.accuracy,
        "loss": end.loss,
        "parameters": end.parameters,
        "multiply_adds": end.multiply_adds,
        "multiply_adds_per_sample": end.multiply_adds_per_sample,
        "digest": end.digest,
        "seeds": [
            {
                "seed_id": seed.seed_id,
                "slot": seed.slot,
                "blueprint_id": seed.blueprint_id,
                "stage": ly.SeedLifecycleStage.Name(seed.stage).removeprefix("SEED_STAGE_"),
            }
            for seed in end.seeds
        ],
    }


class RunFailed(OperationFailed):
    """The log says that the run failed; `reason` is the event's word."""

    def __init__(self, run_id: str, reason: str, detail: str) -> None:
        super().__init__(
            f"run {run_id} failed", cause=f"{reason}: {detail}" if detail else reason, next_step=_next_step(run_id)
        )
        self.run_id = run_id
        self.reason = reason


def _next_step(run_id: str) -> str:
    return f"`esper runs show {run_id}` lists what it did"


class _Wait:
    """Reads one run's partition until its end, and tells of progress on the way."""

    def __init__(
        self, home: Home, reader: Reader, run_id: RunId, supervisor: Supervisor, progress: Progress | None
    ) -> None:
        self._home = home
        self._reader = reader
        self._run_id = run_id
        self._supervisor = supervisor
        self._progress = progress
        self.claim: ly.TrainingRunClaimed | None = None
        self.epochs = 0

    def _end_of(self, event: Event) -> ly.TrainingRunFinished | None:
        message = event.message
        if isinstance(message, ly.SystemStatePacket) and self._progress is not None:
            self._progress(message)
        if isinstance(message, ly.TrainingRunClaimed):
            self.claim = message
        if isinstance(message, ly.CommandOutcome):
            self.epochs = max(self.epochs, message.epoch)
        if isinstance(message, ly.TrainingRunFailed):
            raise RunFailed(message.run_id, message.reason, message.detail)
        return message if isinstance(message, ly.TrainingRunFinished) else None

    def _may_go_on(self) -> bool:
        """Return whether somebody may take the run or go on with it; of another home's workers nothing is known."""
        if self.claim is not None and self.claim.home_id != self._home.home_id:
            return True
        return any(member.name.startswith("tolaria-") for member in live_members(self._home))

    def until_end(self) -> ly.TrainingRunFinished:
        """Return the run's last event; raise RunFailed, or what ended the members."""
        deadline = Deadline(CLAIM_SECONDS, clock=SYSTEM_CLOCK)
        while True:  # ends with the run, with a member that cannot run, or when nobody is left to train it
            for event in self._reader.read(_POLL_SECONDS):
                if event.meta.subject != self._run_id:
                    continue
                end = self._end_of(event)
                if end is not None:
                    return end
            self._supervisor.check()
            if self._may_go_on():
                # At another run, perhaps a long one, or at ours: a run waits in the log for its turn.
                deadline = Deadline(CLAIM_SECONDS, clock=SYSTEM_CLOCK)
            elif deadline.expired:
                raise NotReadyError(
                    f"nobody {'goes on with' if self.claim else 'took'} run {self._run_id}",
                    cause=f"no worker lived for {CLAIM_SECONDS:.0f} s",
                    next_step="`esper status` shows the members; `esper serve` starts them",
                )


def train(
    fabric: Fabric,
    request: Requested,
    supervisor: Supervisor,
    *,
    progress: Progress | None = None,
    on_request: Callable[[RunId], None] | None = None,
) -> dict[str, Any]:
    """Ask for a run, wait for its end, and return the document of `esper train`.

    `on_request` is told the run's id once the log has its request. Interrupted, the run ends as cancelled.

    Raises:
        RunFailed: the run ended in TrainingRunFailed.
        NotReadyError: nobody took it, or a member cannot run.
        BrokerUnavailable: the broker was away for longer than `broker_retry_seconds`.
    """
    await_answering(fabric, supervisor)
    run_id = new_run_id()
    message = request.message(run_id, fabric.settings)
    partition = fabric.partition_of("runs", run_id)
    reader = fabric.reader(
        {("runs", partition): "end", ("system-state", partition): "end"}, gather_seconds=_GATHER_SECONDS
    )
    publisher = fabric.publisher("cli")
    wait = _Wait(fabric.home, reader, run_id, supervisor, progress)
    try:
        publisher.publish(message, key=run_id)
        if on_request is not None:
            on_request(run_id)
        return result_document(message, wait.until_end())
    except KeyboardInterrupt:
        _try_to_end(fabric, run_id, "cancelled", epochs=wait.epochs)
        raise
    except NotReadyError:
        _try_to_end(fabric, run_id, "worker_lost" if wait.claim else "not_claimed", epochs=wait.epochs)
        raise
    finally:
        reader.close()
        publisher.close()


def _try_to_end(fabric: Fabric, run_id: RunId, reason: str, *, epochs: int) -> None:
    """End the run; where the broker is what is away it stays claimed, and its worker's next life goes on with it."""
    with suppress(NotReadyError):
        end_run(fabric, run_id, reason, epochs=epochs)
