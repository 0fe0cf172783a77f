"""Words that see each position alone, or that only combine what their children make of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from esper.core.kernel._word import (
    CHILDREN_MAX,
    MAP,
    Attributes,
    Shape,
    TensorPlan,
    Word,
    agreed,
    counted,
    drawn_map,
    epsilon,
    factor,
    features,
    featurewise,
    flag,
    joined,
    kept,
    last,
    map_products,
    mapped,
    products,
    same,
    within,
)


def _linear(attributes: Attributes, _shape: Shape) -> dict[str, TensorPlan]:
    return drawn_map(int(attributes["in"]), int(attributes["out"]), bias=bool(attributes["bias"]))


def _gate(attributes: Attributes, _shape: Shape) -> dict[str, TensorPlan]:
    inputs, outputs = int(attributes["in"]), int(attributes["out"])
    weight = TensorPlan((outputs, inputs), 1.0 / math.sqrt(inputs))
    return {"weight": weight, "bias": TensorPlan((outputs,), fill=attributes["bias"])}


def _zero_map(attributes: Attributes, _shape: Shape) -> dict[str, TensorPlan]:
    inputs, outputs = int(attributes["in"]), int(attributes["out"])
    return {"weight": TensorPlan((outputs, inputs)), "bias": TensorPlan((outputs,))}


def _norm(attributes: Attributes, _shape: Shape) -> dict[str, TensorPlan]:
    size = (int(attributes["features"]),)
    return {"weight": TensorPlan(size, fill=1.0), "bias": TensorPlan(size)}


def _batch_norm(attributes: Attributes, shape: Shape) -> dict[str, TensorPlan]:
    size = (int(attributes["features"]),)
    running = {
        "running_mean": TensorPlan(size, trained=False),
        "running_variance": TensorPlan(size, fill=1.0, trained=False),
    }
    return _norm(attributes, shape) | running


def _dynamic_tanh(attributes: Attributes, shape: Shape) -> dict[str, TensorPlan]:
    return _norm(attributes, shape) | {"alpha": TensorPlan((1,), fill=attributes["alpha"])}


def _zero_gain(attributes: Attributes, _shape: Shape) -> dict[str, TensorPlan]:
    return {"weight": TensorPlan((int(attributes["features"]),))}


def _grouped_shape(attributes: Attributes, shape: Shape, children: Sequence[Shape]) -> Shape | None:
    even = attributes["in"] % attributes["groups"] == 0 == attributes["out"] % attributes["groups"]
    return mapped(attributes, shape, children) if even else None


def _grouped(attributes: Attributes, _shape: Shape) -> dict[str, TensorPlan]:
    groups, outputs = int(attributes["groups"]), int(attributes["out"])
    inputs = max(1, int(attributes["in"]) // groups)
    bound = 1.0 / math.sqrt(inputs)
    return {
        "weight": TensorPlan((groups, max(1, outputs // groups), inputs), bound),
        "bias": TensorPlan((outputs,), bound),
    }


def _grouped_products(attributes: Attributes, shape: Shape, out: Shape) -> int:
    return map_products(attributes, shape, out) // int(attributes["groups"])


def _maxout(attributes: Attributes, _shape: Shape) -> dict[str, TensorPlan]:
    return drawn_map(int(attributes["in"]), int(attributes["out"]) * int(attributes["pieces"]))


def _maxout_products(attributes: Attributes, shape: Shape, out: Shape) -> int:
    return map_products(attributes, shape, out) * int(attributes["pieces"])


def _fitted(attributes: Attributes, shape: Shape, _children: Sequence[Shape]) -> Shape | None:
    return (*shape[:-1], int(attributes["features"]))


def _modulated(_attributes: Attributes, shape: Shape, children: Sequence[Shape]) -> Shape | None:
    fits = len(children[0]) == len(shape) and all(b in (1, a) for a, b in zip(shape, children[0], strict=True))
    return shape if fits else None


FEATURE_WORDS: Final[Mapping[str, Word]] = {
    "identity": Word(same, {}),
    "relu": Word(same, {}),
    "gelu": Word(same, {}),
    "silu": Word(same, {}),
    "tanh": Word(same, {}),
    "sigmoid": Word(same, {}),
    "sine": Word(same, {}),
    # Over the features of each position.
    "softmax": Word(same, {}),
    "scale": Word(same, {"factor": factor}, products_of=products(1)),
    # In training mode, a feature becomes zero with probability `rate`, and what stays grows by 1 / (1 - rate).
    "dropout": Word(same, {"rate": within(0.0, 0.9)}, products_of=products(1)),
    # The first features, or all of them and zeros behind them.
    "fit": Word(_fitted, {"features": features}),
    "linear": Word(mapped, {**MAP, "bias": flag}, tensors_of=_linear, products_of=map_products),
    # A linear map in blocks: group g of the output sees group g of the input alone.
    "grouped_linear": Word(
        _grouped_shape, {**MAP, "groups": features}, tensors_of=_grouped, products_of=_grouped_products
    ),
    # The largest of `pieces` linear maps, feature by feature.
    "maxout": Word(
        mapped, {**MAP, "pieces": counted(2, CHILDREN_MAX)}, tensors_of=_maxout, products_of=_maxout_products
    ),
    # A logistic gate sigmoid(W x + b) whose every bias begins at `bias`.
    "gate": Word(mapped, {**MAP, "bias": factor}, tensors_of=_gate, products_of=map_products),
    # The square of the variance, the product with its root's inverse, and the product with the weight.
    "layer_norm": Word(
        featurewise, {"features": features, "epsilon": epsilon}, tensors_of=_norm, products_of=products(3)
    ),
    # Statistics over batch and positions, hence of the future too: no word for sequences.
    "batch_norm": Word(
        featurewise,
        {"features": features, "momentum": within(0.0, 1.0), "epsilon": epsilon},
        tensors_of=_batch_norm,
        products_of=products(3),
        layouts=frozenset({"vector", "map1d", "map2d"}),
    ),
    # weight * tanh(alpha * x) + bias, with one trained alpha.
    "dynamic_tanh": Word(
        featurewise, {"features": features, "alpha": factor}, tensors_of=_dynamic_tanh, products_of=products(2)
    ),
    "sequential": Word(last, {}, children=(1, CHILDREN_MAX)),
    # x + child(x)
    "residual": Word(kept, {}, children=(1, 1)),
    # All children see the input; their outputs stand side by side.
    "concat": Word(joined, {}, children=(2, CHILDREN_MAX)),
    # The sum of what the children make of the input.
    "sum": Word(agreed, {}, children=(2, CHILDREN_MAX)),
    # first(x) * second(x)
    "product": Word(agreed, {}, children=(2, 2), products_of=products(1)),
    # x * child(x), where the child may yield one number for all features or for all positions.
    "modulate": Word(_modulated, {}, children=(1, 1), products_of=products(1)),
    # With t = first(x): t * second(x) + (1 - t) * x
    "highway": Word(kept, {}, children=(2, 2), products_of=products(2)),
}

END_WORDS: Final[Mapping[str, Word]] = {
    # A factor per feature, all zero at first.
    "gain": Word(featurewise, {"features": features}, tensors_of=_zero_gain, products_of=products(1)),
    # One factor for everything, zero at first; features are cut off or zeros added to make `out` of them.
    "scalar_gain": Word(
        mapped, MAP, tensors_of=lambda _attributes, _shape: {"weight": TensorPlan((1,))}, products_of=products(1)
    ),
    # A linear map with bias, all zero at first.
    "projection": Word(mapped, MAP, tensors_of=_zero_map, products_of=map_products),
}
