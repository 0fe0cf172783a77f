"""Folding: linear seeds become weights, everything else stays a module, and nothing else changes."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina import GateLimits, KasminaConfig, discover_slots
from esper.kasmina.grafting._folding import TOLERANCE, Fold, fold_of
from esper.kasmina.grafting._graft import Graft
from esper.kasmina.grafting._seed import GraftedSeed, PassFocus
from esper.kasmina.testing import InMemoryRuntime, KernelFactory, bypass, linear, zero_linear
from esper.leyline import messages as ly
from tests.kasmina.reborn import reborn
from tests.kasmina.support import CLASSES, INPUTS, Loop, all_bytes, outputs, seeded

WIDE = GateLimits(training_epochs_min=1, shadow_loss_rise_max=99.0, gain_min=-99.0, prune_rise_max=99.0)
CONFIG = KasminaConfig(warmup_steps=5, blend_epochs=1.0, limits=WIDE)


class Gain(nn.Module):
    """A body times a learned number that begins at zero, as many kernels end."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.gain * self.body(x)
        return scaled


def low_rank(request: ly.KernelRequestSpec, generator: torch.Generator) -> nn.Module:
    """Make in -> 3 -> out, linear, ending in zeros."""
    return nn.Sequential(linear(request.in_shape[-1], 3, generator), zero_linear(3, request.out_shape[-1]))


def gained(request: ly.KernelRequestSpec, generator: torch.Generator) -> nn.Module:
    """Make a gain times a linear layer."""
    return Gain(linear(request.in_shape[-1], request.out_shape[-1], generator))


FOLDABLE: dict[str, KernelFactory] = {"LOW_RANK": low_rank, "GAINED": gained}
RUNTIME_OF = {**FOLDABLE, "BYPASS": bypass(width=8)}


def host() -> nn.Module:
    """Two bare linear layers with slots, a ReLU between, and a head."""
    return nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, CLASSES))


def grown(blueprint: str, slot: str, **options: object) -> Loop:
    """Return a loop whose seed is in PROBATIONARY, trained enough to matter."""
    runtime = InMemoryRuntime(RUNTIME_OF)
    loop = Loop(seeded(host), [slot], **({"config": CONFIG, "runtime": runtime} | options))  # type: ignore[arg-type]
    loop.grow(slot, ly.SEED_STAGE_PROBATIONARY, blueprint)
    loop.train_epoch(10)
    return loop


@pytest.mark.parametrize("slot", ["2", "2:residual"])
@pytest.mark.parametrize("blueprint", FOLDABLE)
def test_a_linear_seed_becomes_weights(blueprint: str, slot: str) -> None:
    """Goal: the same function in fewer parameters, said in event and outcome. Method: outputs before and after within
    1e-5, names and hooks of a host that never grew, figures of seeds zero, the seed's memory gone at once, the slot
    held, and training that goes on with no breach of isolation.
    """
    loop = grown(blueprint, slot)
    before, seed_id = outputs(loop.model), f"{slot}.1"
    live = loop.manager._bed.live[seed_id]
    watched = [weakref.ref(each) for each in (live.seed, live.trainer, *live.seed.parameters())]
    assert live.trainer.optimizer is not None
    watched += [weakref.ref(state["exp_avg"]) for state in live.trainer.optimizer.state.values()]  # type: ignore[misc]
    del live
    held = {id(parameter) for group in loop.optimizer.param_groups for parameter in group["params"]}
    decision = loop.order(ly.SEED_OP_FOSSILIZE, seed_id=seed_id)
    assert decision.result == ly.COMMAND_RESULT_APPLIED, decision.reason
    move = decision.events[-1]
    assert isinstance(move, ly.SeedStageChanged)
    assert move.metrics["folded"] == decision.choices["folded"] == 1.0
    assert 0.0 < move.metrics["fold_error"] <= TOLERANCE
    assert float((outputs(loop.model) - before).abs().max()) <= TOLERANCE
    assert [ref for ref in watched if ref() is not None] == []
    assert loop.model.state_dict().keys() == host().state_dict().keys()
    assert not any(module._forward_hooks for module in loop.model.modules())
    assert {id(parameter) for group in loop.optimizer.param_groups for parameter in group["params"]} == held
    manager = loop.manager
    assert manager.parameters() == manager.multiply_adds_per_sample() == 0
    state = loop.state(seed_id)
    assert (state.stage, state.alpha, state.metrics) == (ly.SEED_STAGE_FOSSILIZED, 1.0, {"folded": 1.0})
    assert manager.slot_states()[0].seed_id == seed_id
    loop.train_epoch(5)
    assert manager.figures()["kasmina.isolation.violations"] == 0.0
    assert loop.prune(seed_id).reason == "folded"


