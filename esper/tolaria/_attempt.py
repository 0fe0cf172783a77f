"""One attempt at one claimed run, from its first event to its last."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Final

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import EsperError, IntegrityError, UsageError
from esper.core.ids import derive_id
from esper.core.numerics import (
    TRAINING_DISTRIBUTIONS,
    code_version,
    data_digest,
    dependencies_digest,
    numerics_fingerprint,
)
from esper.core.ports import KernelUnavailable
from esper.leyline import messages as ly
from esper.oona import Fabric, Publisher, Reader
from esper.tolaria._claims import RUNS_TOPIC, Claimed
from esper.tolaria._inbox import CommandInbox, JudgeFactory
from esper.tolaria._journal import RunFenced, RunInterrupted
from esper.tolaria._kafka_journal import KafkaJournal
from esper.tolaria._past import COMMANDS_TOPIC, Past, first_command, read_past
from esper.tolaria._recording import ResumingJournal
from esper.tolaria._setup import ControllerFactory, TrainingSetup, prepared
from esper.tolaria._trainer import TolariaTrainer, TrainingDiverged, TrainingResult

_log = logging.getLogger("esper.tolaria.attempt")

#: A detail is for people; a library's error text may be pages.
_DETAIL_CHARACTERS_MAX: Final = 2000


@dataclass(frozen=True)
class Wiring:
    """What every attempt of a worker shares."""

    fabric: Fabric
    worker: str
    publisher: Publisher
    seed_publisher: Publisher
    controller_factory: ControllerFactory
    judge_factory: JudgeFactory
    clock: Clock = SYSTEM_CLOCK


def execute(wiring: Wiring, claimed: Claimed, stop: threading.Event) -> None:
    """Train a claimed run and append its end; or leave it claimed when `stop` is set or another attempt fences it.

    Whatever the request or the user's own code gets wrong ends in TrainingRunFailed, never in a crash.

    Raises:
        EsperError: a retriable one: the broker is away; the run stays claimed.
    """
    attempt = _Attempt(wiring, claimed, stop)
    try:
        attempt.run()
    except (RunInterrupted, RunFenced) as error:
        _log.info("%s", error)
    except EsperError as error:
        if error.retriable:
            raise
        _log.warning("run %s failed: %s", claimed.run_id, error)
        attempt.fail(_reason_of(error), str(error))
    except Exception as error:  # noqa: BLE001 - the user's own host and loss run in there
        _log.exception("run %s failed", claimed.run_id)
        attempt.fail("crashed", f"{type(error).__name__}: {error} (the worker's log holds the traceback)")


def publish_failure(publisher: Publisher, *, run_id: str, attempt: int, reason: str, detail: str, epochs: int) -> None:
    """Append the end of a run that did not come to its end."""
    failed = ly.TrainingRunFailed(
        run_id=run_id,
        attempt=attempt,
        reason=reason,
        detail=detail[:_DETAIL_CHARACTERS_MAX],
        epochs=epochs,
    )
    publisher.publish(failed, key=run_id, event_id=derive_id(run_id, "failed", attempt))


def _reason_of(error: EsperError) -> str:
    if isinstance(error, UsageError):
        return "task_unusable"
    if isinstance(error, TrainingDiverged):
        return "diverged"
    if isinstance(error, IntegrityError):
        return "digest_mismatch"
    if isinstance(error, KernelUnavailable):
        return "kernel_unavailable"
    return "failed"


class _Attempt:
    def __init__(self, wiring: Wiring, claimed: Claimed, stop: threading.Event) -> None:
        self._wiring = wiring
        self._claimed = claimed
        self._stop = stop
        self._trainer: TolariaTrainer | None = None

    def run(self) -> None:
        """Train to the end and append TrainingRunFinished."""
        claimed, settings = self._claimed, self._wiring.fabric.settings
        with prepared(
            claimed.request,
            attempt=claimed.attempt,
            decision_wait_seconds=settings.decision_wait_seconds,
            kernel_wait_seconds=settings.kernel_wait_seconds,
        ) as setup:
            past = read_past(self._wiring.fabric, claimed)
            with self._command_reader() as reader:
                inbox = CommandInbox(
                    run_id=claimed.run_id,
                    attempt=claimed.attempt,
                    source=reader,
                    judge=self._wiring.judge_factory(claimed.run_id),
                    wait_seconds=setup.config.decision_wait_seconds,
                    stop=self._stop,
                    clock=self._wiring.clock,
                )
                self._train(setup, past, inbox)

    def fail(self, reason: str, detail: str) -> None:
        """Append TrainingRunFailed."""
        publish_failure(
            self._wiring.publisher,
            run_id=self._claimed.run_id,
            attempt=self._claimed.attempt,
            reason=reason,
            detail=detail,
            epochs=self._trainer.epochs_finished if self._trainer else 0,
        )

    def _train(self, setup: TrainingSetup, past: Past, inbox: CommandInbox) -> None:
        """Repeat in silence what earlier attempts recorded, say that this one starts, and go on live."""
        inbox.recover(past.recording.packets.values(), past.recording.outcomes.values())
        live = KafkaJournal(
            run_id=self._claimed.run_id,
            attempt=self._claimed.attempt,
            publisher=self._wiring.publisher,
            seed_publisher=self._wiring.seed_publisher,
            inbox=inbox,
            recorded_seed_events=past.seed_events,
        )
        trainer = TolariaTrainer(
            setup,
            self._wiring.controller_factory(setup),
            ResumingJournal(past.recording, live),
            stop=self._stop,
            clock=self._wiring.clock,
        )
        self._trainer = trainer
        initial_digest = trainer.digest()
        for epoch in range(1, past.recording.epochs + 1):
            trainer.run_epoch(epoch)
        inbox.check()
        self._publish_started(setup, trainer, initial_digest)
        self._publish_finished(trainer.run())

    def _publish_started(self, setup: TrainingSetup, trainer: TolariaTrainer, initial_digest: str) -> None:
        request = self._claimed.request
        started = ly.TrainingRunStarted(
            run_id=request.run_id,
            attempt=self._claimed.attempt,
            worker=self._wiring.worker,
            numerics=numerics_fingerprint(setup.config.device),
            code_version=code_version(),
            dependencies_digest=dependencies_digest((*TRAINING_DISTRIBUTIONS, *setup.task.distributions)),
            data_digest=data_digest(setup.task.arrays()),
            parameters=trainer.host_parameters,
            initial_digest=initial_digest,
            resumed_epochs=trainer.epochs_finished,
        )
        self._wiring.publisher.publish(
            started,
            key=request.run_id,
            causation_id=request.meta.event_id,
            event_id=derive_id(request.run_id, "started", self._claimed.attempt),
        )

    def _publish_finished(self, result: TrainingResult) -> None:
        run_id = self._claimed.run_id
        finished = ly.TrainingRunFinished(
            run_id=run_id,
            attempt=self._claimed.attempt,
            epochs=result.epochs,
            accuracy=result.test.accuracy,
            loss=result.test.loss,
            parameters=result.parameters,
            multiply_adds=result.multiply_adds,
            multiply_adds_per_sample=result.multiply_adds_per_sample,
            digest=result.digest,
            seeds=result.seeds,
            validation_accuracy=result.validation.accuracy,
            validation_loss=result.validation.loss,
        )
        self._wiring.publisher.publish(
            finished, key=run_id, event_id=derive_id(run_id, "finished", self._claimed.attempt)
        )

    def _command_reader(self) -> Reader:
        fabric, claimed = self._wiring.fabric, self._claimed
        commands = (COMMANDS_TOPIC, fabric.partition_of(COMMANDS_TOPIC, claimed.run_id))
        # Commands have no other consumer that would set aside what is forged among them.
        return fabric.reader(
            {commands: first_command(fabric, claimed), (RUNS_TOPIC, claimed.partition): claimed.offset + 1},
            rejects=self._wiring.publisher,
        )
