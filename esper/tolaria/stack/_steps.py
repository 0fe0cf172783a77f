"""The steps of one epoch, for all members at once, and what they add up to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from esper.core.stacking import AdamMoments, StackGrafts, StepClock, adam_table, cross_entropies, hits
from esper.tolaria._config import learning_rate_at
from esper.tolaria._packet import EpochStats
from esper.tolaria._tasks import Split
from esper.tolaria.stack._setup import StackSetup

# Legend: S steps of an epoch, N members, B samples of a batch, P parameters of one member.

#: torch.optim.Adam's own: what a lone run's optimiser has.
_BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class EpochTables:
    """What the steps of an epoch read and write, a row a step; all on the device."""

    orders_NT: Tensor
    numbers_SKN: Tensor
    losses_SN: Tensor
    hits_SN: Tensor
    norms_SN: Tensor


class StackSteps:
    """Trains the hosts of a stack and, by their grafts, the seeds on them."""

    def __init__(self, setup: StackSetup, grafts: StackGrafts) -> None:
        self._setup = setup
        self._grafts = grafts
        self._train: Split = setup.first.train
        self._batch_size = setup.first.config.batch_size
        self._steps = setup.first.steps_per_epoch
        self._epochs = setup.first.config.epochs
        self._tops = [member.config.learning_rate for member in setup.members]
        self._moments = AdamMoments.fresh(setup.host.parameters.flat_NP)
        self.clock = StepClock(setup.device)

    def epoch(self, epoch: int) -> EpochTables:
        """Take all steps of an epoch."""
        rates_SN = self._rates(epoch)
        tables = self._tables(epoch, rates_SN)
        self._grafts.begin_epoch(epoch, rates_SN=rates_SN, batches=self._batches(), clock=self.clock)
        for step in range(self._steps):
            self.clock.go_to(step)
            chosen_NB = tables.orders_NT[:, step * self._batch_size : (step + 1) * self._batch_size]
            self._step(self._train.inputs[chosen_NB], self._train.targets[chosen_NB], tables)
        return tables

    def _step(self, x_NB: Tensor, y_NB: Tensor, tables: EpochTables) -> None:
        host, grafts, clock = self._setup.host, self._grafts, self.clock
        outputs = host.forward(x_NB, grafts.tap())
        losses_N = cross_entropies(outputs, y_NB)
        leaves, seeds = host.parameters.leaves(), grafts.leaves()
        gradients = torch.autograd.grad(losses_N.sum(), [*leaves, *seeds])
        with torch.no_grad():
            clock.put(tables.losses_SN, losses_N)
            clock.put(tables.hits_SN, hits(outputs, y_NB))
            gradient_NP = host.parameters.flat(gradients[: len(leaves)])
            clock.put(tables.norms_SN, torch.linalg.vector_norm(gradient_NP, dim=1))
            self._moments.step(host.parameters.flat_NP, gradient_NP, clock.take(tables.numbers_SKN))
        grafts.after_step(x_NB, y_NB, gradients[len(leaves) :])

    def _batches(self) -> list[int]:
        samples = len(self._train)
        return [min(self._batch_size, samples - step * self._batch_size) for step in range(self._steps)]

    def _rates(self, epoch: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        first, total = (epoch - 1) * self._steps, self._epochs * self._steps
        share = [learning_rate_at(first + step, steps=total, top=1.0) for step in range(self._steps)]
        return np.outer(np.asarray(share), np.asarray(self._tops))

    def _tables(self, epoch: int, rates_SN: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> EpochTables:
        device, members = self._setup.device, len(self._setup.members)
        orders = [torch.randperm(len(self._train), generator=order) for order in self._setup.orders]
        ages = np.broadcast_to((epoch - 1) * self._steps + 1 + np.arange(self._steps)[:, None], rates_SN.shape)
        active = np.ones(rates_SN.shape, dtype=np.bool_)
        numbers = adam_table(rates_SN, ages, active_SN=active, betas=_BETAS, decay=0.0, device=device)
        shape = (self._steps, members)
        return EpochTables(
            torch.stack(orders).to(device),
            numbers.values_SKN,
            torch.zeros(shape, device=device),
            torch.zeros(shape, dtype=torch.int64, device=device),
            torch.zeros(shape, device=device),
        )

    def stats(self, epoch: int, tables: EpochTables, *, seconds: float) -> list[EpochStats]:
        """Return each member's figures of an epoch; waits for the device. `seconds` is the whole stack's wall time."""
        samples, predictions = len(self._train), self._train.predictions
        batches = self._batches()
        losses = tables.losses_SN.double().cpu().numpy()
        correct = tables.hits_SN.sum(dim=0).tolist()
        norms, rates = tables.norms_SN[-1].tolist(), self._rates(epoch)[-1]
        return [
            EpochStats(
                epoch=epoch,
                steps=self._steps,
                samples=samples,
                loss=_mean(losses[:, member].tolist(), batches, samples),
                accuracy=correct[member] / predictions,
                gradient_norm=norms[member],
                learning_rate=float(rates[member]),
                seconds=seconds,
            )
            for member in range(len(self._setup.members))
        ]


def _mean(losses: Sequence[float], counts: Sequence[int], samples: int) -> float:
    return math.fsum(loss * count for loss, count in zip(losses, counts, strict=True)) / samples
