"""The epoch loop. What it computes is a function of the request and the outcomes, and of nothing else."""

from __future__ import annotations

import logging
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.core.checkpoint import refused
from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.digest import state_digest
from esper.core.errors import UsageError
from esper.core.ids import Digest
from esper.core.ports import GraftController
from esper.core.rng import derive_seed
from esper.leyline import messages as ly
from esper.tolaria._config import learning_rate_at
from esper.tolaria._setup import TrainingSetup
from esper.tolaria.loop._edge import EpochEdge
from esper.tolaria.loop._optimizer_orders import rate_factor
from esper.tolaria.loop._packet import (
    EpochStats,
    add_figures,
    add_notices,
    epoch_telemetry,
    state_packet,
    training_multiply_adds,
)
from esper.tolaria.loop._return_rules import ReturnLimits
from esper.tolaria.loop._run_orders import RunOrders
from esper.tolaria.loop._steps import Tally, clip_owner, parts
from esper.tolaria.record._checkpoint import Checkpoint, CheckpointKeeper, Position, RunState, capture_run, restore_run
from esper.tolaria.record._journal import RunInterrupted, TrainingJournal, latency_ms
from esper.tolaria.record._points import ReturnPoints
from esper.tolaria.record._recording import Recording, first_difference
from esper.tolaria.tasks._evaluation import Evaluation, batches, evaluate
from esper.tolaria.tasks._tasks import Split

_log = logging.getLogger("esper.tolaria.trainer")


@dataclass(frozen=True)
class TrainingResult:
    """A finished run: the held-out test part looked at once, and the network that training ended with."""

    epochs: int
    test: Evaluation
    validation: Evaluation
    parameters: int
    multiply_adds: int
    multiply_adds_per_sample: int
    digest: Digest
    seeds: tuple[ly.SeedSummary, ...]


