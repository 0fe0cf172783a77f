"""The epoch loop. What it computes is a function of the request and the outcomes, and of nothing else."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.digest import module_state, state_digest
from esper.core.errors import OperationFailed
from esper.core.ids import Digest
from esper.core.ports import GraftController
from esper.core.rng import derive_seed
from esper.leyline import messages as ly
from esper.tolaria._config import learning_rate_at
from esper.tolaria._edge import EpochEdge
from esper.tolaria._evaluation import Evaluation, batches, evaluate
from esper.tolaria._journal import RunInterrupted, TrainingJournal, latency_ms
from esper.tolaria._packet import EpochStats, epoch_telemetry, state_packet, training_multiply_adds
from esper.tolaria._setup import TrainingSetup
from esper.tolaria._tasks import Split


class TrainingDiverged(OperationFailed):
    """The held-out loss is no longer a finite number; nothing after it would mean anything."""


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
    ) -> None:
        self._setup = setup
        self._controller = controller
        self._journal = journal
        self._stop = stop or threading.Event()
        self._clock = clock
        self._edge = EpochEdge(
            run_id=setup.request.run_id,
            attempt=setup.attempt,
            controller=controller,
            journal=journal,
            clock=clock,
        )
        self._order = torch.Generator().manual_seed(derive_seed(setup.config.seed, "order"))
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
        host, seeds = module_state(self._setup.model), self._controller.state()
        assert host.keys().isdisjoint(seeds), "a seed's tensors carry names of their own"
        return state_digest({**host, **seeds})

    def run(self) -> TrainingResult:
        """Train every planned epoch that is left and return what came of it.

        Raises:
            TrainingDiverged: the held-out loss is not finite any more.
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
        began = self._clock.monotonic()
        outcome = self._edge.close(packet)
        hook_latency_ms = latency_ms(began, self._clock)
        self.epochs_finished = epoch
        telemetry = epoch_telemetry(
            self._setup, stats, packet, hook_latency_ms=hook_latency_ms, now_ns=self._clock.now_ns()
        )
        self._journal.submit_telemetry(epoch, telemetry)
        return outcome

    def _packet(self, stats: EpochStats) -> ly.SystemStatePacket:
        setup = self._setup
        validation = evaluate(setup.model, setup.probe, setup.loss)
        if not math.isfinite(validation.loss):
            raise TrainingDiverged(
                f"run {setup.request.run_id} diverged in epoch {stats.epoch}",
                cause=f"the held-out loss is {validation.loss}",
                next_step="Ask for a lower learning_rate",
            )
        hashed = setup.config.is_hashed(stats.epoch)
        return state_packet(
            setup,
            self._controller,
            stats,
            validation,
            parameters=self._host_parameters,
            weights_digest=self.digest() if hashed else "",
        )

    def _train(self, epoch: int) -> EpochStats:
        """Train on every sample once, in an order of the epoch's own."""
        setup, config = self._setup, self._setup.config
        # What an epoch draws from torch's global stream must not depend on what its edge happened to draw.
        torch.manual_seed(derive_seed(config.seed, "epoch", epoch))
        setup.model.train()
        began = self._clock.monotonic()
        tally = _Tally()
        first_step = (epoch - 1) * setup.steps_per_epoch
        rate = config.learning_rate
        for step, (inputs, targets) in enumerate(batches(self._shuffled(), config.batch_size), first_step):
            if self._stop.is_set():
                raise RunInterrupted(f"run {setup.request.run_id} was interrupted in epoch {epoch}")
            rate = learning_rate_at(step, steps=config.epochs * setup.steps_per_epoch, top=config.learning_rate)
            self._step(inputs, targets, rate, tally)
        return tally.stats(
            epoch=epoch,
            steps=setup.steps_per_epoch,
            gradient_norm=self._gradient_norm(),
            learning_rate=rate,
            seconds=self._clock.monotonic() - began,
        )

    def _step(self, inputs: Tensor, targets: Tensor, rate: float, tally: _Tally) -> None:
        """Take one optimiser step on a batch, in `gradient_accumulation` equal parts, and let seeds take theirs."""
        setup = self._setup
        for group in setup.optimizer.param_groups:
            group["lr"] = rate
        self._controller.before_step()
        setup.optimizer.zero_grad()
        for part_inputs, part_targets in _parts(inputs, targets, setup.config.gradient_accumulation):
            outputs = setup.model(part_inputs)
            loss = setup.loss(outputs, part_targets)
            share = loss if part_targets is targets else loss * (len(part_targets) / len(targets))
            share.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward unannotated
            tally.add(loss.detach(), outputs.detach(), part_targets)
        setup.optimizer.step()
        self._controller.after_step(inputs, targets)

    def _shuffled(self) -> Split:
        """Return the train part in the next order; one gather an epoch is cheaper than one a batch."""
        train = self._setup.train
        order = torch.randperm(len(train), generator=self._order).to(train.targets.device)
        return Split(train.inputs[order], train.targets[order])

    def _gradient_norm(self) -> float:
        """Return the L2 norm of the host's own gradient as the last step left it."""
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


def _parts(inputs: Tensor, targets: Tensor, count: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Return a batch in at most `count` parts of equal size (the last may be short)."""
    if count == 1:
        return ((inputs, targets),)
    return batches(Split(inputs, targets), math.ceil(len(targets) / count))


class _Tally:
    """Adds up an epoch without waiting for the device at every step."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._correct: list[Tensor] = []
        self._counts: list[int] = []

    def add(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        self._losses.append(loss)
        self._correct.append((outputs.argmax(dim=1) == targets).sum())
        self._counts.append(len(targets))

    def stats(
        self, *, epoch: int, steps: int, gradient_norm: float, learning_rate: float, seconds: float
    ) -> EpochStats:
        samples = sum(self._counts)
        losses = torch.stack(self._losses).tolist()
        return EpochStats(
            epoch=epoch,
            steps=steps,
            samples=samples,
            loss=math.fsum(loss * count for loss, count in zip(losses, self._counts, strict=True)) / samples,
            accuracy=int(torch.stack(self._correct).sum()) / samples,
            gradient_norm=gradient_norm,
            learning_rate=learning_rate,
            seconds=seconds,
        )
