"""Gathers what the gates of all members' orders look at, one pass for many members wherever they want the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from esper.kasmina._config import KasminaConfig
from esper.kasmina.bed._quarantine import QUARANTINED, REFUSED
from esper.kasmina.gates._gates import (
    ImpactEvidence,
    SanityEvidence,
    StabilityEvidence,
    impact_gate,
    sanity_gate,
    stability_gate,
)
from esper.kasmina.gates._gradients import GradientEvidence, gradient_gate
from esper.kasmina.gates._interface import interface_gate
from esper.kasmina.grafting._alpha import CURVE_WORDS
from esper.kasmina.grafting._slots import SlotSpec
from esper.kasmina.lifecycle._decide import KERNEL_UNAVAILABLE, Findings, unavailable
from esper.kasmina.lifecycle._leaving import leaving
from esper.kasmina.lifecycle._lifecycle import FALL_STEPS, FOLDED, KasminaLifecycle
from esper.kasmina.lifecycle._orders import BLEND_EPOCHS, BLEND_STEPS, FALL_EPOCHS, Order
from esper.kasmina.stack._garden import Garden
from esper.kasmina.stack._group import StackedKernel
from esper.kasmina.stack._kernels import StackKernels
from esper.kasmina.stack._seedling import Seedling
from esper.kasmina.stack._sensors import StackSensors
from esper.leyline import messages as ly


@dataclass(frozen=True)
class Asked:
    """One member's order: its run, its lifecycle, and in re-execution the recorded outcome."""

    member: int
    run_id: str
    order: Order
    lifecycle: KasminaLifecycle
    recorded: ly.CommandOutcome | None


@dataclass(frozen=True)
class Examination:
    """What was found for an order; for a germination also the kernel, ready to be planted."""

    findings: Findings
    kernel: StackedKernel | None = None


