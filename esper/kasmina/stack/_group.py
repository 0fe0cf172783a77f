"""Seeds of one kernel in one slot of several members, computed together: a row of every tensor is a seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from esper.core.stacking import (
    ADAM_NUMBERS,
    AdamMoments,
    Program,
    StackedParameters,
    StepClock,
    adam_table,
    finite_rows,
    per_member,
    take_rows,
)
from esper.kasmina._config import KasminaConfig
from esper.kasmina.gates._gates import KernelEvidence
from esper.kasmina.gates._gradients import NO_GRADIENTS, GradientRecord
from esper.kasmina.grafting._seed import Role
from esper.kasmina.stack._seedling import Seedling

# Legend: N members of the stack, G seeds of a group, M of them that are meant, S steps of an epoch, P parameters.

#: Keeps the clip factor finite where the gradient is zero (as torch.nn.utils.clip_grad_norm_ does).
_CLIP_EPSILON = 1e-6


@dataclass(frozen=True)
class StackedKernel:
    """A kernel made ready for one slot of every member: its program, its first values, and what was seen of it."""

    digest: str
    body: nn.Module
    program: Program
    shapes: Mapping[str, tuple[int, ...]]
    values_P: Tensor
    evidence: KernelEvidence
    parameters: int
    multiply_adds_per_sample: int


class GroupKey(NamedTuple):
    """What seeds of one group have in common; `joint` says whether their hosts hear them."""

    slot: str
    kernel_digest: str
    joint: bool


@dataclass(frozen=True)
class _Tables:
    """What the steps of an epoch read and write for a group, a row a step; the same tensors every epoch."""

    numbers_SKG: Tensor
    alphas_SG: Tensor
    losses_SG: Tensor
    norms_SG: Tensor
    sound_SG: Tensor

    @classmethod
    def of(cls, steps: int, seeds: int, device: torch.device) -> _Tables:
        """Return those of a group to which nothing was written yet."""
        shape = (steps, seeds)
        return cls(
            torch.zeros(steps, ADAM_NUMBERS, seeds, device=device),
            torch.zeros(shape, device=device),
            torch.zeros(shape, device=device),
            torch.zeros(shape, device=device),
            torch.ones(shape, dtype=torch.bool, device=device),
        )


class SeedGroup:
    """G seeds of one kernel. Nothing here mixes rows, so that each seed is trained as it would be alone."""

    def __init__(
        self, key: GroupKey, kernel: StackedKernel, seeds: Sequence[Seedling], flat_GP: Tensor, moments: AdamMoments
    ) -> None:
        device = flat_GP.device
        self.key = key
        self.kernel = kernel
        self.seeds = list(seeds)
        self.members = [seed.member for seed in seeds]
        self.rows_G = torch.tensor(self.members, dtype=torch.int64, device=device)
        self.parameters = StackedParameters(kernel.shapes, flat_GP)
        self.moments = moments
        # Recorded steps read from these: they are written in place.
        self.trusted_G = torch.zeros(len(seeds), dtype=torch.bool, device=device)
        self.alpha_now_G = torch.zeros(len(seeds), device=device)
        self._clip_G = torch.zeros(len(seeds), device=device)
        self._tables: _Tables | None = None
        #: At which steps of the epoch each seed learns; None between two epochs.
        self._active_SG: NDArray[np.bool_] | None = None
        self.note_roles()

    @property
    def module(self) -> str:
        """The slot's module."""
        return self.seeds[0].spec.module

    @property
    def reads_input(self) -> bool:
        """Whether the seeds read their module's input, not its output."""
        return self.seeds[0].spec.placement == "branch"

    def note_roles(self) -> None:
        """Take over what the seeds are at this moment: their alphas, and which of them are trusted."""
        self.trusted_G.copy_(torch.tensor([seed.role is Role.FOSSIL for seed in self.seeds]))
        self.note_alphas()

    def note_alphas(self) -> None:
        """Take over the seeds' alphas of this moment, for passes between two steps."""
        self.alpha_now_G.copy_(torch.tensor([seed.alpha for seed in self.seeds], dtype=torch.float32))

    # -- forward --------------------------------------------------------------------------------------------

    def body(self, source_GB: Tensor) -> Tensor:
        """Return what every seed makes of its host's activation; autograd sees the seeds' parameters."""
        return self.kernel.program.run(self.parameters.tensors, source_GB)

    def body_of(self, source_MB: Tensor, places_M: Tensor | None) -> Tensor:
        """Return what some seeds (None: all) make of it, by detached parameters."""
        flat = self.parameters.flat_NP if places_M is None else self.parameters.flat_NP.index_select(0, places_M)
        return self.kernel.program.run(self.parameters.views(flat), source_MB)

    def heard(self, source_NB: Tensor, clock: StepClock) -> Tensor:
        """Return what the hosts hear in this training step, [G, B, ...]; a seed that is not finite is not heard."""
        tables = self._now()
        source_GB = take_rows(source_NB, self.rows_G, trusted_M=self.trusted_G)
        contribution, finite_G = self.blended(self.body(source_GB), clock.take(tables.alphas_SG), self.trusted_G)
        clock.put(tables.sound_SG, finite_G)
        return contribution

    @staticmethod
    def blended(given_MB: Tensor, alpha_M: Tensor, trusted_M: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha times what seeds give, zero where that is not finite, and where it is; fossils are trusted."""
        contribution = given_MB * per_member(alpha_M, given_MB)
        finite_M = finite_rows(contribution) | trusted_M
        return torch.where(per_member(finite_M, contribution), contribution, 0.0), finite_M

    # -- steps ----------------------------------------------------------------------------------------------

    def begin_epoch(self, rates_SN: NDArray[np.float64], config: KasminaConfig) -> None:
        """Work out every step's numbers for every seed."""
        plans = [_plan(seed, rates_SN[:, seed.member], config) for seed in self.seeds]
        rates, ages, active, alphas = (np.stack(column, axis=1) for column in zip(*plans, strict=True))
        if self._tables is None:
            self._tables = _Tables.of(len(rates_SN), len(self.seeds), self.parameters.flat_NP.device)
        self._active_SG = active
        decay = [0.0 if seed.role is Role.FOSSIL else config.weight_decay for seed in self.seeds]
        self._tables.numbers_SKG.copy_(adam_table(rates, ages, active_SN=active, betas=config.betas, decay=decay))
        self._tables.alphas_SG.copy_(torch.from_numpy(alphas).float())
        self._clip_G.copy_(
            torch.tensor([math.inf if seed.role is Role.FOSSIL else config.clip_norm for seed in self.seeds])
        )

    def learn(self, gradients: Sequence[Tensor], clock: StepClock, losses_G: Tensor | None = None) -> None:
        """Clip every seed's gradient by itself and apply it; one that is not finite counts as zero."""
        tables = self._now()
        with torch.no_grad():
            gradient_GP = self.parameters.flat(gradients)
            norm_G = torch.linalg.vector_norm(gradient_GP, dim=1)
            clock.put(tables.norms_SG, norm_G)
            if losses_G is not None:
                clock.put(tables.losses_SG, losses_G)
            scale_G = (self._clip_G / (norm_G + _CLIP_EPSILON)).clamp(max=1.0)
            usable_G1 = ((norm_G < math.inf) | self.trusted_G).unsqueeze(1)
            kept = torch.where(usable_G1, gradient_GP * scale_G.unsqueeze(1), 0.0)
            self.moments.step(self.parameters.flat_NP, kept, clock.take(tables.numbers_SKG))

    def figures(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the epoch's steps left on the device: norms and losses [S, G], and whose numbers are finite."""
        tables = self._now()
        return tables.norms_SG, tables.losses_SG, tables.sound_SG.all(dim=0) & finite_rows(self.parameters.flat_NP)

    def end_epoch(self, norms: NDArray[np.float64], losses: NDArray[np.float64], sound: NDArray[np.float64]) -> None:
        """Tell every seed what the epoch came to, by the group's `figures`."""
        active_SG = self.steps_heard()
        for place, seed in enumerate(self.seeds):
            own = norms[active_SG[:, place], place]
            if seed.role is Role.FOSSIL:
                seed.age += len(norms)
                continue
            if seed.falling:
                seed.blend_step += len(norms)
                seed.sound = seed.sound and bool(sound[place])
                continue
            record = GradientRecord(len(own), float(own.min()), float(own.max())) if len(own) else NO_GRADIENTS
            healthy = bool(sound[place]) and bool(np.isfinite(own).all())
            if seed.role is Role.ISOLATED:
                healthy = healthy and bool(np.isfinite(losses[:, place]).all())
                seed.epoch_losses = (*seed.epoch_losses, float(losses[:, place].sum()) / len(losses))
                seed.shadow_steps += len(losses)
            else:
                seed.blend_step += len(norms)
            last = float(own[-1]) if len(own) else None
            seed.close_epoch(steps=len(own), norms=record, last_norm=last, sound=healthy)
        self._active_SG = None
        self.note_alphas()

    def steps_heard(self) -> NDArray[np.bool_]:
        """Return at which steps of the epoch each seed is heard, [S, G]."""
        assert self._active_SG is not None, "steps are taken between begin_epoch and end_epoch"
        return self._active_SG

    def _now(self) -> _Tables:
        assert self._tables is not None, "steps are taken after begin_epoch"
        return self._tables

    def weights(self) -> list[Mapping[str, Tensor]]:
        """Return every seed's parameters on the CPU, by their names in the kernel."""
        views = self.parameters.views(self.parameters.flat_NP.detach().cpu())
        return [{name: tensor[place] for name, tensor in views.items()} for place in range(len(self.seeds))]


def _plan(
    seed: Seedling, host_rates_S: NDArray[np.float64], config: KasminaConfig
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
    """Return the rate, Adam's count, whether a step is taken, and alpha, at each step of an epoch."""
    steps: NDArray[np.int64] = np.arange(len(host_rates_S), dtype=np.int64)
    if seed.role is Role.FOSSIL:
        return host_rates_S, seed.age + 1 + steps, np.ones(len(steps), np.bool_), np.ones(len(steps))
    alphas = np.ones(len(steps))
    if seed.schedule is not None:
        alphas = np.asarray([seed.schedule.at(seed.blend_step + step) for step in range(len(steps))])
    active = alphas > 0.0 if not seed.falling else np.zeros(len(steps), np.bool_)
    taken: NDArray[np.int64] = np.cumsum(active, dtype=np.int64) - active
    if config.warmup_steps:
        share = np.minimum(1.0, (seed.steps + taken + 1) / config.warmup_steps)
    else:
        share = np.ones(len(steps))
    return config.learning_rate * share, seed.age + 1 + taken, active, alphas
