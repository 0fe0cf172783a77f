"""Gathers what the gates of an order look at: fetches the kernel, measures losses, reads alpha."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from esper.core.errors import IntegrityError, UsageError
from esper.core.ports import BlueprintRuntime, FetchedKernel, KernelUnavailable
from esper.core.rng import derive_seed
from esper.kasmina._bed import SeedBed
from esper.kasmina._bench import HeldOutLosses, PreparedSeed
from esper.kasmina._config import KasminaConfig
from esper.kasmina._decide import KERNEL_UNAVAILABLE, Findings, is_measured, unavailable
from esper.kasmina._gate_gradients import gradient_gate
from esper.kasmina._gate_interface import interface_gate
from esper.kasmina._gates import (
    ImpactEvidence,
    SanityEvidence,
    StabilityEvidence,
    impact_gate,
    sanity_gate,
    stability_gate,
)
from esper.kasmina._household import HOUSE_REASONS, Household
from esper.kasmina._lifecycle import KasminaLifecycle
from esper.kasmina._orders import BLEND_EPOCHS, BLEND_STEPS, Order
from esper.kasmina._quarantine import QUARANTINED, REFUSED, hold_trial, reason_of, recorded_event, refusal_of
from esper.kasmina._slots import SlotSpec
from esper.leyline import messages as ly

logger = logging.getLogger("esper.kasmina")

#: Why nothing germinates while the breaker of the isolation monitor is open.
ISOLATION_OPEN = "breaker_open:isolation"


@dataclass(frozen=True)
class Examination:
    """What was found for an order; for a germination also the seed, made ready but not yet planted."""

    findings: Findings
    prepared: PreparedSeed | None = None


class Examiner:
    """Measures; it judges nothing itself and leaves the host as it was."""

    def __init__(
        self,
        bed: SeedBed,
        *,
        runtime: BlueprintRuntime,
        house: Household,
        slots: Mapping[str, SlotSpec],
        descriptors: Mapping[str, ly.BlueprintDescriptor],
        config: KasminaConfig,
        seed: int,
    ) -> None:
        self._bed = bed
        self._seed = seed
        self._runtime = runtime
        self._house = house
        self._slots = slots
        self._descriptors = descriptors
        self._config = config

    def examine(
        self,
        order: Order,
        lifecycle: KasminaLifecycle,
        *,
        epoch: int,
        steps_per_epoch: int,
        recorded: ly.CommandOutcome | None,
    ) -> Examination:
        """Return what was measured for `order` after `epoch`.

        Raises:
            IntegrityError: a re-execution cannot have the kernel that the record names, or it is another.
            KernelUnavailable: no store holds the recorded kernel any more.
        """
        if order.operation == ly.SEED_OP_GERMINATE:
            return self._germination(order, lifecycle, recorded)
        alpha = self._bed.live[order.seed_id].seed.alpha
        if order.operation == ly.SEED_OP_START_GRAFTING:
            return Examination(self._grafting(order, epoch, steps_per_epoch, recorded))
        if order.operation == ly.SEED_OP_STABILIZE:
            return Examination(self._stabilising(order, alpha, recorded))
        if order.operation in (ly.SEED_OP_EVALUATE, ly.SEED_OP_FOSSILIZE):
            return Examination(self._impact(order.seed_id, epoch, alpha))
        return Examination(Findings(alpha=alpha))

    def _germination(
        self, order: Order, lifecycle: KasminaLifecycle, recorded: ly.CommandOutcome | None
    ) -> Examination:
        spec = self._slots.get(order.slot)
        before = SanityEvidence(
            slot_known=spec is not None,
            slot_free=lifecycle.holder(order.slot) is None,
            blueprint_id=order.blueprint_id,
            parameters=order.parameters,
            descriptor=self._descriptors.get(order.blueprint_id),
        )
        gate = sanity_gate(before)
        if not self._bed.monitor.allows:
            return Examination(Findings(gates=[gate], problem=ISOLATION_OPEN))
        if spec is None or not gate.passed:
            return Examination(Findings(gates=[gate]))
        refusal = self._house.refusal() if recorded is None else recorded.reason
        if refusal in HOUSE_REASONS:
            return Examination(Findings(gates=[gate], problem=refusal))
        if recorded is not None and recorded.reason.startswith((QUARANTINED, REFUSED)):
            return Examination(_recorded_refusal(recorded))
        kernel = self._fetch(spec.request(order.blueprint_id, order.parameters), recorded)
        if isinstance(kernel, str):
            return Examination(Findings(problem=kernel))
        # What was grafted when the run was recorded is grafted again, whatever people have said of it since.
        refusal = "" if recorded is not None else refusal_of(kernel, self._descriptors.get(order.blueprint_id))
        if refusal:
            return Examination(self._refused(order, spec, kernel, refusal))
        prepared = self._bed.prepare(spec, _module_of(kernel))
        sane = sanity_gate(before.with_kernel(prepared.evidence))
        gates, problem = self._entry_gates(order, spec, prepared, sane, recorded)
        findings = Findings(
            gates=gates,
            problem=problem,
            kernel_digest=kernel.artifact_ref,
            metrics={
                "parameters": prepared.parameters,
                "multiply_adds_per_sample": prepared.multiply_adds_per_sample,
                "kernel_fetch_ms": kernel.latency_ms,
            },
        )
        return Examination(findings, prepared)

    def _entry_gates(
        self,
        order: Order,
        spec: SlotSpec,
        prepared: PreparedSeed,
        sane: ly.GateEvaluated,
        recorded: ly.CommandOutcome | None,
    ) -> tuple[list[ly.GateEvaluated], str]:
        """Return G0 and, of a kernel that passes it, G1 of a rehearsal; or why G1 cannot be measured."""
        if not (sane.passed and is_measured(ly.SEED_GATE_G1_GRADIENT_HEALTH, recorded)):
            return [sane], ""
        evidence = self._bed.rehearsal(order.seed_id, spec, prepared)
        if evidence is None:
            return [sane], unavailable(ly.SEED_GATE_G1_GRADIENT_HEALTH)
        return [sane, gradient_gate(evidence, self._config.limits)], ""

    def _refused(self, order: Order, spec: SlotSpec, kernel: FetchedKernel, refusal: str) -> Findings:
        """Try out in quarantine what may not be grafted; without the kernel's bytes there is only the refusal."""
        digest = kernel.artifact_ref
        if kernel.artifact is None:
            return Findings(problem=REFUSED + refusal, kernel_digest=digest)
        seed = derive_seed(self._seed, "kasmina", "quarantine", order.seed_id)
        event = hold_trial(kernel, self._bed.slot_batch(spec), seed=seed, limits=self._config.quarantine)
        event.figures["fetch_ms"] = kernel.latency_ms
        logger.warning("%s is not grafted (%s): %s", order.blueprint_id, refusal, event.detail)
        return Findings(problem=reason_of(event.verdict), kernel_digest=digest, quarantined=event)

    def _fetch(self, request: ly.KernelRequestSpec, recorded: ly.CommandOutcome | None) -> FetchedKernel | str:
        """Return the kernel, or the reason for which there is none."""
        if recorded is not None:
            return self._recorded_kernel(recorded)
        try:
            with self._bed.apart():
                return self._house.fetch(request)
        except KernelUnavailable as error:
            logger.warning("no kernel for %s: %s", request.blueprint_id, error)
            return KERNEL_UNAVAILABLE + error.reason
        except UsageError as error:
            logger.warning("nobody can make a kernel for %s: %s", request.blueprint_id, error)
            return KERNEL_UNAVAILABLE + "unusable_request"
        except IntegrityError as error:
            logger.error("the kernel for %s was refused: %s", request.blueprint_id, error)  # noqa: TRY400 - no traceback needed
            return KERNEL_UNAVAILABLE + "integrity"

    def _recorded_kernel(self, recorded: ly.CommandOutcome) -> FetchedKernel | str:
        if recorded.reason.startswith(KERNEL_UNAVAILABLE):
            return recorded.reason
        if not recorded.kernel_digest:
            raise IntegrityError(
                f"epoch {recorded.epoch} of run {recorded.run_id!r} does not re-execute as recorded",
                cause="a kernel is needed now, and its outcome names none",
                next_step="compare the numerics fingerprints of both attempts",
            )
        with self._bed.apart():
            return self._runtime.fetch_by_digest(recorded.kernel_digest)

    def body_of(self, kernel_digest: str) -> nn.Module:
        """Return a kernel's module as it was grafted once; draws nothing from the host's random streams.

        Raises:
            KernelUnavailable: no store holds it any more.
            IntegrityError: what is stored is another, or may not be built.
        """
        with self._bed.apart():
            return _module_of(self._runtime.fetch_by_digest(kernel_digest))

    def _held_out(self, seed_id: str, epoch: int) -> HeldOutLosses | None:
        """Return the seed's losses at this very epoch; None where nothing can measure them."""
        live = self._bed.live[seed_id]
        if live.held_out is None or live.held_out.epoch != epoch:
            live.held_out = None  # An older measurement must not stand in for one that cannot be made now.
            self._bed.measure([seed_id], epoch=epoch)
        return live.held_out

    def _stabilising(self, order: Order, alpha: float, recorded: ly.CommandOutcome | None) -> Findings:
        if alpha != 1.0:
            return Findings(problem="alpha_below_one", alpha=alpha)
        if not is_measured(ly.SEED_GATE_G3_INTERFACE, recorded):
            return Findings(alpha=alpha)
        evidence = self._bed.interface(order.seed_id)
        if evidence is None:
            return _unavailable(ly.SEED_GATE_G3_INTERFACE, alpha=alpha)
        metrics = {"interface_latency_ms": evidence.latency_ms}
        return Findings(gates=[interface_gate(evidence)], alpha=alpha, metrics=metrics)

    def _grafting(self, order: Order, epoch: int, steps_per_epoch: int, recorded: ly.CommandOutcome | None) -> Findings:
        losses = self._held_out(order.seed_id, epoch)
        if losses is None:
            return _unavailable(ly.SEED_GATE_G2_STABILITY, alpha=0.0)
        evidence = StabilityEvidence(
            epoch_losses=self._bed.live[order.seed_id].trainer.shadow.epoch_losses,
            loss_seed_on=losses.seed_on,
            loss_seed_off=losses.seed_off,
        )
        steps = order.parameters.get(BLEND_STEPS)
        if steps is None:
            steps = self._config.blend_steps_at(steps_per_epoch, epochs=order.parameters.get(BLEND_EPOCHS))
        gates = [stability_gate(evidence, self._config.limits)]
        if is_measured(ly.SEED_GATE_G1_GRADIENT_HEALTH, recorded):
            gates.insert(0, gradient_gate(self._bed.gradient_evidence(order.seed_id), self._config.limits))
        return Findings(gates=gates, metrics={**_loss_metrics(losses), BLEND_STEPS: max(1.0, round(steps))})

    def _impact(self, seed_id: str, epoch: int, alpha: float) -> Findings:
        losses = self._held_out(seed_id, epoch)
        if losses is None:
            return _unavailable(ly.SEED_GATE_G4_SYSTEM_IMPACT, alpha=alpha)
        gate = impact_gate(ImpactEvidence(losses.seed_on, losses.seed_off), self._config.limits)
        return Findings(gates=[gate], alpha=alpha, metrics=_loss_metrics(losses))


def _recorded_refusal(recorded: ly.CommandOutcome) -> Findings:
    """Return what a recorded rejection said; nothing of such a kernel runs again."""
    return Findings(problem=recorded.reason, kernel_digest=recorded.kernel_digest, quarantined=recorded_event(recorded))


def _module_of(kernel: FetchedKernel) -> nn.Module:
    if kernel.module is None:
        raise IntegrityError(
            f"kernel {kernel.artifact_ref} has no module",
            cause=f"whoever fetched it refused to build it: {kernel.refusal or 'no reason given'}",
            next_step="`esper blueprints show` says what holds for its blueprint",
        )
    return kernel.module


def _unavailable(gate: ly.SeedLifecycleGate, *, alpha: float) -> Findings:
    return Findings(problem=unavailable(gate), alpha=alpha)


def _loss_metrics(losses: HeldOutLosses) -> dict[str, float]:
    return {"loss_seed_on": losses.seed_on, "loss_seed_off": losses.seed_off}
