"""State packets of 1 KiB, as the run of a small network with two seeds appends one after every epoch."""

from __future__ import annotations

import math
from typing import Final

from esper.leyline import messages as ly

#: Topic of the packets, and the one source that may write them.
TOPIC: Final = "system-state"
SOURCE: Final = "tolaria"
#: Runs that train at a time; their packets lie in several partitions.
_RUNS: Final = 16


def packets(count: int, *, first: int = 1, runs: int = _RUNS) -> list[ly.SystemStatePacket]:
    """Return `count` packets of `runs` runs in turn, none of them published yet."""
    return [state_packet(f"run-{number % runs:012x}", number // runs) for number in range(first, first + count)]


def state_packet(run_id: str, epoch: int) -> ly.SystemStatePacket:
    """Return the packet of one epoch; with the meta that a publisher fills in, it has about 1,024 bytes."""
    loss = 2.3 * math.exp(-epoch / 1e4)
    return ly.SystemStatePacket(
        version=1,
        training_run_id=run_id,
        attempt=1,
        current_epoch=epoch,
        epochs_planned=1_000_000,
        global_step=63 * epoch,
        training_loss=loss,
        validation_loss=1.1 * loss,
        validation_accuracy=1.0 - loss / 3,
        training_metrics={"training_accuracy": 0.91, "gradient_norm": 0.3 * loss, "learning_rate": 1e-3},
        seed_states=[_seed("blocks.1", epoch, loss), _seed("blocks.2", epoch, loss)],
        slots=[_slot("blocks.1", 1), _slot("blocks.2", 2)],
        hardware_context=ly.HardwareContext(device_type="cpu", device_id="cpu", total_memory_gb=23.0),
        weights_digest="5e" * 32,
        policy="heuristic",
        parameters=12_470,
        multiply_adds=37_000_000 * epoch,
        multiply_adds_per_sample=12_000,
        task="mnist1d",
        host="mlp",
        seed=7,
    )


def _seed(slot: str, epoch: int, loss: float) -> ly.SeedState:
    metrics = {
        "parameters": 3_280.0,
        "optimizer_steps": 63.0 * epoch,
        "training_epochs": float(epoch),
        "shadow_loss_first": 2.3,
        "shadow_loss": loss,
        "shadow_loss_trend": -0.01,
    }
    return ly.SeedState(
        seed_id=f"{slot}-seed-1",
        stage=ly.SEED_STAGE_TRAINING,
        gradient_norm=0.2 * loss,
        learning_rate=1e-3,
        layer_depth=1,
        metrics=metrics,
        age_epochs=epoch,
        risk_score=0.1,
        slot=slot,
        blueprint_id="BP003",
        stage_epochs=epoch,
    )


def _slot(name: str, depth: int) -> ly.SlotState:
    return ly.SlotState(
        slot=name,
        module=name,
        placement="branch",
        layout="vector",
        in_shape=[100],
        out_shape=[100],
        seed_id=f"{name}-seed-1",
        layer_depth=depth,
    )
