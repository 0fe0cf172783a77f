"""Blueprints: the predecessor's catalogue by name and bound, and every parameter does what it says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.core.errors import UsageError
from esper.karn import (
    BlueprintError,
    MissingParameter,
    ParameterOutOfBounds,
    UnknownParameter,
    UnsupportedLayout,
    catalogue,
    nearest_integer,
)
from tests.karn.bodies import ALL, CASES, LAYOUTS, batch, built, opened
from tests.karn.contract import CONTRACT, EXPERIMENTAL, HIGH_RISK, SAFE, highest, lowest

every_blueprint = pytest.mark.parametrize("blueprint_id", ALL)


def test_catalogue_is_the_contract() -> None:
    """Ids, names, tiers, risks, stages, flags and bounds are the predecessor's: compare every field."""
    assert list(catalogue()) == ALL
    for blueprint_id, row in CONTRACT.items():
        blueprint = catalogue()[blueprint_id]
        assert (blueprint.name, blueprint.tier, blueprint.risk, blueprint.stage) == row[:4]
        assert dict(blueprint.parameters) == row.parameters
        assert (blueprint.quarantine_only, blueprint.approval_required) == ("Q" in row.flags, "A" in row.flags)


def test_contract_is_whole() -> None:
    """The data itself is complete: fifty in three tiers, and flags as their tiers have them."""
    tiers = [CONTRACT[blueprint_id].tier for blueprint_id in ALL]
    assert [f"BP{number:03}" for number in range(1, 51)] == ALL
    assert tiers == [SAFE] * 35 + [EXPERIMENTAL] * 7 + [HIGH_RISK] * 8
    assert [CONTRACT[blueprint_id].flags for blueprint_id in ALL] == [""] * 35 + ["A"] * 7 + ["QA"] * 8


def test_layouts_are_as_written() -> None:
    """What is left out has a reason in its description; all else can be built everywhere, and all for vectors."""
    partial = {name: each.layouts for name, each in catalogue().items() if set(each.layouts) != set(LAYOUTS)}
    assert partial == {
        "BP006": ("vector", "map1d"),
        "BP026": ("vector", "map1d", "map2d"),
        "BP031": ("vector", "sequence", "map1d"),
    }
    assert all("No layout" in catalogue()[name].description for name in partial)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_parameters_within_bounds_build(data: st.DataObject) -> None:
    """Bounds are inclusive and every value between them builds: draw blueprint, layout, parameters and shapes."""
    blueprint_id, layout = data.draw(st.sampled_from(CASES))
    parameters = {
        name: data.draw(st.one_of(st.just(low), st.just(high), st.floats(low, high)))
        for name, (low, high) in CONTRACT[blueprint_id].parameters.items()
    }
    rank = {"vector": 1, "sequence": 2, "map1d": 2, "map2d": 3}[layout]
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=rank, max_size=rank)))
    seed = built(blueprint_id, layout, shape=shape, parameters=parameters)
    out = seed(batch(shape=shape, rows=2))
    assert out.shape == (2, *shape)
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
    parameters = lowest(blueprint_id) | {name: value}
    if low <= value <= high:
        check(parameters)
    else:
        with pytest.raises(ParameterOutOfBounds):
            check(parameters)


@every_blueprint
def test_parameters_are_exactly_its_own(blueprint_id: str) -> None:
    """A parameter too many or too few is refused by name; nothing is filled in silently."""
    with pytest.raises(UnknownParameter, match="colour"):
        built(blueprint_id, colour=1.0)
    for missing in CONTRACT[blueprint_id].parameters:
        others = {name: value for name, value in lowest(blueprint_id).items() if name != missing}
        with pytest.raises(MissingParameter, match=missing):
            catalogue()[blueprint_id].check(others)


@every_blueprint
def test_other_layouts_are_refused(blueprint_id: str) -> None:
    """What cannot be built for a layout says so, with the layouts that can be."""
    blueprint = catalogue()[blueprint_id]
    for layout in {*LAYOUTS, "", "video"} - set(blueprint.layouts):
        with pytest.raises(UnsupportedLayout, match="vector"):
            blueprint.spec(layout=layout, shape=[6], parameters=lowest(blueprint_id))


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ("vector", ()),
        ("vector", (6, 6)),
        ("vector", (0,)),
        ("vector", (-3,)),
        ("vector", (70_000,)),
        ("sequence", (6,)),
        ("sequence", (0, 6)),
        ("map1d", (6, 6, 6)),
        ("map2d", (6, 6)),
        ("map2d", (6, 70_000, 6)),
    ],
)
def test_impossible_shapes_are_refused(layout: str, shape: tuple[int, ...]) -> None:
    """Each layout has its number of sizes, all of at least one: offer others."""
    with pytest.raises(UsageError):
        catalogue()["BP005"].spec(layout=layout, shape=shape, parameters={})