def test_moments_stay_where_the_gradient_is_the_same_and_start_afresh_where_not() -> None:
    """Goal: no optimiser goes on with moments of another function. Method: beside a layer its own gradient is what it
    was, and so are its moments; after one it is not, and they are gone until the next step.
    """
    for slot, kept in (("2", True), ("2:residual", False)):
        loop = grown("LOW_RANK", slot)
        weight, bias = loop.model[2].weight, loop.model[2].bias  # type: ignore[index, union-attr]
        moments = {each: loop.optimizer.state[each]["exp_avg"].clone() for each in (weight, bias)}
        loop.order(ly.SEED_OP_FOSSILIZE, seed_id=f"{slot}.1")
        for each in (weight, bias):
            assert (each in loop.optimizer.state) is kept
            assert not kept or torch.equal(loop.optimizer.state[each]["exp_avg"], moments[each])
        loop.step()
        assert float(loop.optimizer.state[weight]["step"]) == (loop.steps if kept else 1.0)


@pytest.mark.parametrize(
    ("blueprint", "parameters", "config"),
    [
        ("BYPASS", {}, CONFIG),
        ("LOW_RANK", {"fold": 0.0}, CONFIG),
        ("LOW_RANK", {}, KasminaConfig(warmup_steps=5, blend_epochs=1.0, limits=WIDE, fold=False)),
    ],
    ids=["not linear", "not wanted by the order", "not wanted by the run"],
)
def test_what_is_not_folded_stays_a_module(blueprint: str, parameters: dict[str, float], config: KasminaConfig) -> None:
    """Goal: the plain module without the alpha multiply, as ever. Method: outputs bit for bit, and the choice said."""
    loop = grown(blueprint, "2", config=config)
    before = outputs(loop.model)
    decision = loop.order(ly.SEED_OP_FOSSILIZE, seed_id="2.1", parameters=parameters)
    assert decision.choices == {"folded": 0.0}
    assert torch.equal(outputs(loop.model), before)
    assert loop.manager.parameters() > 0
    assert any("esper_" in name for name in loop.model.state_dict())


class TwoHeads(nn.Module):
    """A host whose layer's weight is another layer's as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, 3)
        self.second.weight = self.first.weight

    def forward(self, x_BF: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.second(torch.relu(self.first(x_BF)))))
        return out


def plan(model: nn.Module, slot: str, body: nn.Module) -> Fold | str:
    """Return how a body would be folded into a slot of a model."""
    model.eval()
    spec = discover_slots(model, torch.randn(4, INPUTS), [slot])[0]
    seed = GraftedSeed(body, placement=spec.placement, device=torch.device("cpu"), rng_seed=0, focus=PassFocus())
    graft = Graft(model, spec, "s.1", seed)
    try:
        return fold_of(model, spec, seed, hook_id=graft.hook_id)
    finally:
        graft.remove()


def frozen() -> nn.Module:
    """Return a host whose layers learn nothing."""
    return host().requires_grad_(False)


def hooked() -> nn.Module:
    """Return a host at whose layer somebody listens."""
    model = host()
    model[0].register_forward_hook(lambda _module, _args, _output: None)  # type: ignore[index]
    return model


def unbiased() -> nn.Module:
    """Return a host whose layer has no bias."""
    return nn.Sequential(nn.Linear(INPUTS, 8, bias=False), nn.Linear(8, CLASSES))


class Squared(nn.Module):
    """Looks linear near zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :8] * x[..., :8] * 1e-9


@pytest.mark.parametrize(
    ("model", "slot", "body", "why"),
    [
        (TwoHeads, "first", nn.Linear(INPUTS, INPUTS), "layer_shared"),
        (frozen, "0", nn.Linear(INPUTS, 8), "layer_frozen"),
        (hooked, "0", nn.Linear(INPUTS, 8), "layer_hooked"),
        (unbiased, "0", nn.Linear(INPUTS, 8), "bias_missing"),
        (host, "1:residual", nn.Linear(8, 8), "layer_not_linear"),
        (host, "0", nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU()), "seed_not_linear"),
        (host, "0", nn.Sequential(nn.Linear(INPUTS, 8), nn.Dropout(0.1)), "seed_not_linear"),
        (host, "0", nn.Sequential(nn.Linear(INPUTS, 8), nn.BatchNorm1d(8)), "seed_not_linear"),
        (host, "0", nn.Sequential(nn.Linear(INPUTS, 8), nn.LayerNorm(8)), "seed_not_linear"),
        (host, "0", Squared(), "seed_not_linear"),
    ],
)
def test_what_cannot_be_folded_is_named(model: Callable[[], nn.Module], slot: str, body: nn.Module, why: str) -> None:
    """Goal: nothing is folded that is not sound. Method: every reason for which it is refused."""
    assert plan(seeded(model), slot, body) == why


