"""Blueprints: each means something else, none acts before it is trained, all keep to their bounds."""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from esper.core.errors import UsageError
from esper.core.kernel import Kernel, plan_spec
from esper.karn import (
    BlueprintError,
    MissingParameter,
    ParameterOutOfBounds,
    UnknownParameter,
    UnsupportedLayout,
    catalogue,
    nearest_integer,
)
from tests.karn.contract import CONTRACT, lowest

ALL = sorted(CONTRACT)
every_blueprint = pytest.mark.parametrize("blueprint_id", ALL)
both_shapes = pytest.mark.parametrize("out_features", [6, 9])


def built(
    blueprint_id: str, *, features: int = 6, out_features: int | None = None, seed: int = 1, **changes: float
) -> Kernel:
    """Return the seed of a blueprint with its lowest parameters, or others as told."""
    module = catalogue()[blueprint_id].build(
        layout="vector",
        shape=(features,),
        parameters=lowest(blueprint_id) | changes,
        generator=torch.Generator().manual_seed(seed),
        out_shape=None if out_features is None else (out_features,),
    )
    return cast("Kernel", module)


def opened(kernel: Kernel) -> Kernel:
    """Make the zero end of a seed pass its body on, so that what the body computes can be seen."""
    with torch.no_grad():
        for name, parameter in kernel.end.named_parameters():
            drawn = torch.randn(parameter.shape, dtype=parameter.dtype, generator=torch.Generator().manual_seed(9))
            parameter.copy_(torch.zeros_like(drawn) if name == "bias" else drawn)
    return kernel


def batch(features: int = 6, rows: int = 7) -> torch.Tensor:
    """Return fixed random samples."""
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(3))


def test_catalogue_is_the_contract() -> None:
    """Ids, names, tiers, risks, stages and bounds are the predecessor's: compare every field."""
    assert list(catalogue()) == ALL
    for blueprint_id, row in CONTRACT.items():
        blueprint = catalogue()[blueprint_id]
        assert (blueprint.name, blueprint.risk, blueprint.stage) == (row.name, row.risk, row.stage)
        assert dict(blueprint.parameters) == row.parameters
        assert blueprint.tier == "SAFE"
        assert (blueprint.quarantine_only, blueprint.approval_required) == (False, False)
        assert blueprint.layouts == ("vector",)


@both_shapes
def test_blueprints_really_differ(out_features: int) -> None:
    """No two blueprints are one module under two names: compare outputs and parameter counts pairwise."""
    seeds = {blueprint_id: opened(built(blueprint_id, out_features=out_features)) for blueprint_id in ALL}
    outputs = {blueprint_id: seed(batch()) for blueprint_id, seed in seeds.items()}
    for one, other in itertools.combinations(ALL, 2):
        assert not torch.allclose(outputs[one], outputs[other], atol=1e-2), (one, other)
        assert seeds[one].plan.parameters != seeds[other].plan.parameters, (one, other)


@every_blueprint
@both_shapes
def test_no_effect_before_training(blueprint_id: str, out_features: int) -> None:
    """A new seed yields exactly zero, of the shape asked for, whatever it is fed: also large values."""
    seed = built(blueprint_id, out_features=out_features)
    for x in (batch(), 1e4 * batch(), torch.zeros(2, 6)):
        out = seed(x)
        assert out.shape == (len(x), out_features)
        assert torch.count_nonzero(out) == 0


@every_blueprint
@both_shapes
def test_first_step_moves_the_end_and_the_second_the_body(blueprint_id: str, out_features: int) -> None:
    """Gradients reach every parameter once the end is off zero: take one step, then look at all gradients."""
    seed = built(blueprint_id, out_features=out_features)
    target = torch.randn(7, out_features, generator=torch.Generator().manual_seed(4))
    moved = []
    for _ in range(2):
        seed.zero_grad()
        nn.functional.mse_loss(seed(batch()), target).backward()
        moved.append({name for name, p in seed.named_parameters() if p.grad is not None and p.grad.abs().max() > 0})
        with torch.no_grad():
            for parameter in seed.parameters():
                parameter -= 0.1 * cast("torch.Tensor", parameter.grad)
    end = {name for name, _ in seed.named_parameters() if name.startswith("end.")}
    assert moved[0] == end
    assert moved[1] == {name for name, _ in seed.named_parameters()}


