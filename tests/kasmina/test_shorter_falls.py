"""A fall can be shortened: a seed that was told to go slowly keeps its slot no longer than somebody wants."""

from __future__ import annotations

import pytest
import torch

from esper.kasmina import KasminaConfig, KasminaLifecycle
from esper.kasmina.lifecycle._leaving import FALL_NOT_SHORTER
from esper.kasmina.lifecycle._lifecycle import SeedRecord
from esper.kasmina.lifecycle._orders import Order, Refusal, read_command
from esper.kasmina.testing import InMemoryRuntime
from esper.leyline import messages as ly
from tests.kasmina.reborn import reborn
from tests.kasmina.support import FACTORIES, Loop, all_bytes, mlp, seed_command, seeded
from tests.kasmina.test_operations import WIDE, mlp_apart

CONFIG = KasminaConfig(warmup_steps=5, blend_epochs=1.0, limits=WIDE, embargo_epochs=2)
RUNTIME = InMemoryRuntime(FACTORIES)
CULL = ly.SEED_OP_CULL


def falling() -> Loop:
    """Return a loop with a seed that falls for 10,000 epochs, one of which is over."""
    torch.manual_seed(5)
    loop = Loop(seeded(mlp), ["1"], config=CONFIG, runtime=RUNTIME)
    loop.grow("1", ly.SEED_STAGE_SHADOWING)
    loop.train_epoch(4)
    assert loop.order(CULL, seed_id="1.1", parameters={"fall_epochs": 1e4}).result == ly.COMMAND_RESULT_APPLIED
    loop.train_epoch(4)
    return loop


def test_a_second_cull_shortens_the_fall() -> None:
    """Goal: alpha goes on from where it is, and the slot is free soon. Method: 40,000 steps become three."""
    loop = falling()
    alpha = loop.manager._bed.live["1.1"].seed.alpha
    assert 0.9 < alpha <= 1.0
    decision = loop.order(CULL, seed_id="1.1", parameters={"fall_steps": 3.0})
    assert (decision.result, dict(decision.choices)) == (ly.COMMAND_RESULT_APPLIED, {"fall_steps": 3.0})
    seen = [alpha]
    for _ in range(3):
        loop.step()
        seen.append(loop.manager._bed.live["1.1"].seed.alpha)
    assert seen == sorted(seen, reverse=True)
    assert (seen[1] > 0.0, seen[-1]) == (True, 0.0)
    (taken_off,) = loop.train_epoch(1)
    assert (taken_off.to_stage, taken_off.reason) == (ly.SEED_STAGE_EMBARGOED, "faded_out")  # type: ignore[attr-defined]  # a move


def test_a_second_cull_takes_off_at_once() -> None:
    """Goal: 0 steps are no fall. Method: the move that the log holds, and the host without a seed."""
    loop = falling()
    (move,) = loop.order(CULL, seed_id="1.1", parameters={"fall_steps": 0.0}).events
    assert (move.from_stage, move.to_stage) == (ly.SEED_STAGE_CULLED, ly.SEED_STAGE_EMBARGOED)  # type: ignore[attr-defined]  # a move
    assert not loop.manager._bed.live


@pytest.mark.parametrize("parameters", [{"fall_epochs": 1e4}, {"fall_steps": 39_996.0}])
def test_no_fall_is_made_longer(parameters: dict[str, float]) -> None:
    """Goal: a CULL never lets a seed stay. Method: ask for as many steps as are left, and for more."""
    loop = falling()
    before = loop.manager._bed.live["1.1"].seed.alpha
    decision = loop.order(CULL, seed_id="1.1", parameters=parameters)
    assert (decision.result, decision.reason) == (ly.COMMAND_RESULT_REJECTED, FALL_NOT_SHORTER)
    assert loop.manager._bed.live["1.1"].seed.alpha == before
    loop.train_epoch(4)
    assert loop.order(CULL, seed_id="1.1", parameters={"fall_steps": 39_991.0}).result == ly.COMMAND_RESULT_APPLIED


