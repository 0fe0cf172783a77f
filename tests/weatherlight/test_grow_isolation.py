"""What happens between the steps of a loop of one's own is nobody's step; what happens in one is still counted."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from esper.leyline import messages as ly
from tests.weatherlight.loops import OwnLoop, Policy, grower, order, perceptron, train_on


def hooks(loop: OwnLoop) -> int:
    """Return how many hooks wait for weights to be loaded."""
    return sum(len(module._load_state_dict_post_hooks) for module in loop.model.modules())


def blending(*, returns: bool = False) -> OwnLoop:
    """Return a loop of six epochs whose seed is blended in."""
    loop = OwnLoop(perceptron(), grower(until=ly.SEED_STAGE_BLENDING), returns=returns)
    for _ in range(6):
        loop.epoch()
    assert loop.stages == [ly.SEED_STAGE_BLENDING]
    assert loop.violations == 0.0
    return loop


def fault_then_graft(epoch: int) -> Policy:
    """Return a policy that germinates at once and grafts at the edge of `epoch`."""

    def policy(packet: ly.SystemStatePacket) -> ly.AdaptationCommand:
        if not packet.seed_states:
            return grower()(packet)
        if packet.current_epoch == epoch:
            return order(packet, ly.SEED_OP_START_GRAFTING, seed_id=packet.seed_states[-1].seed_id)
        return train_on(packet)

    return policy


def test_a_return_is_no_breach_and_a_seed_grafts_after_it() -> None:
    """Goal: a return to a checkpoint costs no seed its gate. Method: NaN at epoch 5, START_GRAFTING at the next."""
    loop = OwnLoop(perceptron(), fault_then_graft(6), returns=True)
    for epoch in range(1, 7):
        for _ in range(10):
            loop.step()
        if epoch == 5:
            loop.break_host()
        outcome = loop.run.end_epoch({"loss": 1.0})
        assert outcome.HasField("rolled_back") == (epoch == 5)
    assert outcome.result == ly.COMMAND_RESULT_APPLIED, outcome.reason
    assert loop.violations == 0.0
    assert loop.stages == [ly.SEED_STAGE_BLENDING]


def test_a_return_of_a_blended_seed_is_no_breach() -> None:
    """Goal: nor is one that writes to a seed of the host's forward. Method: NaN while a seed blends."""
    loop = blending(returns=True)
    loop.break_host()
    assert loop.run.end_epoch({"loss": 1.0}).HasField("rolled_back")
    for _ in range(2):
        loop.epoch()
    assert (loop.violations, loop.stages) == (0.0, [ly.SEED_STAGE_BLENDING])


@pytest.mark.parametrize("part", ["", "1"], ids=["whole", "part"])
def test_weights_that_the_user_loads_are_no_breach(part: str) -> None:
    """Goal: loading the best weights costs no seed its life. Method: load five times while a seed blends, between
    steps and before an edge; the hooks go with the run."""
    loop = blending()
    loaded = loop.model.get_submodule(part)
    best = copy.deepcopy(loaded.state_dict())
    for _ in range(5):
        loaded.load_state_dict(best)
        loop.step()
        loaded.load_state_dict(best)
        loop.epoch()
    assert (loop.violations, loop.stages) == (0.0, [ly.SEED_STAGE_BLENDING])
    assert hooks(loop) > 0
    loop.end()
    assert hooks(loop) == 0


def test_what_a_step_writes_to_a_seed_is_still_counted() -> None:
    """Goal: the window hides no leak. Method: the optimiser's step writes to a seed that blends, and to one that only
    trains while weights are loaded beside it; a write right before an edge is seen at that edge."""
    loop = blending()
    (live,) = loop.run._controller._bed.live.values()  # type: ignore[union-attr]  # planted by its probe
    parameter = next(live.seed.parameters())
    leak = loop.optimizer.register_step_post_hook(lambda *_: parameter.detach().add_(1e-6))
    loop.step()
    leak.remove()
    assert loop.violations == 1.0
    with torch.no_grad():
        parameter.add_(1e-6)
    loop.run.end_epoch({"loss": 1.0})
    assert loop.violations == 2.0, "counted at the edge, and once"
    loop.step()
    assert loop.violations == 2.0

    unheard = OwnLoop(perceptron(), grower(until=ly.SEED_STAGE_TRAINING))
    unheard.epoch()
    unheard.epoch()
    (live,) = unheard.run._controller._bed.live.values()  # type: ignore[union-attr]  # as above
    with torch.no_grad():
        next(live.seed.parameters()).add_(1e-6)
    unheard.model.load_state_dict(copy.deepcopy(unheard.model.state_dict()))
    unheard.step()
    assert unheard.violations == 1.0


def test_copies_of_a_grown_model_are_models_and_no_more() -> None:
    """Goal: the hooks go into no copy. Method: copy and save the model within a run, load into the copy."""
    loop = blending()
    twin = copy.deepcopy(loop.model)
    twin.load_state_dict(loop.model.state_dict())
    (hook,) = twin._load_state_dict_post_hooks.values()
    assert hook._take is None  # type: ignore[attr-defined]  # torch knows callables
    torch.save(loop.model, io.BytesIO())
