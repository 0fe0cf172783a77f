"""Seeds whose numbers are not finite: culled at the edge, and the host has heard none of it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina.testing import InMemoryRuntime
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from tests.kasmina.support import FACTORIES, Loop, all_bytes, mlp, outputs, seeded


def poison(loop: Loop, seed_id: str, value: float) -> None:
    """Spoil one weight of the seed's last layer."""
    with torch.no_grad():
        list(loop.manager._bed.live[seed_id].seed.parameters())[-1][0] = value


def culls(events: list[EventMessage]) -> list[tuple[str, ly.SeedLifecycleStage]]:
    """Return reason and stage of every move."""
    assert all(isinstance(event, ly.SeedStageChanged) for event in events)
    return [(event.reason, event.to_stage) for event in events if isinstance(event, ly.SeedStageChanged)]


EXPECTED = [("fault:non_finite", ly.SEED_STAGE_CULLED), ("fault:non_finite", ly.SEED_STAGE_EMBARGOED)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_poisoned_seed_in_training_is_culled_and_the_host_is_untouched(value: float) -> None:
    """Goal: a fault in shadow stays there. Method: poison a seed in TRAINING; the host ends byte-equal to one without
    a seed, and the slot is barred.
    """
    loop, bare = Loop(seeded(mlp), ["1"]), Loop(seeded(mlp), ["1"])
    seed_id = loop.germinate("1").seed_id
    for each in (loop, bare):
        torch.manual_seed(1)
        each.train_epoch(5)
    poison(loop, seed_id, value)
    for each in (loop, bare):
        torch.manual_seed(2)
        faults = each.train_epoch(5)
        assert culls(faults) == (EXPECTED if each is loop else [])
    assert all_bytes(loop.model) == all_bytes(bare.model)
    assert loop.manager.summaries()[0].stage == ly.SEED_STAGE_EMBARGOED
    assert loop.manager.slot_states()[0].seed_id == seed_id
    assert loop.train_epoch(3) == [], "a fault is reported once"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("stage", [ly.SEED_STAGE_BLENDING, ly.SEED_STAGE_PROBATIONARY], ids=ly.SeedLifecycleStage.Name)
def test_a_poisoned_joint_seed_is_not_heard(stage: ly.SeedLifecycleStage, value: float) -> None:
    """Goal: even a seed at alpha 1 cannot harm the host with what is not finite. Method: poison it; each following
    step leaves host weights as a bare host's; at the edge it is culled.
    """
    loop = Loop(seeded(mlp), ["1"])
    seed_id = loop.grow("1", stage, steps=20)
    loop.step()
    poison(loop, seed_id, value)
    bare = Loop(seeded(mlp), ["1"])
    host_names = bare.model.state_dict().keys()
    bare.model.load_state_dict({name: loop.model.state_dict()[name] for name in host_names})
    known = {id(parameter) for parameter in loop.optimizer.param_groups[0]["params"]}
    assert len(known) == len(bare.optimizer.param_groups[0]["params"])
    bare.optimizer.load_state_dict(copy.deepcopy(loop.optimizer.state_dict()))
    bare.steps = loop.steps
    for each in (loop, bare):
        torch.manual_seed(2)
        each.model.train()
        each.step()
        each.step()
    told = {name: tensor for name, tensor in loop.model.state_dict().items() if name in host_names}
    for name, tensor in bare.model.state_dict().items():
        assert torch.equal(told[name], tensor), name
    assert culls(loop.train_epoch(1)) == EXPECTED
    assert torch.isfinite(outputs(loop.model)).all()
    assert loop.model.state_dict().keys() == host_names


class Breaks(nn.Module):
    """A finite forward whose backward is not finite: the square root at zero, times zero."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(features, outputs))
        self.armed = False

    def forward(self, x_BF: Tensor) -> Tensor:
        out_BG = x_BF @ self.weight
        return out_BG + (out_BG * 0.0).square().sqrt() if self.armed else out_BG


def test_a_gradient_that_is_not_finite_ends_at_the_seed() -> None:
    """Goal: neither the seed's weights nor the layers before it take a broken gradient. Method: a seed on the second
    block whose backward yields NaN; all weights stay finite, and the seed is culled.
    """
    runtime = InMemoryRuntime({"BREAKS": lambda request, _generator: Breaks(request.in_shape[0], request.out_shape[0])})
    loop = Loop(seeded(mlp), ["2"], runtime=runtime)
    seed_id = loop.grow("2", ly.SEED_STAGE_SHADOWING, blueprint="BREAKS", steps=20)
    seed = loop.manager._bed.live[seed_id].seed
    assert isinstance(seed.body, Breaks)
    seed.body.armed = True
    before = all_bytes(loop.model.get_submodule("1"))
    loop.model.train()
    loop.step()
    assert not bool(seed.sound)
    assert all(torch.isfinite(tensor).all() for tensor in loop.model.state_dict().values())
    assert all_bytes(loop.model.get_submodule("1")) != before, "the layers before it went on learning"
    assert culls(loop.train_epoch(1)) == EXPECTED


def test_an_overflowing_shadow_loss_is_a_fault() -> None:
    """Goal: a loss beyond all bounds ends the seed, finite gradient or not. Method: a loss function that overflows once
    it is told to, by a constant, which no gradient shows.
    """
    blown = [False]

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(outputs, targets)
        return loss + float("inf") if blown[0] else loss

    loop = Loop(seeded(mlp), ["1"], loss_fn=loss_fn, probe=None)
    loop.train_epoch(5)
    loop.germinate("1")
    assert loop.train_epoch(5) == []
    blown[0] = True
    assert culls(loop.train_epoch(5)) == EXPECTED


def test_two_faults_at_one_edge_have_their_own_events() -> None:
    """Goal: ids stay unique when several seeds fail. Method: two poisoned seeds, one edge; the next edge goes on."""
    loop = Loop(seeded(mlp), ["1", "2"], runtime=InMemoryRuntime(FACTORIES))
    loop.germinate("1")
    loop.train_epoch(3)
    loop.germinate("2")
    for seed_id in ("1.1", "2.1"):
        poison(loop, seed_id, float("nan"))
    assert culls(loop.train_epoch(3)) == EXPECTED * 2
    assert loop.order(ly.SEED_OP_CULL, seed_id="1.1").reason.startswith("illegal_transition:SEED_STAGE_EMBARGOED")
    assert [event.epoch for event in loop.log[-5:]] == [2] * 5, "four moves and a rejection at one edge"
    ids = [event.meta.event_id for event in loop.log]
    assert len(set(ids)) == len(ids)
