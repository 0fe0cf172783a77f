"""The vocabulary: what is built is what was planned, and what is not in it is refused whole."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.core.errors import IntegrityError, UsageError
from esper.core.kernel import build_module, canonical_json, init_module, plan_spec
from tests.core.kernel.examples import Tree, document, linear, sequential, spec, specs


def nested(depth: int) -> Tree:
    """Return a body of `depth` residuals inside each other."""
    node: Tree = {"op": "relu"}
    for _ in range(depth):
        node = {"op": "residual", "children": [node]}
    return node


@settings(max_examples=80, deadline=None)
@given(specs(), st.integers(1, 4))
def test_module_is_what_the_plan_says(whole: Tree, batch: int) -> None:
    """A plan foretells the module: draw specs, build each, compare names, shapes, count, output and zero effect."""
    plan = plan_spec(whole)
    module = build_module(whole)
    init_module(module, torch.Generator().manual_seed(1))
    found = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert found == {name: tensor.shape for name, tensor in plan.tensors.items()}
    assert sum(parameter.numel() for parameter in module.parameters()) == plan.parameters
    dtype = getattr(torch, whole["dtype"])
    out = module(torch.randn(batch, *plan.in_shape, dtype=dtype, generator=torch.Generator().manual_seed(2)))
    assert out.shape == (batch, *plan.out_shape)
    assert out.dtype == dtype
    assert torch.count_nonzero(out) == 0


def test_first_values_follow_the_plan() -> None:
    """Drawn weights are random and bounded, constants exact, the end zero: look at each kind of parameter."""
    body = sequential(
        {"op": "gate", "in": 6, "out": 50, "bias": -2.5},
        linear(50, 40),
        {"op": "layer_norm", "features": 40, "epsilon": 1e-5},
    )
    module = build_module(document(6, 4, body, 40))
    init_module(module, torch.Generator().manual_seed(3))
    values = {name: parameter.detach() for name, parameter in module.named_parameters()}
    for name, inputs in (("body.0.weight", 6), ("body.1.weight", 50), ("body.1.bias", 50)):
        assert values[name].abs().max() <= inputs**-0.5
        assert values[name].abs().max() > 0.9 * inputs**-0.5
        assert float(values[name].std()) == pytest.approx(inputs**-0.5 / 3**0.5, rel=0.2)
    assert torch.all(values["body.0.bias"] == -2.5)
    assert torch.all(values["body.2.weight"] == 1.0)
    assert torch.all(values["body.2.bias"] == 0.0)
    assert torch.all(values["end.weight"] == 0.0)
    assert torch.all(values["end.bias"] == 0.0)


def test_products_are_counted_by_hand() -> None:
    """Multiply-adds of a known tree: add up by hand what each word documents."""
    body = {
        "op": "highway",
        "children": [
            {"op": "gate", "in": 3, "out": 3, "bias": 0.0},  # 9
            sequential({"op": "layer_norm", "features": 3, "epsilon": 1e-5}, linear(3, 3), {"op": "relu"}),  # 9 + 9
        ],  # 6
    }
    joined = {"op": "concat", "children": [body, {"op": "scale", "factor": 2.0}]}  # 3
    multiplied = {"op": "product", "children": [joined, joined]}  # 6, and all of the above twice
    assert plan_spec(document(3, 2, multiplied, 6)).multiply_adds_per_sample == 2 * (9 + 18 + 6 + 3) + 6 + 12


def test_gradient_reaches_the_body_at_the_second_step() -> None:
    """Zero-initialised ends do not cut the body off: one step moves the end alone, the next one everything."""
    module = build_module(spec())
    init_module(module, torch.Generator().manual_seed(4))
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(5))
    y = torch.randn(16, 4, generator=torch.Generator().manual_seed(6))
    norms = []
    for _ in range(2):
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(module(x), y).backward()
        norms.append({name: float(p.grad.norm()) for name, p in module.named_parameters() if p.grad is not None})
        optimiser.step()
    assert {name for name, norm in norms[0].items() if norm > 0} == {"end.weight", "end.bias"}
    assert all(norm > 0 for norm in norms[1].values())
    assert norms[1].keys() == dict(module.named_parameters()).keys()


def test_global_randomness_is_left_alone() -> None:
    """Building and initialising draw from the given generator only: compare the global state before and after."""
    torch.manual_seed(11)
    before = torch.get_rng_state()
    module = build_module(spec())
    init_module(module, torch.Generator().manual_seed(1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("shape", [(2, 5), (2, 1), (2, 3, 6), (6,)])
def test_wrong_input_shape_is_refused(shape: tuple[int, ...]) -> None:
    """A kernel never broadcasts over an input that is not its own: feed shapes that it was not made for."""
    module = build_module(document(6, 6, {"op": "relu"}, 6) | {"end": {"op": "gain", "features": 6}})
    with pytest.raises(UsageError, match=r"\[6\]"):
        module(torch.zeros(shape))


def change(path: str, value: object) -> Callable[[Tree], None]:
    """Return an edit that sets `path` ("body/children/0/op") to `value`."""

    def edit(whole: Any) -> None:
        *parents, last = path.split("/")
        for step in parents:
            whole = whole[int(step) if step.isdigit() else step]
        whole[int(last) if last.isdigit() else last] = value

    return edit


REFUSED: dict[str, tuple[Callable[[Tree], object], str]] = {
    "unknown op": (change("body/children/0", {"op": "import_module"}), "unknown op"),
    "an end in the body": (change("body/children/0", {"op": "projection", "in": 6, "out": 6}), "unknown op"),
    "a body word as end": (change("end", linear(5, 4)), "unknown op"),
    "no op": (change("body", {"in": 6}), "no object with an op"),
    "op is no text": (change("body/op", ["linear"]), "no object with an op"),
    "node is no object": (change("body/children/0", "relu"), "no object with an op"),
    "missing attribute": (lambda whole: whole["end"].pop("in"), r"projection has"),
    "extra attribute": (change("body/children/0/code", "print(1)"), r"layer_norm has"),
    "children of a leaf": (change("body/children/2/children", []), r"relu has"),
    "no children": (change("body/children", []), "takes 1 to 32"),
    "children no list": (change("body/children", {"0": {"op": "relu"}}), "takes 1 to 32"),
    "too many children": (change("body/children", [{"op": "relu"}] * 33), "takes 1 to 32"),
    "size zero": (change("body/children/1/in", 0), "out of bounds"),
    "size negative": (change("end/out", -4), "out of bounds"),
    "size true": (change("end/out", True), "out of bounds"),
    "size a float": (change("end/out", 4.0), "out of bounds"),
    "size a text": (change("end/out", "4"), "out of bounds"),
    "size huge": (change("end/out", 10**12), "out of bounds"),
    "bias no flag": (change("body/children/1/bias", 1), "out of bounds"),
    "epsilon zero": (change("body/children/0/epsilon", 0.0), "out of bounds"),
    "epsilon not finite": (change("body/children/0/epsilon", float("nan")), "out of bounds"),
    "factor huge": (change("body/children/2", {"op": "scale", "factor": 1e30}), "out of bounds"),
    "factor infinite": (change("body/children/2", {"op": "scale", "factor": float("inf")}), "out of bounds"),
    "shapes that do not meet": (change("body/children/1/in", 7), "cannot take shape"),
    "norm of another size": (change("body/children/0/features", 7), "cannot take shape"),
    "residual of another size": (change("body", {"op": "residual", "children": [linear(6, 5)]}), "cannot take"),
    "product of other sizes": (change("body", {"op": "product", "children": [linear(6, 5), linear(6, 4)]}), "cannot"),
    "concat beyond the largest size": (
        change("body", {"op": "concat", "children": [linear(6, 60_000, bias=False)] * 2}),
        "cannot take",
    ),
    "out_shape of another size": (change("out_shape", [5]), "not out_shape"),
    "in_shape of two sizes": (change("in_shape", [6, 6]), "in_shape"),
    "in_shape of none": (change("in_shape", []), "in_shape"),
    "in_shape no list": (change("in_shape", 6), "in_shape"),
    "in_shape negative": (change("in_shape", [-6]), "in_shape"),
    "unknown layout": (change("layout", "video"), "layout"),
    "layout no text": (change("layout", ["vector"]), "layout"),
    "unknown dtype": (change("dtype", "object"), "dtype"),
    "another format": (change("format", 2), "format"),
    "format true": (change("format", True), "format"),
    "format a float": (change("format", 1.0), "format"),
    "in a half character": (change("body/children/1/in", "\ud800"), r"'\\ud800' is out of bounds"),
    "extra key": (change("module", "os.system"), "keys"),
    "missing key": (lambda whole: whole.pop("end"), "keys"),
    "nested too deep": (change("body", nested(40)), "deeper than 16"),
    "too many nodes": (change("body", sequential(*[sequential(*[{"op": "relu"}] * 32)] * 9)), "nodes"),
    "too many parameters": (change("body", sequential(linear(6, 60_000), linear(60_000, 60_000))), "parameters"),
    "too many parameters in sum": (change("body", sequential(*[linear(4_000, 4_000)] * 2)), "parameters"),
}


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_malformed_spec_is_refused(what: str) -> None:
    """Whatever the vocabulary does not say is refused before anything is built: break one thing at a time."""
    edit, message = REFUSED[what]
    whole = copy.deepcopy(spec())
    if what == "too many parameters in sum":
        whole |= {"in_shape": [4_000]}
    edit(whole)
    with pytest.raises(IntegrityError, match=message):
        build_module(whole)


def test_a_spec_that_holds_itself_is_refused() -> None:
    """A cycle ends at the depth limit: hand over a node that is its own child."""
    node: Tree = {"op": "residual"}
    node["children"] = [node]
    with pytest.raises(IntegrityError, match="deeper"):
        build_module(spec() | {"body": node})


def test_canonical_form_is_one() -> None:
    """Equal values give equal bytes, different ones do not: order and spacing fall away, 1 and 1.0 stay apart."""
    assert canonical_json({"b": 1.0, "a": [True, None, "ä"]}) == b'{"a":[true,null,"\\u00e4"],"b":1.0}'
    assert canonical_json({"a": 1}) != canonical_json({"a": 1.0})
    for unsayable in (float("nan"), float("inf"), object()):
        with pytest.raises(UsageError):
            canonical_json({"a": unsayable})
