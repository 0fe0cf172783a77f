"""Specs for tests: one that is fixed, and any that the vocabulary allows."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from esper.core.kernel import make_request
from esper.leyline import messages as ly

Tree = dict[str, Any]


def request(in_features: int = 6, out_features: int = 4, **changes: Any) -> ly.KernelRequestSpec:
    """Return a request that `spec` answers."""
    fields: dict[str, Any] = {"layout": "vector", "in_shape": [in_features], "out_shape": [out_features]}
    return make_request("EXAMPLE", {"width": 2.0}, **(fields | changes))


def spec(in_features: int = 6, out_features: int = 4, *, dtype: str = "float32", hidden: int = 5) -> Tree:
    """Return a small spec with drawn, constant and zero parameters."""
    body = sequential(
        {"op": "layer_norm", "features": in_features, "epsilon": 1e-5}, linear(in_features, hidden), {"op": "relu"}
    )
    return document(in_features, out_features, body, hidden, dtype=dtype)


def document(in_features: int, out_features: int, body: Tree, body_features: int, *, dtype: str = "float32") -> Tree:
    """Return a whole spec around `body`, closed by a projection."""
    return {
        "format": 1,
        "layout": "vector",
        "dtype": dtype,
        "in_shape": [in_features],
        "out_shape": [out_features],
        "body": body,
        "end": {"op": "projection", "in": body_features, "out": out_features},
    }


def linear(inputs: int, outputs: int, *, bias: bool = True) -> Tree:
    """Return a linear node."""
    return {"op": "linear", "in": inputs, "out": outputs, "bias": bias}


def sequential(*children: Tree) -> Tree:
    """Return a chain."""
    return {"op": "sequential", "children": list(children)}


@st.composite
def bodies(draw: st.DrawFn, features: int, depth: int = 3) -> tuple[Tree, int]:
    """Draw any body for `features` input features, and how many it yields."""
    leaves = ["identity", "relu", "gelu", "silu", "scale", "linear", "gate", "layer_norm"]
    op = draw(st.sampled_from(leaves + ["sequential", "residual", "concat", "product", "highway"] * (depth > 0)))
    if op in ("identity", "relu", "gelu", "silu"):
        return {"op": op}, features
    if op == "scale":
        return {"op": op, "factor": draw(st.floats(-100, 100))}, features
    if op == "layer_norm":
        return {"op": op, "features": features, "epsilon": draw(st.floats(1e-12, 1.0))}, features
    outputs = draw(st.integers(1, 7))
    if op == "linear":
        return linear(features, outputs, bias=draw(st.booleans())), outputs
    if op == "gate":
        return {"op": op, "in": features, "out": outputs, "bias": draw(st.floats(-100, 100))}, outputs
    if op == "sequential":
        children, width = [], features
        for _ in range(draw(st.integers(1, 3))):
            child, width = draw(bodies(width, depth - 1))
            children.append(child)
        return sequential(*children), width
    if op == "concat":
        drawn = [draw(bodies(features, depth - 1)) for _ in range(draw(st.integers(2, 3)))]
        return {"op": op, "children": [child for child, _ in drawn]}, sum(width for _, width in drawn)
    first, width = draw(bodies(features, depth - 1))
    kept = sequential(first, linear(width, features))
    if op == "residual":
        return {"op": op, "children": [kept]}, features
    second = sequential({"op": "silu"}, linear(features, features))
    return {"op": op, "children": [kept, second]}, features


@st.composite
def specs(draw: st.DrawFn) -> Tree:
    """Draw any whole spec."""
    in_features, out_features = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    body, width = draw(bodies(in_features))
    whole = document(in_features, out_features, body, width, dtype=draw(st.sampled_from(["float32", "float64"])))
    if width == out_features and draw(st.booleans()):
        whole["end"] = {"op": "gain", "features": width}
    return whole
