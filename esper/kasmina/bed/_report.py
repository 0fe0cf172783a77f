"""A live seed as a state packet shows it."""

from __future__ import annotations

from esper.kasmina.bed._bench import HeldOutLosses, LiveSeed
from esper.kasmina.bed._seed_training import ShadowRecord
from esper.kasmina.gates._gates import relative_trend
from esper.kasmina.grafting._slots import SlotSpec
from esper.kasmina.lifecycle._lifecycle import FOLDED, SeedRecord
from esper.leyline import messages as ly


def seed_state(record: SeedRecord, spec: SlotSpec, live: LiveSeed | None, *, epoch: int, risk: float) -> ly.SeedState:
    """Return the seed's state after `epoch`; `live` is None for one that was folded into the host's weights.

    Figures that nothing has measured yet are absent, never zero.
    """
    state = ly.SeedState(
        seed_id=record.seed_id,
        stage=record.stage,
        layer_depth=spec.depth,
        age_epochs=epoch - record.germinated_epoch,
        risk_score=risk,
        slot=record.slot,
        blueprint_id=record.blueprint_id,
        alpha=1.0,
        stage_epochs=epoch - record.stage_epoch,
    )
    if live is None:
        state.metrics[FOLDED] = 1.0
        return state
    state.metrics.update(_metrics(live))
    state.alpha = live.seed.alpha
    state.learning_rate = live.trainer.learning_rate if live.trainer.optimizer is not None else 0.0
    norm = live.trainer.gradient_norm
    if norm is not None:
        state.gradient_norm = norm
    return state


def _metrics(live: LiveSeed) -> dict[str, float]:
    metrics = seed_metrics(
        parameters=live.parameters,
        multiply_adds_per_sample=live.multiply_adds_per_sample,
        steps=live.trainer.steps,
        shadow=live.trainer.shadow,
        held_out=live.held_out,
    )
    if live.trainer.rate_factor != 1.0:
        metrics["rate_factor"] = live.trainer.rate_factor
    return metrics


def seed_metrics(
    *, parameters: int, multiply_adds_per_sample: int, steps: int, shadow: ShadowRecord, held_out: HeldOutLosses | None
) -> dict[str, float]:
    """Return the figures of a seed that policies and gates go by, under the names of the contract."""
    metrics: dict[str, float] = {
        "parameters": parameters,
        "multiply_adds_per_sample": multiply_adds_per_sample,
        "optimizer_steps": steps,
        "shadow_steps": shadow.steps,
        "training_epochs": len(shadow.epoch_losses),
    }
    losses = shadow.epoch_losses
    if losses:
        metrics["shadow_loss_first"], metrics["shadow_loss"] = losses[0], losses[-1]
    if len(losses) > 1:
        metrics["shadow_loss_trend"] = relative_trend(losses)
    if held_out is not None:
        metrics["host_loss"] = held_out.host
        metrics["loss_seed_on"] = held_out.seed_on
        metrics["loss_seed_off"] = held_out.seed_off
        metrics["loss_gain"] = held_out.seed_off - held_out.seed_on
    return metrics
