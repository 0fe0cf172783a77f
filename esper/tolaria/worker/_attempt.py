"""One attempt at one claimed run, from its first event to its last."""

from __future__ import annotations

import contextlib
import logging
import threading
from dataclasses import dataclass

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import EsperError
from esper.core.ids import derive_id
from esper.core.kernel import DirectoryBlobStore
from esper.leyline import messages as ly
from esper.oona import Fabric, Publisher, Reader
from esper.tolaria._environment import Environment
from esper.tolaria._setup import ControllerFactory, TrainingSetup, prepared
from esper.tolaria.loop._packet import takeover_telemetry
from esper.tolaria.loop._trainer import TolariaTrainer, TrainingResult
from esper.tolaria.record._journal import RunFenced, RunInterrupted
from esper.tolaria.record._keepers import (
    CheckpointUnusable,
    LoggedCheckpoints,
    unusable_unless_whole,
    verified_checkpoint,
)
from esper.tolaria.record._points import ReturnPoints
from esper.tolaria.record._recording import ForkingJournal, Recording, ResumingJournal
from esper.tolaria.worker._claims import RUNS_TOPIC, Claimed
from esper.tolaria.worker._emergency import EmergencyDesk
from esper.tolaria.worker._failures import publish_failure, reason_of
from esper.tolaria.worker._inbox import CommandInbox, JudgeFactory
from esper.tolaria.worker._kafka_journal import KafkaJournal
from esper.tolaria.worker._past import COMMANDS_TOPIC, Past, first_command, read_origin, read_past, starts_of
from esper.tolaria.worker._run_events import finished_event, started_event

_log = logging.getLogger("esper.tolaria.attempt")


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
        attempt.fail(reason_of(error), str(error))
    except Exception as error:  # noqa: BLE001 - the user's own host and loss run in there
        _log.exception("run %s failed", claimed.run_id)
        attempt.fail("crashed", f"{type(error).__name__}: {error} (the worker's log holds the traceback)")


