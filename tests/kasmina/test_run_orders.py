"""Orders about growth as a whole: pause and resume, the breaker, and the emergency."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch

from esper.core.checkpoint import Saved, read_checkpoint, write_checkpoint
from esper.core.ports import EdgeDecision
from esper.kasmina import GateLimits, KasminaConfig
from esper.kasmina.testing import InMemoryRuntime
from esper.leyline import messages as ly
from tests.kasmina.support import FACTORIES, Loop, all_bytes, batch, mlp, seeded

CONFIG = KasminaConfig(
    warmup_steps=2,
    blend_epochs=4.0,
    limits=GateLimits(training_epochs_min=1, shadow_loss_rise_max=99.0, gain_min=-99.0),
)


def growing(stage: ly.SeedLifecycleStage = ly.SEED_STAGE_TRAINING) -> Loop:
    """Return a loop around the MLP host with a seed in `stage` in slot 1."""
    loop = Loop(seeded(mlp), ["1", "2"], config=CONFIG)
    loop.train_epoch(3)
    loop.grow("1", stage, steps=3)
    return loop


def told(loop: Loop, kind: ly.CommandType, *, operator: bool = True, **payload: object) -> EdgeDecision:
    """Train an epoch and give a command of `kind` at its edge."""
    loop.train_epoch(3)
    command = ly.AdaptationCommand(command_id=f"c-{loop.epoch}", command_type=kind, **payload)  # type: ignore[arg-type]
    command.meta.source = "cli" if operator else "tamiyo"
    return loop.manager.handle_command(command, epoch=loop.epoch, append=loop.log.append)


def pause(**fields: object) -> dict[str, ly.CommandPause]:
    return {"pause": ly.CommandPause(**fields)}  # type: ignore[arg-type]


def breaker(state: ly.CircuitBreakerState) -> dict[str, ly.CommandCircuitBreaker]:
    return {"circuit_breaker": ly.CommandCircuitBreaker(desired_state=state)}


def seed_bytes(loop: Loop) -> dict[str, bytes]:
    live = loop.manager._bed.live
    return {seed_id: write_checkpoint(Saved({}, one.seed.state_dict())) for seed_id, one in live.items()}


@pytest.mark.parametrize("stage", [ly.SEED_STAGE_TRAINING, ly.SEED_STAGE_BLENDING], ids=ly.SeedLifecycleStage.Name)
@pytest.mark.parametrize("how", ["pause", "breaker"])
def test_seeds_stand_still_while_the_host_trains_on(stage: ly.SeedLifecycleStage, how: str) -> None:
    """Goal: nothing of a seed moves while growth is held, and it moves again after. Method: weights, alpha and steps
    over two epochs of a pause, and of a breaker that was opened by order; then the order that ends it."""
    loop = growing(stage)
    begin = pause() if how == "pause" else breaker(ly.CIRCUIT_STATE_OPEN)
    end = pause(resume=True) if how == "pause" else breaker(ly.CIRCUIT_STATE_CLOSED)
    kind = ly.COMMAND_PAUSE if how == "pause" else ly.COMMAND_CIRCUIT_BREAKER
    loop.train_epoch(3)
    assert told(loop, kind, **begin).result == ly.COMMAND_RESULT_APPLIED
    (live,) = loop.manager._bed.live.values()
    still, steps, alpha = seed_bytes(loop), live.trainer.steps, live.seed.alpha
    host = all_bytes(loop.model)
    loop.train_epoch(3)
    held = loop.manager.growth()
    assert held is not None
    assert (held.paused, held.breaker_held) == (how == "pause", how == "breaker")
    assert told(loop, kind, **end).result == ly.COMMAND_RESULT_APPLIED
    assert (seed_bytes(loop), live.trainer.steps, live.seed.alpha) == (still, steps, alpha)
    assert all_bytes(loop.model) != host
    loop.train_epoch(3)
    assert seed_bytes(loop) != still
    assert live.trainer.steps > steps
    assert loop.manager.growth() is None


def test_a_pause_of_some_epochs_ends_by_itself() -> None:
    """Goal: `epochs` counts epochs in which seeds stand still. Method: two; steps taken in each of the next four."""
    loop = growing()
    (live,) = loop.manager._bed.live.values()
    told(loop, ly.COMMAND_PAUSE, **pause(epochs=2))
    moved, held = [], []
    for _ in range(4):
        held.append(loop.manager.growth() is not None)
        before = live.trainer.steps
        loop.train_epoch(3)
        moved.append(live.trainer.steps > before)
    assert moved == [False, False, True, True]
    assert held == [True, True, False, False]


@pytest.mark.parametrize(
    ("kind", "payload", "reason"),
    [
        (ly.COMMAND_PAUSE, pause(), "paused"),
        (ly.COMMAND_CIRCUIT_BREAKER, breaker(ly.CIRCUIT_STATE_OPEN), "breaker_open:order"),
        (ly.COMMAND_EMERGENCY, {}, "halted"),
    ],
)
def test_nothing_is_grafted_while_growth_is_held(kind: ly.CommandType, payload: dict[str, object], reason: str) -> None:
    """Goal: no new graft and no move up; taking away is allowed. Method: both orders under each hold."""
    loop = growing()
    told(loop, kind, **payload)
    loop.train_epoch(3)
    assert loop.germinate("2").reason == reason
    loop.train_epoch(3)
    if kind == ly.COMMAND_EMERGENCY:
        return
    assert loop.order(ly.SEED_OP_START_GRAFTING, seed_id="1.1").reason == reason
    loop.train_epoch(3)
    assert loop.order(ly.SEED_OP_CULL, seed_id="1.1").result == ly.COMMAND_RESULT_APPLIED


@pytest.mark.parametrize("open_breaker", [False, True])
def test_an_emergency_takes_every_growing_seed_off_at_once(open_breaker: bool) -> None:
    """Goal: one edge, events, nothing left in memory, no growth until an operator says so; fossils stay. Method: a
    fossil and two growing seeds, with the breaker closed and open; a policy's resume is refused, an operator's not."""
    loop = Loop(seeded(mlp), ["1", "2", "3"], config=replace(CONFIG, blend_epochs=1.0))
    loop.train_epoch(3)
    loop.grow("1", ly.SEED_STAGE_FOSSILIZED, steps=12)
    loop.train_epoch(3)
    loop.grow("2", ly.SEED_STAGE_BLENDING, steps=3)
    loop.train_epoch(3)
    assert loop.germinate("3").result == ly.COMMAND_RESULT_APPLIED
    if open_breaker:
        told(loop, ly.COMMAND_CIRCUIT_BREAKER, **breaker(ly.CIRCUIT_STATE_OPEN))
    watched = [weakref.ref(loop.manager._bed.live[seed_id].seed) for seed_id in ("2.1", "3.1")]
    decision = told(loop, ly.COMMAND_EMERGENCY)
    assert decision.result == ly.COMMAND_RESULT_APPLIED
    moves = [(event.seed_id, event.to_stage, event.reason) for event in decision.events]  # type: ignore[union-attr]
    assert moves == [
        (seed_id, stage, "emergency")
        for seed_id in ("2.1", "3.1")
        for stage in (ly.SEED_STAGE_CULLED, ly.SEED_STAGE_EMBARGOED)
    ]
    assert list(loop.manager._bed.live) == ["1.1"]
    assert [one() for one in watched] == [None, None]
    growth = loop.manager.growth()
    assert growth is not None
    assert growth.halted
    refused = told(loop, ly.COMMAND_PAUSE, operator=False, **pause(resume=True))
    assert refused.reason == "halted:not_an_operator"
    assert told(loop, ly.COMMAND_PAUSE, **pause(resume=True)).result == ly.COMMAND_RESULT_APPLIED
    growth = loop.manager.growth()
    assert (growth is not None and growth.breaker_held) == open_breaker


@pytest.mark.parametrize(
    ("kind", "payload", "reason"),
    [
        (ly.COMMAND_PAUSE, pause(resume=True), "not_paused"),
        (ly.COMMAND_PAUSE, pause(resume=True, epochs=2), "malformed_command:resume_for_epochs"),
        (ly.COMMAND_PAUSE, pause(epochs=2**31), "pause_out_of_bounds:epochs"),
        (ly.COMMAND_PAUSE, breaker(ly.CIRCUIT_STATE_OPEN), "malformed_command:payload"),
        (ly.COMMAND_PAUSE, {"target_seed_id": "1.1"}, "malformed_command:target_seed_id"),
        (ly.COMMAND_CIRCUIT_BREAKER, {}, "malformed_command:no_circuit_breaker"),
        (
            ly.COMMAND_CIRCUIT_BREAKER,
            breaker(ly.CIRCUIT_STATE_HALF_OPEN),
            "illegal_breaker_state:CIRCUIT_STATE_HALF_OPEN",
        ),
        (ly.COMMAND_CIRCUIT_BREAKER, breaker(9), "illegal_breaker_state:9"),  # type: ignore[arg-type]
        (ly.COMMAND_EMERGENCY, pause(), "malformed_command:payload"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_reason(
    kind: ly.CommandType, payload: dict[str, object], reason: str
) -> None:
    """Goal: a refused order changes nothing. Method: each malformed order; growth and the next step are as before."""
    loop = growing()
    decision = told(loop, kind, **payload)
    assert (decision.result, decision.reason) == (ly.COMMAND_RESULT_REJECTED, reason)
    assert list(decision.events) == []
    assert loop.manager.growth() is None


def test_closing_by_order_closes_the_isolation_breaker_too() -> None:
    """Goal: one breaker for an operator. Method: breaches open it; the order closes it at once."""
    loop = growing()
    manager = loop.manager
    for _ in range(3):
        manager.before_step()
        with torch.no_grad():
            next(iter(manager._bed.live["1.1"].seed.parameters())).add_(1e-6)
        manager.after_step(*batch(77))
    assert not manager._bed.monitor.allows
    told(loop, ly.COMMAND_CIRCUIT_BREAKER, **breaker(ly.CIRCUIT_STATE_CLOSED))
    assert manager._bed.monitor.allows
    assert manager.growth() is None


def test_what_holds_growth_survives_a_checkpoint() -> None:
    """Goal: a successor holds what was held. Method: each hold, through the bytes of a checkpoint."""
    loop = growing()
    told(loop, ly.COMMAND_PAUSE, **pause(epochs=7))
    told(loop, ly.COMMAND_CIRCUIT_BREAKER, **breaker(ly.CIRCUIT_STATE_OPEN))
    told(loop, ly.COMMAND_EMERGENCY)
    content = write_checkpoint(loop.manager.checkpoint())
    other = Loop(seeded(mlp), ["1", "2"], config=CONFIG, runtime=InMemoryRuntime(FACTORIES))
    other.manager.restore(read_checkpoint(content))
    assert other.manager._growth == loop.manager._growth
    assert other.manager.growth() == loop.manager.growth()
    assert write_checkpoint(other.manager.checkpoint()) == content
