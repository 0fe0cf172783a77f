"""A second block on a model that an earlier one grew: its seeds stand beside the earlier ones."""

from __future__ import annotations

import copy

import torch
from torch import nn

from esper.leyline import messages as ly
from tests.weatherlight.loops import OwnLoop, grower, order, perceptron, train_on


def grown(loop: OwnLoop, stage: ly.SeedStage) -> OwnLoop:
    """Train until the loop's only seed has come to `stage`."""
    for _ in range(16):
        loop.epoch()
        if loop.stages == [stage]:
            break
    assert loop.stages == [stage], [outcome.reason for outcome in loop.side.record.outcomes]
    return loop


def once() -> OwnLoop:
    """Return a loop that ended with a fossil on its model."""
    loop = grown(OwnLoop(perceptron(), grower()), ly.SEED_STAGE_FOSSILIZED)
    loop.end()
    return loop


def grown_names(model: nn.Module) -> set[str]:
    """Return the names of what seeds are on the model."""
    return {name for name, _ in model.named_modules() if name.rpartition(".")[2].startswith("esper_")}


def test_a_second_block_grows_on_what_the_first_left() -> None:
    """Goal: a model may be grown again. Method: fossilise in one block, then in another one on the same slot, and blend
    in a third; names follow from the model alone, saved weights load into a copy, and nothing is counted a breach.
    """
    first = once()
    model, (name,) = first.model, grown_names(first.model)
    for count, stage in ((2, ly.SEED_STAGE_FOSSILIZED), (3, ly.SEED_STAGE_BLENDING)):
        again = OwnLoop(model, grower(until=stage), optimizer=first.optimizer)
        again.steps = 1_000
        grown(again, stage)
        again.epoch()  # A seed is heard from its first joint step on; one that is not goes with its block.
        again.end()
        assert again.violations == 0.0
        assert grown_names(model) == {name, f"{name}__2", f"{name}__3"} - ({f"{name}__3"} if count == 2 else set())
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    inputs = torch.randn(4, 12)
    assert torch.equal(model.eval()(inputs), twin.eval()(inputs))


def test_what_seeds_left_is_no_slot() -> None:
    """Goal: "auto" finds the slots of the model, not those of its seeds. Method: before and after a first block."""
    fresh, again = OwnLoop(perceptron(), slots="auto"), OwnLoop(once().model, slots="auto")
    for loop in (fresh, again):
        loop.epoch(2)
    assert [slot.slot for slot in again.side.record.packets[0].slots] == ["0", "1"]
    assert [slot.slot for slot in fresh.side.record.packets[0].slots] == ["0", "1"]


class CullThenReturn:
    """Culls a seed that blends, and three edges later returns to a state in which it was culled already."""

    def __init__(self) -> None:
        self.culled_at = 0

    def __call__(self, packet: ly.SystemStatePacket) -> ly.AdaptationCommand:
        epoch, seeds = packet.current_epoch, packet.seed_states
        if self.culled_at:
            command = train_on(packet)
            if epoch == self.culled_at + 3:
                command.command_type = ly.COMMAND_ROLLBACK
                command.rollback_payload.update({"to_epoch": epoch - 1.0})
            return command
        if not seeds or seeds[-1].stage != ly.SEED_STAGE_BLENDING:
            return grower()(packet)
        self.culled_at = epoch
        return order(packet, ly.SEED_OP_CULL, seed_id=seeds[-1].seed_id, parameters={"fall_steps": 0.0})


def test_a_culled_seed_of_a_second_block_is_reset_after_a_return() -> None:
    """Goal: gate G5 looks for the second block's seed, not for the first's. Method: cull it, return to a state in which
    it was culled, so that only its name can be looked for, and wait for its slot."""
    first, policy = once(), CullThenReturn()
    again = OwnLoop(first.model, policy, optimizer=first.optimizer, returns=True)
    while not policy.culled_at:
        again.epoch()
    returned = [again.epoch(2).HasField("rolled_back") for _ in range(8)]
    assert returned.index(True) == 2
    events = [event for event in again.side.record.seed_events if isinstance(event, ly.GateEvaluated)]
    assert [event.passed for event in events if event.gate == ly.SEED_GATE_G5_RESET] == [True]
    assert len(grown_names(first.model)) == 1, "the first block's fossil stays"


def test_a_return_in_a_second_block_finds_its_seeds_by_name() -> None:
    """Goal: a checkpoint of a second block holds and restores both seeds. Method: NaN while the second one blends."""
    first = once()
    policy = grower(until=ly.SEED_STAGE_BLENDING)
    again = OwnLoop(first.model, policy, optimizer=first.optimizer, returns=True)
    grown(again, ly.SEED_STAGE_BLENDING)
    again.epoch()
    names = grown_names(first.model)
    again.break_host()
    assert again.run.end_epoch({"loss": 1.0}).HasField("rolled_back")
    assert grown_names(first.model) == names
    assert len(names) == 2
    again.epoch()
    again.end()