class StackExaminer:
    """Measures; it judges nothing itself and leaves the hosts as they were."""

    def __init__(
        self,
        garden: Garden,
        sensors: StackSensors,
        kernels: StackKernels,
        *,
        slots: Mapping[str, SlotSpec],
        descriptors: Mapping[str, ly.BlueprintDescriptor],
        config: KasminaConfig,
    ) -> None:
        self._garden = garden
        self._sensors = sensors
        self._kernels = kernels
        self._slots = slots
        self._descriptors = descriptors
        self._config = config

    def examine(self, orders: Sequence[Asked], *, steps_per_epoch: int) -> dict[int, Examination]:
        """Return what was measured for each order, by member.

        Raises:
            IntegrityError: a re-execution cannot have the kernel that the record names.
            KernelUnavailable: no store holds a recorded kernel any more.
        """
        self._kernels.begin_edge()
        found = self._germinations([one for one in orders if one.order.operation == ly.SEED_OP_GERMINATE])
        found |= self._stabilisations([one for one in orders if one.order.operation == ly.SEED_OP_STABILIZE])
        for one in orders:
            operation = one.order.operation
            if one.member in found:
                continue
            seed = self._seed(one)
            if operation == ly.SEED_OP_START_GRAFTING:
                findings = self._grafting(one.order, seed, steps_per_epoch)
            elif operation == ly.SEED_OP_EVALUATE:
                findings = self._impact(seed)
            elif operation == ly.SEED_OP_FOSSILIZE:
                findings = self._fossilising(seed)
            else:
                findings = self._culling(one, seed, steps_per_epoch)
            found[one.member] = Examination(findings)
        return found

    def _seed(self, one: Asked) -> Seedling:
        return next(seed for seed in self._garden.seeds_of(one.member) if seed.seed_id == one.order.seed_id)

    def _germinations(self, orders: Sequence[Asked]) -> dict[int, Examination]:
        found: dict[int, Examination] = {}
        ready: dict[tuple[str, str], list[tuple[Asked, SanityEvidence, StackedKernel, float]]] = {}
        for one in orders:
            order, spec = one.order, self._slots.get(one.order.slot)
            before = SanityEvidence(
                slot_known=spec is not None,
                slot_free=one.lifecycle.holder(order.slot) is None,
                blueprint_id=order.blueprint_id,
                parameters=order.parameters,
                descriptor=self._descriptors.get(order.blueprint_id),
            )
            gate = sanity_gate(before)
            if spec is None or not gate.passed:
                found[one.member] = Examination(Findings(gates=[gate]))
                continue
            kernel, digest, latency_ms = self._kernel(one, spec)
            if isinstance(kernel, str):
                found[one.member] = Examination(Findings(problem=kernel, kernel_digest=digest))
            else:
                ready.setdefault((spec.slot, digest), []).append((one, before, kernel, latency_ms))
        for _, group in sorted(ready.items()):
            found |= self._rehearsed(group)
        return found

    def _kernel(self, one: Asked, spec: SlotSpec) -> tuple[StackedKernel | str, str, float]:
        recorded = one.recorded
        if recorded is None:
            wish = spec.request(one.order.blueprint_id, one.order.parameters)
            return self._kernels.live(spec, wish, run_id=one.run_id)
        if recorded.reason.startswith((QUARANTINED, REFUSED, KERNEL_UNAVAILABLE)):
            return recorded.reason, recorded.kernel_digest, 0.0
        return self._kernels.recorded(spec, recorded), recorded.kernel_digest, 0.0

    def _rehearsed(self, group: Sequence[tuple[Asked, SanityEvidence, StackedKernel, float]]) -> dict[int, Examination]:
        """Judge G0 with what was seen of the kernel and, where it passes, G1 of a rehearsal, for all who want it."""
        first, _, kernel, _ = group[0]
        gates = {one.member: sanity_gate(before.with_kernel(kernel.evidence)) for one, before, _, _ in group}
        wishes = {one.member: one.order.seed_id for one, _, _, _ in group if gates[one.member].passed}
        evidence: dict[int, GradientEvidence] = {}
        if wishes:
            evidence = self._sensors.rehearse(wishes, self._slots[first.order.slot], kernel)
        found = {}
        for one, _, _, latency_ms in group:
            measured = [gates[one.member]]
            if one.member in evidence:
                measured.append(gradient_gate(evidence[one.member], self._config.limits))
            metrics = {
                "parameters": float(kernel.parameters),
                "multiply_adds_per_sample": float(kernel.multiply_adds_per_sample),
                "kernel_fetch_ms": latency_ms,
            }
            findings = Findings(gates=measured, kernel_digest=kernel.digest, metrics=metrics)
            found[one.member] = Examination(findings, kernel)
        return found

    def _stabilisations(self, orders: Sequence[Asked]) -> dict[int, Examination]:
        found: dict[int, Examination] = {}
        wanted: dict[int, Asked] = {}
        for one in orders:
            alpha = self._seed(one).alpha
            if alpha == 1.0:
                wanted[id(self._seed(one))] = one
            else:
                found[one.member] = Examination(Findings(problem="alpha_below_one", alpha=alpha))
        for group in self._garden.joint:
            members = [seed.member for seed in group.seeds if id(seed) in wanted]
            if not members:
                continue
            for member, evidence in self._sensors.interfaces(group, members).items():
                metrics = {"interface_latency_ms": evidence.latency_ms}
                findings = Findings(gates=[interface_gate(evidence)], alpha=1.0, metrics=metrics)
                found[member] = Examination(findings)
        return found

    def _grafting(self, order: Order, seed: Seedling, steps_per_epoch: int) -> Findings:
        losses = seed.held_out
        if losses is None:
            return Findings(problem=unavailable(ly.SEED_GATE_G2_STABILITY))
        stability = StabilityEvidence(seed.epoch_losses, losses.seed_on, losses.seed_off)
        health = GradientEvidence(seed.gradients, seed.leaks.host_changes, seed.leaks.seed_changes)
        steps = order.parameters.get(BLEND_STEPS)
        if steps is None:
            steps = self._config.blend_steps_at(steps_per_epoch, epochs=order.parameters.get(BLEND_EPOCHS))
        gates = [gradient_gate(health, self._config.limits), stability_gate(stability, self._config.limits)]
        metrics = {"loss_seed_on": losses.seed_on, "loss_seed_off": losses.seed_off}
        return Findings(
            gates=gates,
            metrics={**metrics, BLEND_STEPS: max(1.0, round(steps))},
            blend_mode=ly.BLEND_MODE_RESIDUAL,
            alpha_curve=order.alpha_curve or CURVE_WORDS[self._config.alpha_curve],
        )

    def _fossilising(self, seed: Seedling) -> Findings:
        """Return what G4 says; a stack folds no seed into its host's weights, whose rows have one shape."""
        found = self._impact(seed)
        if found.problem or not all(gate.passed for gate in found.gates):
            return found
        return replace(found, metrics={**found.metrics, FOLDED: 0.0}, choices={FOLDED: 0.0})

    def _culling(self, one: Asked, seed: Seedling, steps_per_epoch: int) -> Findings:
        """Return whether the seed falls or goes at once: who is not heard has nothing to fall from."""
        steps, wished = 0, one.order.parameters
        if seed.heard:
            steps = self._config.fall_steps_at(
                steps_per_epoch, steps=wished.get(FALL_STEPS), epochs=wished.get(FALL_EPOCHS)
            )
        return leaving(one.order, one.recorded, alpha=seed.alpha, wished=steps, left=seed.steps_left)

    def _impact(self, seed: Seedling) -> Findings:
        losses = seed.held_out
        if losses is None:
            return Findings(problem=unavailable(ly.SEED_GATE_G4_SYSTEM_IMPACT), alpha=seed.alpha)
        gate = impact_gate(ImpactEvidence(losses.seed_on, losses.seed_off), self._config.limits)
        metrics = {"loss_seed_on": losses.seed_on, "loss_seed_off": losses.seed_off}
        return Findings(gates=[gate], alpha=seed.alpha, metrics=metrics)
