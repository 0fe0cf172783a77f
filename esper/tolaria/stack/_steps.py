"""The steps of one epoch, for all members at once, and what they add up to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from esper.core.stacking import (
    ADAM_NUMBERS,
    AdamMoments,
    Recorder,
    ReplayCounts,
    StackGrafts,
    StepClock,
    StepLoop,
    adam_table,
    cross_entropies,
    fetched,
    hits,
)
from esper.tolaria._config import learning_rate_at
from esper.tolaria.loop._packet import EpochStats
from esper.tolaria.stack._setup import StackSetup
from esper.tolaria.tasks._tasks import Split

# Legend: S steps of an epoch, W of them of whole batches, N members, B samples of a batch, R of a last smaller one,
# K numbers of Adam, P parameters of one member, T samples of an epoch.

#: torch.optim.Adam's own: what a lone run's optimiser has.
_BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class EpochTables:
    """What the steps of an epoch read and write, a row a step; all on the device, and the same tensors every epoch."""

    #: Samples of the W whole batches, and those of a last one that is smaller.
    whole_WNB: Tensor
    rest_NR: Tensor
    numbers_SKN: Tensor
    losses_SN: Tensor
    hits_SN: Tensor
    norms_SN: Tensor


class StackSteps:
    """Trains the hosts of a stack and, by their grafts, the seeds on them; by replays where there is a recorder."""

    def __init__(self, setup: StackSetup, grafts: StackGrafts, *, recorder: Recorder | None = None) -> None:
        self._setup = setup
        self._grafts = grafts
        self._train: Split = setup.first.train
        self._batch_size = setup.first.config.batch_size
        self._steps = setup.first.steps_per_epoch
        self._epochs = setup.first.config.epochs
        self._tops = [member.config.learning_rate for member in setup.members]
        self._moments = AdamMoments.fresh(setup.host.parameters.flat_NP)
        self._tables = self._empty_tables()
        self.clock = StepClock(setup.device, captured=recorder is not None)
        self._loop = StepLoop(self.clock, recorder)

    @property
    def counts(self) -> ReplayCounts:
        """How the steps so far were taken."""
        return self._loop.counts

    def epoch(self, epoch: int) -> EpochTables:
        """Take all steps of an epoch; what is returned holds until the next."""
        rates_SN = self._rates(epoch)
        self._fill(epoch, rates_SN)
        self._grafts.begin_epoch(epoch, rates_SN=rates_SN, batches=self._batches(), clock=self.clock)
        # The last step is one by itself: it may be smaller, and isolation is looked at in it.
        alike = min(len(self._tables.whole_WNB), self._steps - 1)
        self._loop.run(self._step, steps=self._steps, alike=alike, structure=self._grafts.structure())
        return self._tables

    def _step(self) -> None:
        host, grafts, clock, tables = self._setup.host, self._grafts, self.clock, self._tables
        whole = clock.step < len(tables.whole_WNB)
        chosen_NB = clock.take(tables.whole_WNB) if whole else tables.rest_NR
        x_NB, y_NB = self._train.inputs[chosen_NB], self._train.targets[chosen_NB]
        outputs = host.forward(x_NB, grafts.tap())
        losses_N = cross_entropies(outputs, y_NB)
        leaves, seeds = host.parameters.leaves(), grafts.leaves()
        gradients = torch.autograd.grad(losses_N.sum(), [*leaves, *seeds])
        with torch.no_grad():
            clock.put(tables.losses_SN, losses_N)
            clock.put(tables.hits_SN, hits(outputs, y_NB))
            gradient_NP = host.parameters.flat(gradients[: len(leaves)])
            clock.put(tables.norms_SN, torch.linalg.vector_norm(gradient_NP, dim=1))
            numbers_KN = clock.take(tables.numbers_SKN)
            self._moments.step(host.parameters.flat_NP, gradient_NP, numbers_KN, decays=False)
        grafts.after_step(x_NB, y_NB, gradients[len(leaves) :])

    def _batches(self) -> list[int]:
        samples = len(self._train)
        return [min(self._batch_size, samples - step * self._batch_size) for step in range(self._steps)]

    def _rates(self, epoch: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        first, total = (epoch - 1) * self._steps, self._epochs * self._steps
        share = [learning_rate_at(first + step, steps=total, top=1.0) for step in range(self._steps)]
        return np.outer(np.asarray(share), np.asarray(self._tops))

    def _empty_tables(self) -> EpochTables:
        members, samples, device = len(self._setup.members), len(self._train), self._setup.device
        whole, rest = divmod(samples, self._batch_size)
        shape = (self._steps, members)
        return EpochTables(
            torch.zeros(whole, members, self._batch_size, dtype=torch.int64, device=device),
            torch.zeros(members, rest, dtype=torch.int64, device=device),
            torch.zeros(self._steps, ADAM_NUMBERS, members, device=device),
            torch.zeros(shape, device=device),
            torch.zeros(shape, dtype=torch.int64, device=device),
            torch.zeros(shape, device=device),
        )

    def _fill(self, epoch: int, rates_SN: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> None:
        """Write what the steps of an epoch read; in place, since recorded steps read from there."""
        tables = self._tables
        orders_NT = torch.stack([torch.randperm(len(self._train), generator=order) for order in self._setup.orders])
        whole, members, size = tables.whole_WNB.shape
        chosen_NWB = orders_NT[:, : whole * size].to(tables.whole_WNB.device).view(members, whole, size)
        tables.whole_WNB.copy_(chosen_NWB.transpose(0, 1))
        tables.rest_NR.copy_(orders_NT[:, whole * size :])
        ages = np.broadcast_to((epoch - 1) * self._steps + 1 + np.arange(self._steps)[:, None], rates_SN.shape)
        active = np.ones(rates_SN.shape, dtype=np.bool_)
        tables.numbers_SKN.copy_(adam_table(rates_SN, ages, active_SN=active, betas=_BETAS, decay=0.0))

    def stats(self, epoch: int, tables: EpochTables, *, seconds: float) -> list[EpochStats]:
        """Return each member's figures of an epoch; waits for the device. `seconds` is the whole stack's wall time."""
        samples, predictions = len(self._train), self._train.predictions
        batches = self._batches()
        losses_SN, hits_SN, norms_SN = fetched([tables.losses_SN, tables.hits_SN, tables.norms_SN[-1:]])
        correct, norms, rates = hits_SN.sum(axis=0).tolist(), norms_SN[0].tolist(), self._rates(epoch)[-1]
        return [
            EpochStats(
                epoch=epoch,
                steps=self._steps,
                samples=samples,
                loss=_mean(losses_SN[:, member].tolist(), batches, samples),
                accuracy=correct[member] / predictions,
                gradient_norm=norms[member],
                learning_rate=float(rates[member]),
                seconds=seconds,
            )
            for member in range(len(self._setup.members))
        ]


def _mean(losses: Sequence[float], counts: Sequence[int], samples: int) -> float:
    return math.fsum(loss * count for loss, count in zip(losses, counts, strict=True)) / samples