@pytest.mark.parametrize(
    ("blueprint_id", "layout", "shape", "why"),
    [
        ("BP005", "vector", (60_000,), "parameters"),
        ("BP005", "map2d", (4_000, 4_000, 4_000), "more than a kernel may hold"),
        ("BP005", "map2d", (1_000, 128, 128), "products"),
        ("BP029", "sequence", (60_000, 8), "cannot take shape"),
        ("BP019", "sequence", (2_000, 8), "cannot take shape"),
        ("BP041", "map2d", (8, 100, 100), "cannot take shape"),
    ],
)
def test_too_large_a_seed_is_refused(blueprint_id: str, layout: str, shape: tuple[int, ...], why: str) -> None:
    """A seed beyond what a kernel may be is a matter of usage, not of integrity: too wide, too long, too much work."""
    with pytest.raises(BlueprintError, match=why):
        catalogue()[blueprint_id].spec(layout=layout, shape=shape, parameters=lowest(blueprint_id))


@pytest.mark.parametrize(("value", "whole"), [(1.0, 1), (1.49, 1), (1.5, 2), (2.5, 3), (2.4999, 2), (3.5, 4), (4.0, 4)])
def test_counts_are_rounded_halves_upward(value: float, whole: int) -> None:
    """A parameter that counts is rounded by one documented rule: seen in the depth of a residual block."""
    assert nearest_integer(value) == whole
    spec: Any = catalogue()["BP009"].spec(layout="vector", shape=[6], parameters={"depth": value})
    assert len(spec["body"]["children"]) == whole


PARAMETRISED_CASES = [(name, layout) for name, layout in CASES if CONTRACT[name].parameters]


@pytest.mark.parametrize(("blueprint_id", "layout"), PARAMETRISED_CASES)
def test_every_parameter_matters(blueprint_id: str, layout: str) -> None:
    """A parameter reaches the spec in every layout: its lower and its upper bound give different ones."""
    shape = {"vector": [40], "sequence": [9, 40], "map1d": [40, 9], "map2d": [40, 5, 4]}[layout]
    for name in CONTRACT[blueprint_id].parameters:
        specs = [
            catalogue()[blueprint_id].spec(layout=layout, shape=shape, parameters=lowest(blueprint_id) | {name: value})
            for value in CONTRACT[blueprint_id].parameters[name]
        ]
        assert specs[0]["body"] != specs[1]["body"], name


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


@pytest.mark.parametrize(
    ("blueprint_id", "name", "values", "reach"),
    [
        ("BP007", "kernel", (2.0, 5.0), (2, 5)),
        ("BP015", "kernel", (3.0, 7.0), (3, 7)),
        ("BP018", "radius", (1.0, 3.0), (3, 7)),
        ("BP020", "sequence_length", (16.0, 20.0), (16, 20)),
        ("BP030", "hops", (1.0, 3.0), (3, 7)),
        ("BP031", "dilation", (1.0, 2.0), (13, 25)),
        ("BP032", "dilation", (1.0, 8.0), (3, 17)),
    ],
)
def test_reach_is_what_the_parameter_says(
    blueprint_id: str, name: str, values: tuple[float, float], reach: tuple[int, int]
) -> None:
    """How far back a sequence looks follows from the parameter: find the first position that the last depends on."""
    for value, places in zip(values, reach, strict=True):
        seed = opened(built(blueprint_id, "sequence", shape=(30, 6), **{name: value})).double().eval()
        # A maximum passes on one position at a time, so that many samples are asked.
        x = batch(shape=(30, 6), rows=200).double().requires_grad_()
        (gradient,) = torch.autograd.grad(seed(x)[:, -1].sum(), x)
        seen = gradient.abs().amax(dim=(0, 2)) > 0
        assert int(30 - seen.to(torch.int).argmax()) == places


def test_what_is_counted_is_there() -> None:
    """Parameters that count layers, branches, experts, slots and steps: count them in the plan, at both bounds."""

    def ops(blueprint_id: str, op: str, parameters: dict[str, float]) -> int:
        return str(catalogue()[blueprint_id].spec(layout="map1d", shape=[6, 9], parameters=parameters)).count(f"'{op}'")

    for blueprint_id, op, low, high in (
        ("BP009", "residual", 1, 4),
        ("BP010", "linear", 2, 4),
        ("BP023", "attention", 1, 6),
        ("BP025", "conv", 2, 8),
        ("BP027", "coarse", 2, 4),
        ("BP030", "graph_attention", 1, 3),
        ("BP036", "gelu", 4, 8),
        ("BP037", "attention", 2, 4),
    ):
        found = [ops(blueprint_id, op, bound(blueprint_id)) for bound in (lowest, highest)]
        assert found == [low, high], blueprint_id
