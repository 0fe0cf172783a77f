"""Gathers what the gates of an order look at; for a germination it fetches the kernel and tries it out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from esper.core.errors import IntegrityError, UsageError
from esper.core.ports import BlueprintRuntime, FetchedKernel, KernelUnavailable
from esper.core.rng import derive_seed
from esper.kasmina._config import KasminaConfig
from esper.kasmina.bed._bed import SeedBed
from esper.kasmina.bed._bench import PreparedSeed
from esper.kasmina.bed._quarantine import QUARANTINED, REFUSED, hold_trial, reason_of, recorded_event, refusal_of
from esper.kasmina.gates._gates import (
    SanityEvidence,
    sanity_gate,
)
from esper.kasmina.grafting._slots import SlotSpec
from esper.kasmina.household._household import HOUSE_REASONS, Household
from esper.kasmina.lifecycle._decide import KERNEL_UNAVAILABLE, Findings, is_measured
from esper.kasmina.lifecycle._lifecycle import KasminaLifecycle
from esper.kasmina.lifecycle._orders import Order
from esper.kasmina.manager._move_examiner import ISOLATION_OPEN, MoveExaminer
from esper.leyline import messages as ly

logger = logging.getLogger("esper.kasmina")


@dataclass(frozen=True)
class Examination:
    """What was found for an order; for a germination also the seed, made ready but not yet planted."""

    findings: Findings
    prepared: PreparedSeed | None = None


class Examiner(MoveExaminer):
    """Examines germinations as well: fetches the kernel, tries it out."""

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
        super().__init__(bed, config=config)
        self._seed = seed
        self._runtime = runtime
        self._house = house
        self._slots = slots
        self._descriptors = descriptors

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
        return Examination(self._move(order, epoch=epoch, steps_per_epoch=steps_per_epoch, recorded=recorded))

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
        """Return G0 and, of a kernel that passes it and is to train, G1 of a rehearsal; or why G1 is not measured."""
        held = ly.SEED_STAGE_TRAINING not in order.path
        if held or not (sane.passed and is_measured(ly.SEED_GATE_G1_GRADIENT_HEALTH, recorded)):
            return [sane], ""
        rehearsed = self._rehearsed(order.seed_id, spec, prepared)
        return ([sane], rehearsed) if isinstance(rehearsed, str) else ([sane, rehearsed], "")

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
