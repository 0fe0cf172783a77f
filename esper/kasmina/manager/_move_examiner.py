"""Gathers what the gates of a seed's moves look at: measures losses and gradients, reads alpha, tries a fold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from esper.kasmina._config import KasminaConfig
from esper.kasmina.bed._bed import SeedBed
from esper.kasmina.bed._bench import HeldOutLosses, PreparedSeed
from esper.kasmina.gates._gates import ImpactEvidence, StabilityEvidence, impact_gate, pruning_gate, stability_gate
from esper.kasmina.gates._gradients import gradient_gate
from esper.kasmina.gates._interface import interface_gate
from esper.kasmina.grafting._alpha import CURVE_WORDS
from esper.kasmina.grafting._folding import TOLERANCE
from esper.kasmina.grafting._slots import SlotSpec
from esper.kasmina.lifecycle._decide import Findings, is_measured, unavailable
from esper.kasmina.lifecycle._leaving import leaving
from esper.kasmina.lifecycle._lifecycle import FALL_STEPS, FOLDED
from esper.kasmina.lifecycle._orders import BLEND_EPOCHS, BLEND_STEPS, FALL_EPOCHS, FOLD, Order
from esper.leyline import messages as ly

logger = logging.getLogger("esper.kasmina")

#: Why nothing germinates or begins to train while the breaker of the isolation monitor is open.
ISOLATION_OPEN = "breaker_open:isolation"
#: Metric of a move to FOSSILIZED: the largest difference that folding would make, or made, to the host's outputs.
FOLD_ERROR = "fold_error"

Recorded = ly.CommandOutcome | None


class MoveExaminer:
    """Measures for moves of seeds that are on the host; it judges nothing itself and leaves the host as it was."""

    def __init__(self, bed: SeedBed, *, config: KasminaConfig) -> None:
        self._bed = bed
        self._config = config

    def _move(self, order: Order, *, epoch: int, steps_per_epoch: int, recorded: Recorded) -> Findings:
        alpha = self._bed.live[order.seed_id].seed.alpha
        by_operation: Mapping[ly.SeedOperation, Callable[[], Findings]] = {
            ly.SEED_OP_START_TRAINING: lambda: self._training(order),
            ly.SEED_OP_START_GRAFTING: lambda: self._grafting(order, epoch, steps_per_epoch, recorded),
            ly.SEED_OP_STABILIZE: lambda: self._stabilising(order, alpha, recorded),
            ly.SEED_OP_EVALUATE: lambda: self._impact(order.seed_id, epoch, alpha),
            ly.SEED_OP_FINE_TUNE: lambda: self._tuning(order, alpha),
            ly.SEED_OP_FOSSILIZE: lambda: self._fossilising(order, epoch, alpha, recorded),
            ly.SEED_OP_CULL: lambda: self._culling(order, steps_per_epoch, alpha, recorded),
            ly.SEED_OP_CANCEL: lambda: self._culling(order, steps_per_epoch, alpha, recorded),
        }
        return by_operation[order.operation]()

    def pruning(self, order: Order, epoch: int, *, rise_max: float | None) -> Findings:
        """Return what taking a fossilised seed off would do to the held-out loss; `rise_max` may only be stricter."""
        losses = self._held_out(order.seed_id, epoch)
        if losses is None:
            return _unavailable(ly.SEED_GATE_G4_SYSTEM_IMPACT, alpha=1.0)
        limit = self._config.limits.prune_rise_max
        limit = limit if rise_max is None else min(limit, rise_max)
        gate = pruning_gate(ImpactEvidence(losses.seed_on, losses.seed_off), limit)
        return Findings(gates=[gate], alpha=1.0, metrics=_loss_metrics(losses))

    def _rehearsed(self, seed_id: str, spec: SlotSpec, prepared: PreparedSeed) -> ly.GateEvaluated | str:
        """Return G1 of a rehearsal, or why there is none."""
        evidence = self._bed.rehearsal(seed_id, spec, prepared)
        if evidence is None:
            return unavailable(ly.SEED_GATE_G1_GRADIENT_HEALTH)
        return gradient_gate(evidence, self._config.limits)

    def _training(self, order: Order) -> Findings:
        if not self._bed.monitor.allows:
            return Findings(problem=ISOLATION_OPEN)
        rehearsed = self._rehearsed(order.seed_id, *self._bed.prepared_again(order.seed_id))
        return Findings(problem=rehearsed) if isinstance(rehearsed, str) else Findings(gates=[rehearsed])

    def _tuning(self, order: Order, alpha: float) -> Findings:
        trained = self._bed.live[order.seed_id].trainer.optimizer is not None
        return Findings(problem="" if trained else "nothing_to_tune", alpha=alpha)

    def _held_out(self, seed_id: str, epoch: int) -> HeldOutLosses | None:
        """Return the seed's losses at this very epoch; None where nothing can measure them."""
        live = self._bed.live[seed_id]
        if live.held_out is None or live.held_out.epoch != epoch:
            live.held_out = None  # An older measurement must not stand in for one that cannot be made now.
            self._bed.measure([seed_id], epoch=epoch)
        return live.held_out

    def _stabilising(self, order: Order, alpha: float, recorded: Recorded) -> Findings:
        if alpha != 1.0:
            return Findings(problem="alpha_below_one", alpha=alpha)
        if not is_measured(ly.SEED_GATE_G3_INTERFACE, recorded):
            return Findings(alpha=alpha)
        evidence = self._bed.interface(order.seed_id)
        if evidence is None:
            return _unavailable(ly.SEED_GATE_G3_INTERFACE, alpha=alpha)
        metrics = {"interface_latency_ms": evidence.latency_ms}
        return Findings(gates=[interface_gate(evidence)], alpha=alpha, metrics=metrics)

    def _grafting(self, order: Order, epoch: int, steps_per_epoch: int, recorded: Recorded) -> Findings:
        mode = order.blend_mode or ly.BLEND_MODE_RESIDUAL
        losses = self._held_out(order.seed_id, epoch)
        if mode == ly.BLEND_MODE_CONVEX:  # The shadow pass heard the seed beside its module, not instead of it.
            losses = self._bed.losses_instead(order.seed_id, epoch)
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
        return Findings(
            gates=gates,
            metrics={**_loss_metrics(losses), BLEND_STEPS: max(1.0, round(steps))},
            blend_mode=mode,
            alpha_curve=order.alpha_curve or CURVE_WORDS[self._config.alpha_curve],
        )

    def _impact(self, seed_id: str, epoch: int, alpha: float) -> Findings:
        losses = self._held_out(seed_id, epoch)
        if losses is None:
            return _unavailable(ly.SEED_GATE_G4_SYSTEM_IMPACT, alpha=alpha)
        gate = impact_gate(ImpactEvidence(losses.seed_on, losses.seed_off), self._config.limits)
        return Findings(gates=[gate], alpha=alpha, metrics=_loss_metrics(losses))

    def _fossilising(self, order: Order, epoch: int, alpha: float, recorded: Recorded) -> Findings:
        found = self._impact(order.seed_id, epoch, alpha)
        if found.problem or not all(gate.passed for gate in found.gates):
            return found
        wanted = self._config.fold and order.parameters.get(FOLD, 1.0) >= 1.0
        if recorded is not None and FOLDED not in recorded.choices:
            wanted = False  # Of a time when no seed was folded.
        error = self._fold_error(order.seed_id) if wanted else None
        folded = float(error is not None and error <= TOLERANCE)
        measured = {} if error is None else {FOLD_ERROR: error}
        choices = {} if recorded is not None and FOLDED not in recorded.choices else {FOLDED: folded}
        return replace(found, metrics={**found.metrics, **measured, FOLDED: folded}, choices=choices)

    def _fold_error(self, seed_id: str) -> float | None:
        """Return what folding would change of the host's outputs; None where the seed cannot be folded."""
        fold = self._bed.fold_of(seed_id)
        if isinstance(fold, str):
            logger.info("seed %s stays a module of its own: %s", seed_id, fold)
            return None
        error = self._bed.fold_error(seed_id, fold)
        logger.info("folding seed %s would change the host's outputs by %s", seed_id, error)
        return error

    def _culling(self, order: Order, steps_per_epoch: int, alpha: float, recorded: Recorded) -> Findings:
        """Return whether the seed falls or goes at once: who is not heard has nothing to fall from."""
        if not order.path:
            return Findings(alpha=alpha)
        steps, wished, seed = 0, order.parameters, self._bed.live[order.seed_id].seed
        if seed.heard:
            steps = self._config.fall_steps_at(
                steps_per_epoch, steps=wished.get(FALL_STEPS), epochs=wished.get(FALL_EPOCHS)
            )
        left = 0 if seed.blender is None else seed.blender.steps_left
        return leaving(order, recorded, alpha=alpha, wished=steps, left=left)


def _unavailable(gate: ly.SeedLifecycleGate, *, alpha: float) -> Findings:
    return Findings(problem=unavailable(gate), alpha=alpha)


def _loss_metrics(losses: HeldOutLosses) -> dict[str, float]:
    return {"loss_seed_on": losses.seed_on, "loss_seed_off": losses.seed_off}