@every_blueprint
def test_gradients_are_right(blueprint_id: str) -> None:
    """Autograd agrees with finite differences, for inputs and parameters alike: gradcheck in double precision."""
    seed = opened(built(blueprint_id, features=3, out_features=2).double())
    x = batch(3, 2).double().requires_grad_()
    names = [name for name, _ in seed.named_parameters()]

    def evaluate(inputs: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return cast("torch.Tensor", torch.func.functional_call(seed, dict(zip(names, values, strict=True)), (inputs,)))

    assert torch.autograd.gradcheck(evaluate, (x, *[p.detach().requires_grad_() for p in seed.parameters()]))


@every_blueprint
def test_generator_is_the_only_randomness(blueprint_id: str) -> None:
    """The same generator seed gives the same weights, another gives others, and the global one is left alone."""
    before = torch.get_rng_state()
    one, same, other = built(blueprint_id), built(blueprint_id), built(blueprint_id, seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    drawn = [name for name, tensor in one.plan.tensors.items() if tensor.bound is not None]
    assert all(not torch.equal(one.get_parameter(name), other.get_parameter(name)) for name in drawn)


@pytest.mark.parametrize("blueprint_id", sorted(set(ALL) - {"BP003", "BP008"}))
def test_body_is_drawn_at_random(blueprint_id: str) -> None:
    """A body that mixes features begins random, not constant: no two entries of a weight matrix are alike."""
    for name, parameter in built(blueprint_id).named_parameters():
        if name.startswith("body.") and parameter.dim() == 2:
            assert len(parameter.unique()) > 0.9 * parameter.numel(), name


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ALL), st.integers(1, 40), st.integers(1, 40), st.data())
def test_whatever_is_within_bounds_can_be_built(
    blueprint_id: str, features: int, out_features: int, data: st.DataObject
) -> None:
    """Bounds are inclusive and every value between them builds: draw parameters and shapes."""
    parameters = {
        name: data.draw(st.one_of(st.just(low), st.just(high), st.floats(low, high)))
        for name, (low, high) in CONTRACT[blueprint_id].parameters.items()
    }
    seed = built(blueprint_id, features=features, out_features=out_features, **parameters)
    out = seed(batch(features, 2))
    assert out.shape == (2, out_features)
    assert torch.count_nonzero(out) == 0


PARAMETRISED = [(blueprint_id, name) for blueprint_id, row in CONTRACT.items() for name in row.parameters]


@pytest.mark.parametrize(("blueprint_id", "name"), PARAMETRISED)
def test_out_of_bounds_is_refused(blueprint_id: str, name: str) -> None:
    """Just outside, not finite, or no number at all: each is refused by the parameter's name."""
    low, high = CONTRACT[blueprint_id].parameters[name]
    outside: list[Any] = [math.nextafter(low, -math.inf), math.nextafter(high, math.inf)]
    for value in [*outside, math.nan, math.inf, -math.inf, True, "1", None]:
        with pytest.raises(ParameterOutOfBounds, match=name):
            built(blueprint_id, **{name: value})


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PARAMETRISED), st.floats())
def test_bounds_decide(which: tuple[str, str], value: float) -> None:
    """A value is taken exactly when it lies within the bounds: draw any float at all."""
    blueprint_id, name = which
    low, high = CONTRACT[blueprint_id].parameters[name]
    check = catalogue()[blueprint_id].check
    if low <= value <= high:
        check({name: value})
    else:
        with pytest.raises(ParameterOutOfBounds):
            check({name: value})


@every_blueprint
def test_parameters_are_exactly_its_own(blueprint_id: str) -> None:
    """A parameter too many or too few is refused by name; nothing is filled in silently."""
    with pytest.raises(UnknownParameter, match="colour"):
        built(blueprint_id, colour=1.0)
    for name in CONTRACT[blueprint_id].parameters:
        with pytest.raises(MissingParameter, match=name):
            catalogue()[blueprint_id].check({})


