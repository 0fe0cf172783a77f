"""Every measurement of a stack's seeds: many members in one pass, nothing of them changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.stacking import AdamMoments, cross_entropies
from esper.kasmina.bed._bench import HeldOutLosses
from esper.kasmina.gates._gradients import GradientEvidence, GradientRecord
from esper.kasmina.gates._interface import InterfaceEvidence, Seam, evidence_of
from esper.kasmina.grafting._slots import SlotSpec
from esper.kasmina.stack._garden import Garden
from esper.kasmina.stack._group import GroupKey, SeedGroup, StackedKernel
from esper.kasmina.stack._seedling import Seedling
from esper.kasmina.stack._taps import QuietTap, SeamTap

# Legend: M members that a pass is about, B samples.

#: A rehearsal needs a gradient, not a good estimate of it.
_REHEARSAL_SAMPLES = 64
#: A look at the interface needs activations of the host's making, not all of them.
_INTERFACE_SAMPLES = 256


class StackSensors:
    """Measures on the probe: held-out `inputs` [B, ...] and `targets` [B, ...], one copy for all members."""

    def __init__(self, garden: Garden, inputs: Tensor, targets: Tensor, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._garden = garden
        self._inputs = inputs
        self._targets = targets
        self._clock = clock

    def held_out(self, growing: Collection[int], hosts: Sequence[float], *, epoch: int) -> None:
        """Measure the held-out losses, with and without it, of every seed whose id() is in `growing`.

        `hosts` are the losses of the members' networks as they are.
        """
        garden, samples = self._garden, len(self._inputs)
        for group in garden.groups:
            chosen = [seed for seed in group.seeds if id(seed) in growing]
            if not chosen:
                continue
            if group.key.joint:
                tap = QuietTap(garden.joint, group.members, device=garden.host.device, muted=group)
            else:
                tap = garden.shadow_tap(group)
            losses = self._losses(group, tap)
            for place, seed in enumerate(group.seeds):
                if id(seed) not in growing:
                    continue
                as_it_is, other = hosts[seed.member], losses[place]
                on, off = (as_it_is, other) if group.key.joint else (other, as_it_is)
                seed.held_out = HeldOutLosses(epoch, as_it_is, seed_on=on, seed_off=off)
                own = seed.multiply_adds_per_sample if seed.heard else -seed.multiply_adds_per_sample
                garden.multiply_adds[seed.member] += samples * (garden.heard_cost(seed.member) - own)
        for member in {seed.member for group in garden.groups for seed in group.seeds if id(seed) in growing}:
            garden.multiply_adds[member] += samples * garden.heard_cost(member)

    @torch.no_grad()
    def _losses(self, group: SeedGroup, tap: QuietTap) -> list[float]:
        inputs, targets = self._spread(len(group.seeds), len(self._inputs))
        losses: list[float] = cross_entropies(
            self._garden.host.forward_apart(inputs, group.rows_G, tap), targets
        ).tolist()
        return losses

    def _spread(self, members: int, samples: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self._inputs[:samples], self._targets[:samples]
        return inputs.expand(members, *inputs.shape), targets.expand(members, *targets.shape)

    def rehearse(self, wishes: Mapping[int, str], spec: SlotSpec, kernel: StackedKernel) -> dict[int, GradientEvidence]:
        """Return what one shadow pass shows of seeds that are not planted yet, by member; `wishes` are their ids.

        The hosts' numbers and the random streams are compared before and after, number by number.
        """
        garden = self._garden
        seeds = [
            Seedling(member, seed_id, spec, kernel.digest, kernel.parameters, kernel.multiply_adds_per_sample)
            for member, seed_id in sorted(wishes.items())
        ]
        flat = kernel.values_P.expand(len(seeds), -1).contiguous()
        key = GroupKey(spec.slot, kernel.digest, joint=False)
        group = SeedGroup(key, kernel, seeds, flat, AdamMoments.fresh(flat))
        samples = min(_REHEARSAL_SAMPLES, len(self._inputs))
        inputs, targets = self._spread(len(seeds), samples)
        before = garden.host_print()
        with torch.enable_grad():
            losses = garden.shadow_losses(group, garden.shadow_tap(group), inputs, targets)
            gradients = torch.autograd.grad(losses.sum(), group.parameters.leaves())
        norms: list[float] = torch.linalg.vector_norm(group.parameters.flat(gradients), dim=1).tolist()
        changes = garden.changes_since(before, group)
        evidence = {}
        for place, seed in enumerate(seeds):
            garden.multiply_adds[seed.member] += samples * garden.shadow_cost(group, seed.member)
            record = GradientRecord(1, norms[place], norms[place])
            evidence[seed.member] = GradientEvidence(record, host_changes=changes[place], seed_changes=0)
        return evidence

    @torch.no_grad()
    def interfaces(self, group: SeedGroup, members: Sequence[int]) -> dict[int, InterfaceEvidence]:
        """Return how the seeds of some members fit their slot, on activations of their hosts' making.

        The latency is that of the pass, shared out evenly among its members; evidence only.
        """
        garden, host = self._garden, self._garden.host
        samples = min(_INTERFACE_SAMPLES, len(self._inputs))
        inputs, _ = self._spread(len(members), samples)
        tap = SeamTap(garden.joint, members, device=host.device, muted=group)
        self._wait()
        began = self._clock.monotonic()
        host.forward_apart(inputs, torch.tensor(list(members), device=host.device), tap)
        self._wait()
        latency_ms = 1e3 * (self._clock.monotonic() - began) / len(members)
        assert tap.seam is not None, "the slot's module is part of the program"
        output, given = tap.seam
        finite: list[bool] = torch.isfinite(given).flatten(1).all(dim=1).tolist()
        host_side, seed_side = _side(output), _side(given)
        for member in members:
            garden.multiply_adds[member] += samples * garden.heard_cost(member)
        return {
            member: evidence_of([Seam(host_side, seed_side, finite[place])], latencies_ms=[latency_ms])
            for place, member in enumerate(members)
        }

    def _wait(self) -> None:
        device = self._garden.host.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def _side(tensor: Tensor) -> tuple[object, object, object]:
    return tuple(tensor.shape[1:]), tensor.dtype, tensor.device