def test_an_unbiased_layer_takes_an_unbiased_seed() -> None:
    """Goal: the refusal above is about the offset. Method: the same layer, a seed without one; weights add up."""
    model, body = seeded(unbiased), nn.Linear(INPUTS, 8, bias=False)
    fold = plan(model, "0", body)
    assert isinstance(fold, Fold)
    assert fold.bias is None
    assert torch.allclose(fold.weight, model[0].weight + body.weight, atol=1e-7)  # type: ignore[index, union-attr]


class PositionMixer(nn.Module):
    """Linear in its input, but not at each position for itself; silent until it has learned."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(length, length))

    def forward(self, x_BLF: Tensor) -> Tensor:
        return (x_BLF.transpose(1, 2) @ self.mix).transpose(1, 2)


class PositionGain(nn.Module):
    """A gain of its own at every position."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(length, 1))

    def forward(self, x_BLF: Tensor) -> Tensor:
        return x_BLF * self.gain


def test_sequences_are_folded_position_by_position_only() -> None:
    """Goal: a layer's weights are the same at every position. Method: on sequences, a linear body folds, and bodies
    that tell positions apart do not, although at their start all of them give zeros.
    """
    model = nn.Sequential(nn.Unflatten(1, (INPUTS // 2, 2)), nn.Linear(2, 2), nn.Flatten(), nn.Linear(INPUTS, CLASSES))
    assert isinstance(plan(model, "1", nn.Linear(2, 2)), Fold)
    assert plan(model, "1", PositionMixer(INPUTS // 2)) == "seed_not_linear"
    assert plan(model, "1", PositionGain(INPUTS // 2)) == "seed_not_linear"


def test_a_seed_in_its_layers_place_is_folded_as_such() -> None:
    """Goal: CONVEX folds too. Method: a linear seed instead of its layer; the layer's weights are the seed's."""
    loop = grown("LOW_RANK", "2")
    live = loop.manager._bed.live["2.1"]
    live.seed.mode = ly.BLEND_MODE_CONVEX
    before = outputs(loop.model)
    fold = loop.manager._bed.fold_of("2.1")
    assert isinstance(fold, Fold)
    assert not fold.moments_hold
    error = loop.manager._bed.fold_error("2.1", fold)
    assert error is not None
    assert error <= TOLERANCE
    loop.manager._bed.fold("2.1")
    assert float((outputs(loop.model) - before).abs().max()) <= TOLERANCE


def test_a_folded_run_is_computed_again_and_goes_on_from_a_checkpoint() -> None:
    """Goal: the fold is recorded, and binds. Method: from outcomes alone, byte for byte; from a checkpoint before and
    one after; and an outcome that names no choice leaves the seed a module.
    """
    runtime = InMemoryRuntime(RUNTIME_OF)
    loop = grown("GAINED", "2:residual", runtime=runtime)
    before = reborn(loop, host, config=CONFIG, runtime=runtime)
    old = reborn(loop, host, config=CONFIG, runtime=runtime)
    loop.outcomes = []
    loop.order(ly.SEED_OP_FOSSILIZE, seed_id="2:residual.1")
    (outcome,) = loop.outcomes
    for event in before.manager.decide(None, epoch=before.epoch, recorded=outcome).events:
        before.manager.fold(event)
    loop.train_epoch(4)
    before.train_epoch(4)
    assert all_bytes(before.model) == all_bytes(loop.model)
    after = reborn(loop, host, config=CONFIG, runtime=runtime)
    for each in (loop, after):
        each.log, each.outcomes = [], []
        assert each.prune("2:residual.1").reason == "folded"
        each.train_epoch(4)
    assert all_bytes(after.model) == all_bytes(loop.model)
    silent = ly.CommandOutcome()
    silent.CopyFrom(outcome)
    silent.choices.clear()
    for event in old.manager.decide(None, epoch=old.epoch, recorded=silent).events:
        old.manager.fold(event)
    assert old.manager.parameters() > 0