@every_blueprint
def test_other_layouts_are_refused(blueprint_id: str) -> None:
    """What cannot be built for a layout says so, with the layouts that can be."""
    for layout in ("sequence", "map1d", "map2d", ""):
        with pytest.raises(UnsupportedLayout, match="vector"):
            catalogue()[blueprint_id].spec(layout=layout, shape=[6], parameters=lowest(blueprint_id))


@pytest.mark.parametrize("shape", [(), (6, 6), (0,), (-3,), (70_000,)])
def test_impossible_shapes_are_refused(shape: tuple[int, ...]) -> None:
    """A vector has one size of at least one: offer others."""
    with pytest.raises(UsageError):
        catalogue()["BP005"].spec(layout="vector", shape=shape, parameters={})


def test_too_large_a_seed_is_refused() -> None:
    """A seed beyond the size of a kernel is a matter of usage, not of integrity: 60,000 features squared."""
    with pytest.raises(BlueprintError, match="60000"):
        catalogue()["BP005"].spec(layout="vector", shape=[60_000], parameters={})


@pytest.mark.parametrize(("value", "whole"), [(1.0, 1), (1.49, 1), (1.5, 2), (2.5, 3), (2.4999, 2), (3.5, 4), (4.0, 4)])
def test_counts_are_rounded_halves_upward(value: float, whole: int) -> None:
    """A parameter that counts is rounded by one documented rule: seen in the depth of a residual block."""
    assert nearest_integer(value) == whole
    spec: Any = catalogue()["BP009"].spec(layout="vector", shape=[6], parameters={"depth": value})
    assert len(spec["body"]["children"]) == whole


def test_parameters_change_what_they_name() -> None:
    """Each parameter does what its description says: look at the module that two values give."""
    assert built("BP021", hidden_multiple=2.25).plan.body.out_shape == (14,)
    assert built("BP028", growth_rate=8.5).plan.body.out_shape == (15,)
    x = batch()
    assert torch.allclose(opened(built("BP002", scale=2.0))(x), 4 * opened(built("BP002", scale=0.5))(x), atol=1e-6)
    norms = [built("BP003", epsilon=epsilon).body(0.01 * x).norm() for epsilon in (1e-6, 1e-3)]
    assert norms[0] > 2 * norms[1]
    # A strongly negative gate carries the input through the highway, a positive one transforms it.
    carried = [(built("BP014", gate_bias=bias).body(x) - x).norm() for bias in (-3.0, 3.0)]
    assert carried[0] < 0.2 * carried[1]


@every_blueprint
def test_seeds_learn(blueprint_id: str) -> None:
    """Each blueprint can fit something: after 60 steps of Adam the loss on a smooth target fell by a tenth."""
    seed = built(blueprint_id, out_features=2)
    x = batch(6, 64)
    target = torch.stack([x[:, 0] * 0.5 + x[:, 1].relu(), x[:, 2] - 0.3 * x[:, 3]], dim=1)
    optimiser = torch.optim.Adam(seed.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = nn.functional.mse_loss(seed(x), target)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_specs_stay_as_they_were_recorded() -> None:
    """What an id means never changes, for logs name it: pin the words of every body and the size of its plan."""
    found = {}
    for blueprint_id in ALL:
        plan = plan_spec(
            catalogue()[blueprint_id].spec(layout="vector", shape=[40], out_shape=[8], parameters=lowest(blueprint_id))
        )
        found[blueprint_id] = (plan.body.op, plan.end.op, plan.parameters, plan.multiply_adds_per_sample)
    assert found == {
        "BP002": ("sequential", "projection", 1_928, 1_960),
        "BP003": ("layer_norm", "projection", 408, 440),
        "BP005": ("sequential", "projection", 1_968, 1_920),
        "BP008": ("identity", "projection", 328, 320),
        "BP009": ("sequential", "projection", 3_688, 3_640),
        "BP011": ("sequential", "projection", 2_048, 2_040),
        "BP014": ("highway", "projection", 3_608, 3_600),
        "BP021": ("product", "projection", 7_208, 7_120),
        "BP028": ("concat", "projection", 720, 704),
    }