class _Attempt:
    def __init__(self, wiring: Wiring, claimed: Claimed, stop: threading.Event) -> None:
        self._wiring = wiring
        self._claimed = claimed
        self._stop = stop
        self._trainer: TolariaTrainer | None = None
        self._store = DirectoryBlobStore(wiring.fabric.home.blobs)
        self._unused_checkpoints = 0
        self._origin = Recording()

    def run(self) -> None:
        """Train to the end and append TrainingRunFinished.

        A successor begins at the latest checkpoint that is what the log says of it; where there is none, it computes
        the run again from its request.
        """
        past = read_past(self._wiring.fabric, self._claimed)
        self._origin = read_origin(self._wiring.fabric, self._claimed.request)
        for start in starts_of(past):
            if self._trained_from(start, past):
                return

    def _trained_from(self, start: ly.CheckpointSaved | None, past: Past) -> bool:
        """Train the run from `start` (None: from its beginning); return False where that cannot be restored."""
        claimed, settings = self._claimed, self._wiring.fabric.settings
        with (
            prepared(
                claimed.request,
                attempt=claimed.attempt,
                decision_wait_seconds=settings.decision_wait_seconds,
                kernel_wait_seconds=settings.kernel_wait_seconds,
            ) as setup,
            self._command_reader() as reader,
        ):
            inbox = CommandInbox(
                run_id=claimed.run_id,
                attempt=claimed.attempt,
                source=reader,
                judge=self._wiring.judge_factory(claimed.run_id),
                wait_seconds=setup.config.decision_wait_seconds,
                stop=self._stop,
                clock=self._wiring.clock,
            )
            return self._train(setup, start, past, inbox)

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

    def _train(self, setup: TrainingSetup, start: ly.CheckpointSaved | None, past: Past, inbox: CommandInbox) -> bool:
        """Repeat in silence what earlier attempts recorded, say that this one starts, and go on live."""
        inbox.recover(past.recording.packets.values(), past.recording.outcomes.values())
        live = KafkaJournal(
            run_id=self._claimed.run_id,
            attempt=self._claimed.attempt,
            publisher=self._wiring.publisher,
            seed_publisher=self._wiring.seed_publisher,
            inbox=inbox,
            recorded_seed_events=past.seed_events,
            emergencies=EmergencyDesk(self._claimed.run_id, self._wiring.fabric.emergencies.inbox),
        )
        trainer = TolariaTrainer(
            setup,
            self._wiring.controller_factory(setup),
            ResumingJournal(past.recording, ForkingJournal(self._origin, live)),
            stop=self._stop,
            clock=self._wiring.clock,
            checkpoints=self._checkpoints(past),
            points=self._points(past),
        )
        self._trainer = trainer
        with contextlib.closing(trainer):
            return self._trained(trainer, setup, start, past, inbox, live)

    def _trained(
        self,
        trainer: TolariaTrainer,
        setup: TrainingSetup,
        start: ly.CheckpointSaved | None,
        past: Past,
        inbox: CommandInbox,
        live: KafkaJournal,
    ) -> bool:
        initial_digest = trainer.digest()
        if start is not None and not self._restored(trainer, start, past):
            return False
        if not self._repeated(trainer, past):
            return False
        inbox.check()
        for outcome in past.unsaid_returns():
            live.append_return(outcome)
        self._publish_started(setup, trainer, initial_digest)
        if self._claimed.attempt > 1:
            self._tell_of_takeover(live, start, epochs=past.recording.epochs)
        self._publish_finished(trainer.run())
        return True

    def _points(self, past: Past) -> ReturnPoints:
        """Return where this attempt can go back to: what was kept, and what the record of run and origin goes to."""
        return ReturnPoints(
            store=self._store,
            kept=past.checkpoints,
            recorded={**self._origin.returns(), **past.recording.returns()},
            repeated_epochs=max(self._origin.epochs, past.recording.epochs),
        )

    def _checkpoints(self, past: Past) -> LoggedCheckpoints:
        fabric = self._wiring.fabric
        return LoggedCheckpoints(
            run_id=self._claimed.run_id,
            attempt=self._claimed.attempt,
            every_epochs=fabric.settings.checkpoint_every_epochs,
            store=self._store,
            publisher=self._wiring.publisher,
            recorded=past.checkpoints,
            repeated_epochs=past.recording.epochs,
        )

    def _restored(self, trainer: TolariaTrainer, start: ly.CheckpointSaved, past: Past) -> bool:
        """Put the trainer where a checkpoint was taken; say so where that cannot be done."""
        packet = past.recording.packets[start.epoch]
        try:
            with unusable_unless_whole():
                trainer.resume(verified_checkpoint(self._store, start, packet), packet, past=past.recording)
        except CheckpointUnusable as error:
            _log.warning("run %s: the checkpoint of epoch %d is not used: %s", start.run_id, start.epoch, error)
            self._unused_checkpoints += 1
            return False
        return True

    def _repeated(self, trainer: TolariaTrainer, past: Past) -> bool:
        """Live again what is recorded; return False where it goes back to a checkpoint that is no longer at hand."""
        try:
            for epoch in range(trainer.epochs_finished + 1, past.recording.epochs + 1):
                trainer.run_epoch(epoch)
        except CheckpointUnusable as error:
            _log.warning("run %s: begun again from further back: %s", self._claimed.run_id, error)
            self._unused_checkpoints += 1
            return False
        return True

    def _tell_of_takeover(self, live: KafkaJournal, start: ly.CheckpointSaved | None, *, epochs: int) -> None:
        restored = 0 if start is None else start.epoch
        _log.info(
            "run %s: attempt %d stands at epoch %d: %d of them from a checkpoint, %d computed again",
            self._claimed.run_id,
            self._claimed.attempt,
            epochs,
            restored,
            epochs - restored,
        )
        telemetry = takeover_telemetry(
            self._claimed.run_id,
            self._claimed.attempt,
            restored=restored,
            repeated=epochs - restored,
            unused_checkpoints=self._unused_checkpoints,
            now_ns=self._wiring.clock.now_ns(),
        )
        live.submit_telemetry(epochs, telemetry, rare=True)

    def _publish_started(self, setup: TrainingSetup, trainer: TolariaTrainer, initial_digest: str) -> None:
        request = self._claimed.request
        started = started_event(
            request,
            Environment.here(setup),
            attempt=self._claimed.attempt,
            worker=self._wiring.worker,
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
        finished = finished_event(run_id, result, attempt=self._claimed.attempt)
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