SCRIPT = [None, {"fall_epochs": 3.0}, {"fall_epochs": 9.0}, {"fall_steps": 2.0}, None, None]
EPOCH = 4


def grown() -> Loop:
    """Return a loop with a seed that is heard."""
    torch.manual_seed(11)
    loop = Loop(seeded(mlp), ["1"], config=CONFIG, runtime=RUNTIME)
    loop.grow("1", ly.SEED_STAGE_SHADOWING)
    return loop


def ordered(loop: Loop, index: int) -> None:
    """Give the script's order at the present edge."""
    if SCRIPT[index] is not None:
        loop.order(CULL, seed_id="1.1", parameters=SCRIPT[index])


@pytest.fixture(scope="module")
def recorded() -> tuple[Loop, list[dict[str, bytes]]]:
    """A run of the script, with its network at every edge."""
    loop, seen = grown(), []
    for index in range(len(SCRIPT)):
        loop.train_epoch(EPOCH)
        seen.append(all_bytes(loop.model))
        ordered(loop, index)
    assert [outcome.reason for outcome in loop.outcomes[-3:]] == ["", FALL_NOT_SHORTER, ""]
    assert loop.manager.lifecycle.stage_of("1.1") == ly.SEED_STAGE_EMBARGOED
    return loop, seen


def test_a_shortened_fall_is_computed_again(recorded: tuple[Loop, list[dict[str, bytes]]]) -> None:
    """Goal: a run is a function of its outcomes, falls that were shortened or not included. Method: outcomes alone."""
    (first, seen), again = recorded, grown()
    outcomes = iter(first.outcomes[-3:])
    for index, network in enumerate(seen):
        again.train_epoch(EPOCH)
        assert all_bytes(again.model) == network, index
        if SCRIPT[index] is not None:
            for event in again.manager.decide(None, epoch=again.epoch, recorded=next(outcomes)).events:
                again.log.append(event)
                again.manager.fold(event)
    assert [event.meta.event_id for event in again.log] == [event.meta.event_id for event in first.log]
    assert first.manager.lifecycle == again.manager.lifecycle


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_shortened_fall_goes_on_from_a_checkpoint(recorded: tuple[Loop, list[dict[str, bytes]]], stop: int) -> None:
    """Goal: a fall is in the checkpoint. Method: leave the process, go on from bytes, compare."""
    seen, loop = recorded[1], grown()
    for index, network in enumerate(seen):
        loop.train_epoch(EPOCH)
        if index == stop:
            loop = reborn(loop, mlp_apart, config=CONFIG, runtime=RUNTIME)
        assert all_bytes(loop.model) == network, index
        ordered(loop, index)


def test_what_older_rules_said_stands_in_a_record() -> None:
    """Goal: recorded runs re-execute. Method: outcomes of a time without shorter falls and with wider bounds."""
    held = SeedRecord("1.1", "1", "BYPASS", ly.SEED_STAGE_CULLED, germinated_epoch=1, stage_epoch=5)
    lifecycle = KasminaLifecycle(seeds={"1.1": held})
    command = seed_command(CULL, epoch=9, seed_id="1.1")
    now = read_command(command, lifecycle, epoch=9)
    assert isinstance(now, Order)
    assert now.path == (ly.SEED_STAGE_EMBARGOED,)
    refused = "illegal_transition:SEED_STAGE_CULLED->SEED_STAGE_CULLED"
    then = read_command(command, lifecycle, epoch=9, recorded=ly.CommandOutcome(reason=refused))
    assert isinstance(then, Refusal)
    assert then.reason == refused
    heard = KasminaLifecycle(seeds={"1.1": SeedRecord("1.1", "1", "BYPASS", ly.SEED_STAGE_BLENDING, 1, 5)})
    long = seed_command(CULL, epoch=9, seed_id="1.1", parameters={"fall_epochs": 1e8})
    assert isinstance(read_command(long, heard, epoch=9), Refusal)
    assert isinstance(read_command(long, heard, epoch=9, recorded=ly.CommandOutcome()), Order)
