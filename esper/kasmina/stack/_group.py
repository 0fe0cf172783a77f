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

from esper.core.stacking import AdamMoments, Program, StackedParameters, StepClock, adam_table, per_member, take_rows
from esper.kasmina._config import KasminaConfig
from esper.kasmina._gate_gradients import NO_GRADIENTS, GradientRecord
from esper.kasmina._gates import KernelEvidence
from esper.kasmina._graft import Role
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


@dataclass
class _Epoch:
    """What the steps of an epoch read and write for a group, a row a step."""

    numbers_SKG: Tensor
    alphas_SG: Tensor
    losses_SG: Tensor
    norms_SG: Tensor
    sound_SG: Tensor
    active_SG: NDArray[np.bool_]


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
        self.trusted_G = torch.tensor([seed.role is Role.FOSSIL for seed in seeds], device=device)
        self._epoch: _Epoch | None = None
        self.alpha_now_G = torch.empty(0)
        self.note_alphas()

    @property
    def module(self) -> str:
        """The slot's module."""
        return self.seeds[0].spec.module

    @property
    def reads_input(self) -> bool:
        """Whether the seeds read their module's input, not its output."""
        return self.seeds[0].spec.placement == "branch"

    def note_alphas(self) -> None:
        """Take over the seeds' alphas of this moment, for passes between two steps."""
        alphas = [seed.alpha for seed in self.seeds]
        self.alpha_now_G = torch.tensor(alphas, dtype=torch.float32, device=self.parameters.flat_NP.device)

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
        epoch = self._now()
        source_GB = take_rows(source_NB, self.rows_G, trusted_M=self.trusted_G)
        contribution, finite_G = self.blended(self.body(source_GB), clock.take(epoch.alphas_SG), self.trusted_G)
        clock.put(epoch.sound_SG, finite_G)
        return contribution

    @staticmethod
    def blended(given_MB: Tensor, alpha_M: Tensor, trusted_M: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha times what seeds give, zero where that is not finite, and where it is; fossils are trusted."""
        contribution = given_MB * per_member(alpha_M, given_MB)
        finite_M = torch.isfinite(contribution).flatten(1).all(dim=1) | trusted_M
        return torch.where(per_member(finite_M, contribution), contribution, torch.zeros_like(contribution)), finite_M

    # -- steps ----------------------------------------------------------------------------------------------

    def begin_epoch(self, rates_SN: NDArray[np.float64], config: KasminaConfig) -> None:
        """Work out every step's numbers for every seed."""
        steps, seeds, device = len(rates_SN), len(self.seeds), self.parameters.flat_NP.device
        plans = [_plan(seed, rates_SN[:, seed.member], config) for seed in self.seeds]
        rates, ages, active, alphas = (np.stack(column, axis=1) for column in zip(*plans, strict=True))
        decay = [0.0 if seed.role is Role.FOSSIL else config.weight_decay for seed in self.seeds]
        numbers = adam_table(rates, ages, active_SN=active, betas=config.betas, decay=decay, device=device)
        clips = [math.inf if seed.role is Role.FOSSIL else config.clip_norm for seed in self.seeds]
        self._clip_G = torch.tensor(clips, device=device)
        self._epoch = _Epoch(
            numbers.values_SKN,
            torch.from_numpy(alphas).to(device, torch.float32),
            torch.zeros(steps, seeds, device=device),
            torch.zeros(steps, seeds, device=device),
            torch.ones(steps, seeds, dtype=torch.bool, device=device),
            active,
        )

    def learn(self, gradients: Sequence[Tensor], clock: StepClock, losses_G: Tensor | None = None) -> None:
        """Clip every seed's gradient by itself and apply it; one that is not finite counts as zero."""
        epoch = self._now()
        with torch.no_grad():
            gradient_GP = self.parameters.flat(gradients)
            norm_G = torch.linalg.vector_norm(gradient_GP, dim=1)
            clock.put(epoch.norms_SG, norm_G)
            if losses_G is not None:
                clock.put(epoch.losses_SG, losses_G)
            scale_G = (self._clip_G / (norm_G + _CLIP_EPSILON)).clamp(max=1.0)
            usable_G1 = (torch.isfinite(norm_G) | self.trusted_G).unsqueeze(1)
            scaled = gradient_GP * scale_G.unsqueeze(1)
            kept = torch.where(usable_G1, scaled, torch.zeros_like(scaled))
            self.moments.step(self.parameters.flat_NP, kept, clock.take(epoch.numbers_SKG))

    def end_epoch(self) -> None:
        """Tell every seed what the epoch came to; waits for the device."""
        epoch = self._now()
        norms, losses = epoch.norms_SG.double().cpu().numpy(), epoch.losses_SG.double().cpu().numpy()
        sound = (epoch.sound_SG.all(dim=0) & torch.isfinite(self.parameters.flat_NP).all(dim=1)).tolist()
        for place, seed in enumerate(self.seeds):
            own = norms[epoch.active_SG[:, place], place]
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
        self._epoch = None
        self.note_alphas()

    def steps_heard(self) -> NDArray[np.bool_]:
        """Return at which steps of the epoch each seed is heard, [S, G]."""
        return self._now().active_SG

    def _now(self) -> _Epoch:
        assert self._epoch is not None, "steps are taken between begin_epoch and end_epoch"
        return self._epoch

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
