"""A stack from its requests to its members' ends, live: claimed as one, trained as one, ended one by one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import EsperError, IntegrityError
from esper.core.ids import derive_id
from esper.core.stacking import StackGrafts, recorder_for
from esper.leyline import messages as ly
from esper.oona import Fabric, Publisher, Reader
from esper.tolaria.loop._trainer import TrainingResult
from esper.tolaria.record._journal import RunInterrupted
from esper.tolaria.stack._kafka_journal import KafkaStackJournal, StackDecisions
from esper.tolaria.stack._setup import StackSetup, check_alike, prepared_stack
from esper.tolaria.stack._trainer import ATTEMPT, StackTrainer
from esper.tolaria.worker._claims import RUNS_TOPIC, RunClaim
from esper.tolaria.worker._failures import publish_failure, reason_of
from esper.tolaria.worker._run_events import finished_event, started_event

_log = logging.getLogger("esper.tolaria.stack")

_READ_SECONDS: Final = 600.0
CANCELLED: Final = "cancelled"

#: Makes what grafts on a stack; weatherlight passes one that builds Kasmina.
StackGraftsFactory = Callable[[StackSetup], StackGrafts]
OnEpoch = Callable[[int], None]


@dataclass(frozen=True)
class StackWiring:
    """What every stack of one process shares; `worker` is the name of a living member of the home."""

    fabric: Fabric
    worker: str
    publisher: Publisher
    seed_publisher: Publisher
    grafts_factory: StackGraftsFactory
    clock: Clock = SYSTEM_CLOCK


def train_stack(
    wiring: StackWiring,
    requests: Sequence[ly.TrainingRunRequested],
    decisions: StackDecisions,
    *,
    ask: Callable[[], None],
    stop: threading.Event,
    on_epoch: OnEpoch | None = None,
) -> list[TrainingResult | None]:
    """Claim the runs of a stack, train it, and append each run's end; return what came of each, None if it failed.

    `ask` appends the requests and waits until they are acknowledged. Whatever ends the stack early ends its runs as
    failed, with the reason; a process that dies is found by any worker of the home, which does so with "stack_lost".

    Raises:
        UsageError: the requests cannot be trained as one stack; nothing was asked for.
        RunInterrupted: `stop` was set; the runs are ended as cancelled.
        EsperError: whatever else ended it.
    """
    check_alike(requests)
    attempt = _StackAttempt(wiring, requests, decisions)
    with attempt.claimed(ask):
        try:
            return attempt.train(stop, on_epoch)
        except (RunInterrupted, KeyboardInterrupt):
            attempt.fail(CANCELLED, "its collector was stopped")
            raise
        except EsperError as error:
            if not error.retriable:
                attempt.fail(reason_of(error), str(error))
            raise
        except Exception as error:
            attempt.fail("crashed", f"{type(error).__name__}: {error}")
            raise


class _StackAttempt:
    def __init__(
        self, wiring: StackWiring, requests: Sequence[ly.TrainingRunRequested], decisions: StackDecisions
    ) -> None:
        self._wiring = wiring
        self._requests = list(requests)
        self._decisions = decisions
        self._epochs = 0
        #: Runs that have no end yet.
        self._open = {request.run_id for request in requests}

    @contextmanager
    def claimed(self, ask: Callable[[], None]) -> Iterator[None]:
        """Have the runs asked for, claim all of them, and make sure that all are ours.

        Raises:
            IntegrityError: somebody else claimed one, which no worker does.
        """
        fabric = self._wiring.fabric
        places = {(RUNS_TOPIC, fabric.partition_of(RUNS_TOPIC, request.run_id)) for request in self._requests}
        with fabric.reader(dict.fromkeys(sorted(places), "end")) as reader:
            reader.positions()
            ask()
            claims = self._append_claims()
            self._check_won(reader, claims)
        yield

    def _append_claims(self) -> dict[str, str]:
        wiring, publisher = self._wiring, self._wiring.publisher
        claims: dict[str, str] = {}
        for request in self._requests:
            claim = ly.TrainingRunClaimed(
                run_id=request.run_id,
                attempt=ATTEMPT,
                worker=wiring.worker,
                producer_id=publisher.producer_id,
                request_event_id=request.meta.event_id,
                home_id=wiring.fabric.home.home_id,
            )
            claims[request.run_id] = derive_id(request.run_id, "claim", ATTEMPT, publisher.producer_id)
            publisher.submit(
                claim, key=request.run_id, causation_id=request.meta.event_id, event_id=claims[request.run_id]
            )
        publisher.flush()
        return claims

    def _check_won(self, reader: Reader, claims: dict[str, str]) -> None:
        runs = {run_id: RunClaim(run_id) for run_id in claims}
        for event in reader.read_to_end(_READ_SECONDS):
            if event.meta.subject in runs:
                runs[event.meta.subject] = runs[event.meta.subject].fold(event)
        lost = [run_id for run_id, run in runs.items() if run.claim_event_id != claims[run_id] or run.ended]
        if lost:
            self.fail("failed", f"run {lost[0]} of its stack was claimed by somebody else")
            raise IntegrityError(
                f"the stack {self._requests[0].stack.stack_id} cannot be trained",
                cause=f"run {lost[0]} is not ours",
                next_step=f"`esper events find {lost[0]}` shows who took it",
            )

    def train(self, stop: threading.Event, on_epoch: OnEpoch | None) -> list[TrainingResult | None]:
        """Train all members to their ends."""
        wiring = self._wiring
        kernel_wait = wiring.fabric.settings.kernel_wait_seconds
        with prepared_stack(self._requests, kernel_wait_seconds=kernel_wait) as setup:
            journal = KafkaStackJournal(
                [request.run_id for request in self._requests],
                publisher=wiring.publisher,
                seed_publisher=wiring.seed_publisher,
                decisions=self._decisions,
            )
            trainer = StackTrainer(
                setup,
                wiring.grafts_factory(setup),
                journal,
                stop=stop,
                clock=wiring.clock,
                recorder=recorder_for(setup.device) if wiring.fabric.settings.replay_stacks else None,
            )
            self._append_started(setup, trainer)
            for epoch in range(1, setup.first.config.epochs + 1):
                if not any(trainer.live):
                    break
                trainer.run_epoch(epoch)
                self._open = {
                    request.run_id for request, live in zip(self._requests, trainer.live, strict=True) if live
                }
                self._epochs = epoch
                if on_epoch is not None:
                    on_epoch(epoch)
            results = trainer.results()
        self._append_finished(results)
        return results

    def _append_started(self, setup: StackSetup, trainer: StackTrainer) -> None:
        here, publisher = setup.environment(), self._wiring.publisher
        for request, digest in zip(self._requests, trainer.digests(), strict=True):
            started = started_event(
                request,
                here,
                attempt=ATTEMPT,
                worker=self._wiring.worker,
                parameters=trainer.host_parameters,
                initial_digest=digest,
            )
            publisher.submit(
                started,
                key=request.run_id,
                causation_id=request.meta.event_id,
                event_id=derive_id(request.run_id, "started", ATTEMPT),
            )
        publisher.flush()

    def _append_finished(self, results: Sequence[TrainingResult | None]) -> None:
        publisher = self._wiring.publisher
        ends = {}
        for request, result in zip(self._requests, results, strict=True):
            if result is not None:
                run_id = request.run_id
                ends[run_id] = finished_event(run_id, result, attempt=ATTEMPT)
                publisher.submit(ends[run_id], key=run_id, event_id=derive_id(run_id, "finished", ATTEMPT))
        publisher.flush()
        for run_id, end in ends.items():
            self._open.discard(run_id)
            self._decisions.settle(run_id, end)

    def fail(self, reason: str, detail: str) -> None:
        """Append TrainingRunFailed for every run that has no end yet."""
        _log.warning("the stack %s ends: %s: %s", self._requests[0].stack.stack_id, reason, detail)
        for run_id in sorted(self._open):
            failed = publish_failure(
                self._wiring.publisher,
                run_id=run_id,
                attempt=ATTEMPT,
                reason=reason,
                detail=detail,
                epochs=self._epochs,
            )
            self._decisions.settle(run_id, failed)
        self._open = set()