class TolariaTrainer:
    """Trains one run, epoch by epoch, and asks for a command at each epoch's edge.

    Use it inside the `prepared` block that made its set-up. One call of `run` for each trainer.
    """

    def __init__(
        self,
        setup: TrainingSetup,
        controller: GraftController,
        journal: TrainingJournal,
        *,
        stop: threading.Event | None = None,
        clock: Clock = SYSTEM_CLOCK,
        checkpoints: CheckpointKeeper | None = None,
        points: ReturnPoints | None = None,
    ) -> None:
        self._setup = setup
        self._checkpoints = checkpoints
        self._controller = controller
        self._journal = journal
        self._stop = stop or threading.Event()
        self._clock = clock
        self._points = points or ReturnPoints()
        self._order = torch.Generator().manual_seed(derive_seed(setup.config.seed, "order"))
        self._state = RunState.of(setup, controller, self._order)
        run_id, attempt = setup.request.run_id, setup.attempt
        self._orders = RunOrders(run_id, attempt, self._state, self._points, ReturnLimits.of(setup.config))
        self._edge = EpochEdge(
            run_id=run_id,
            attempt=attempt,
            controller=controller,
            journal=journal,
            clock=clock,
            orders=self._orders,
        )
        # Taken before anything is grafted: seeds may become submodules of the host later.
        self._host = tuple(setup.model.parameters())
        self._host_parameters = sum(parameter.numel() for parameter in self._host)
        #: Epochs whose outcome is appended.
        self.epochs_finished = 0

    @property
    def host_parameters(self) -> int:
        """Parameters of the host alone."""
        return self._host_parameters

    def digest(self) -> Digest:
        """Return the state digest of the host and of every seed as they are now."""
        return state_digest(self._state.weights())

    def run(self) -> TrainingResult:
        """Train every planned epoch that is left and return what came of it.

        Raises:
            TrainingDiverged: the held-out loss is not finite any more, and there is nothing left to return to.
            RunInterrupted: the stop event was set; the run may be taken up again.
            RunFenced, BrokerUnavailable, IntegrityError: from the journal.
        """
        for epoch in range(self.epochs_finished + 1, self._setup.config.epochs + 1):
            self.run_epoch(epoch)
        return self.result()

    def run_epoch(self, epoch: int) -> ly.CommandOutcome:
        """Train one epoch, go through its edge, and return its outcome; epochs must come in order, from 1."""
        assert epoch == self.epochs_finished + 1, "epochs come in order, each once"
        stats = self._train(epoch)
        self._edge.settle_faults(epoch)
        packet = self._packet(stats)
        faulty = self._orders.see(packet)
        checkpoint = None if faulty else self._checkpoint(epoch, packet.weights_digest)
        began = self._clock.monotonic()
        outcome = self._edge.close(packet)
        hook_latency_ms = latency_ms(began, self._clock)
        self.epochs_finished = epoch
        telemetry = epoch_telemetry(
            self._setup, stats, packet, hook_latency_ms=hook_latency_ms, now_ns=self._clock.now_ns()
        )
        add_figures(telemetry, self._controller.figures(), epoch=epoch, run_id=packet.training_run_id)
        add_notices(telemetry, self._controller.notices())
        self._journal.submit_telemetry(epoch, telemetry)
        if checkpoint is not None:
            self._points.keep(checkpoint)
            if self._checkpoints is not None and self._checkpoints.wants(epoch):
                self._checkpoints.keep(checkpoint)
        return outcome

    def close(self) -> None:
        """Let the controller end what works beside the run; the network stays as it is."""
        self._controller.close()

    def resume(self, content: bytes, packet: ly.SystemStatePacket, *, past: Recording | None = None) -> None:
        """Stand where the checkpoint `content` was taken, hold that against `packet`, and go through its edge again.

        `past` is what led there: faults are measured against it.

        For a trainer that has not trained yet. `packet` is the recorded one of the checkpoint's epoch; the journal
        must have that epoch's outcome. After an error this trainer is of no further use.

        Raises:
            IntegrityError: the checkpoint is none of this run, or what it gives is not what the packet says.
            KernelUnavailable: no store holds a kernel that was grafted.
        """
        assert self.epochs_finished == 0, "only a fresh trainer resumes"
        position = restore_run(content, self._state)
        self._edge.seed_events = position.seed_events
        self._check_restored(packet, epoch=position.epoch)
        self._orders.faults = position.faults
        if past is not None:
            earlier = past.until(position.epoch - 1)
            self._orders.recall(earlier.packets.values(), earlier.outcomes.values())
        self._orders.see(packet)
        self._edge.close(packet)
        self._points.keep(Checkpoint(position.epoch, content, packet.weights_digest))
        self.epochs_finished = position.epoch

    def _check_restored(self, packet: ly.SystemStatePacket, *, epoch: int) -> None:
        """Hold the restored network against the record: its digest, its seeds, and what it makes of the probe."""
        setup, controller = self._setup, self._controller
        measured = evaluate(setup.model, setup.probe, setup.loss)
        restored = ly.SystemStatePacket()
        restored.CopyFrom(packet)
        restored.current_epoch = epoch
        if packet.weights_digest:
            restored.weights_digest = self.digest()
        restored.validation_loss, restored.validation_accuracy = measured.loss, measured.accuracy
        restored.parameters = self._host_parameters + controller.parameters()
        restored.multiply_adds = training_multiply_adds(setup, controller, epochs=epoch)
        restored.multiply_adds_per_sample = setup.multiply_adds_per_sample + controller.multiply_adds_per_sample()
        del restored.seed_states[:]
        restored.seed_states.extend(controller.seed_states())
        difference = first_difference(packet, restored)
        if difference is not None or epoch != packet.current_epoch:
            raise refused(f"it is not epoch {packet.current_epoch} as the log has it: {difference or epoch}")

    def _checkpoint(self, epoch: int, weights_digest: str) -> Checkpoint | None:
        """Return the state as the packet of `epoch` has it, if it is to be kept."""
        kept = self._checkpoints is not None and self._checkpoints.wants(epoch)
        if not (kept or self._points.wants(epoch)):
            return None
        try:
            content = capture_run(self._state, Position(epoch, self._edge.seed_events, self._orders.faults))
        except UsageError as error:  # A network that cannot be kept can be trained all the same.
            _log.warning("run %s: no checkpoint of epoch %d: %s", self._setup.request.run_id, epoch, error)
            return None
        return Checkpoint(epoch, content, weights_digest or self.digest())

    def _packet(self, stats: EpochStats) -> ly.SystemStatePacket:
        setup = self._setup
        validation = evaluate(setup.model, setup.probe, setup.loss)
        hashed = setup.config.is_hashed(stats.epoch)
        packet = state_packet(
            setup,
            self._controller,
            stats,
            validation,
            parameters=self._host_parameters,
            weights_digest=self.digest() if hashed else "",
        )
        held = self._controller.growth()
        if held is not None:
            packet.growth.CopyFrom(held)
        return packet

    def _train(self, epoch: int) -> EpochStats:
        """Train on every sample once, in an order of the epoch's own."""
        setup, config = self._setup, self._setup.config
        # What an epoch draws from torch's global stream must not depend on what its edge happened to draw.
        torch.manual_seed(derive_seed(config.seed_at(epoch), "epoch", epoch))
        if config.replicate and epoch == config.forked_epochs + 1:
            self._order.manual_seed(derive_seed(config.seed_at(epoch), "order"))
        setup.model.train()
        began = self._clock.monotonic()
        tally = Tally()
        first_step = (epoch - 1) * setup.steps_per_epoch
        rate = top = config.learning_rate_in(epoch)
        for step, (inputs, targets) in enumerate(batches(self._shuffled(), config.batch_size), first_step):
            if self._stop.is_set():
                raise RunInterrupted(f"run {setup.request.run_id} was interrupted in epoch {epoch}")
            rate = learning_rate_at(step, steps=config.epochs * setup.steps_per_epoch, top=top)
            rate *= rate_factor(setup.optimizer)
            self._step(inputs, targets, rate, tally)
        return tally.stats(
            epoch=epoch,
            steps=setup.steps_per_epoch,
            gradient_norm=self._gradient_norm(),
            learning_rate=rate,
            seconds=self._clock.monotonic() - began,
        )

    def _step(self, inputs: Tensor, targets: Tensor, rate: float, tally: Tally) -> None:
        """Take one optimiser step on a batch, in `gradient_accumulation` equal parts, and let seeds take theirs."""
        setup = self._setup
        for group in setup.optimizer.param_groups:
            group["lr"] = rate
        self._controller.before_step()
        setup.optimizer.zero_grad()
        for part_inputs, part_targets in parts(inputs, targets, setup.config.gradient_accumulation):
            with self._precision():
                outputs = setup.model(part_inputs)
                loss = setup.loss(outputs, part_targets)
            share = loss if part_targets is targets else loss * (len(part_targets) / len(targets))
            share.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward unannotated
            tally.add(loss.detach(), outputs.detach(), part_targets)
        if setup.config.clip_norm is not None:
            clip_owner(setup.optimizer, setup.config.clip_norm)
        setup.optimizer.step()
        self._controller.after_step(inputs, targets)

    def _precision(self) -> AbstractContextManager[object]:
        """Return what a training forward runs under."""
        if not self._setup.config.bfloat16:
            return nullcontext()
        return torch.autocast(self._setup.config.device.type, dtype=torch.bfloat16)

    def _shuffled(self) -> Split:
        """Return the train part in the next order; one gather an epoch is cheaper than one a batch."""
        train = self._setup.train
        order = torch.randperm(len(train), generator=self._order).to(train.targets.device)
        return Split(train.inputs[order], train.targets[order])

    def _gradient_norm(self) -> float:
        """Return the L2 norm of the host's own gradient as the last step left it, clipped where that is asked for."""
        gradients = [parameter.grad for parameter in self._host if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def result(self) -> TrainingResult:
        """Return what training has come to, with the one look at the test part."""
        setup, controller = self._setup, self._controller
        return TrainingResult(
            epochs=self.epochs_finished,
            test=evaluate(setup.model, setup.task.test.to(setup.config.device), setup.loss),
            validation=evaluate(setup.model, setup.probe, setup.loss),
            parameters=self._host_parameters + controller.parameters(),
            multiply_adds=training_multiply_adds(setup, controller, epochs=self.epochs_finished),
            multiply_adds_per_sample=setup.multiply_adds_per_sample + controller.multiply_adds_per_sample(),
            digest=self.digest(),
            seeds=tuple(controller.summaries()),
        )
