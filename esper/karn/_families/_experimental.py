"""Blueprints of the tier EXPERIMENTAL: each needs a person's approval before it is grafted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from esper.karn._blueprint import Blueprint, Body, BodyOf, Tree, nearest_integer
from esper.karn._families._trees import (
    VECTOR,
    Parameters,
    among,
    attention,
    by_layout,
    chain,
    conv,
    everywhere,
    layer_norm,
    linear,
    op,
)

#: Positions along each axis that attend to each other at one level of hierarchical_attention.
_TILE: Final = 8
#: How much rarer the positions of the next level are.
_STRIDE: Final = 4
#: Fast weights are a square of this many features at most.
_FAST_WIDTH_MAX: Final = 32


def _mixture_of_experts(features: int, parameters: Parameters) -> Body:
    experts = nearest_integer(parameters["experts"])
    expert = chain(linear(features, features), op("gelu"), linear(features, features))
    router = linear(features, experts)
    return Body(op("switched", router, *[expert] * experts, experts=experts, capacity=parameters["capacity"]), features)


def _hierarchical_attention(features: int, parameters: Parameters, layout: str) -> Body:
    levels = nearest_integer(parameters["levels"])
    return among(features, layout, lambda size: (_hierarchy(size, levels), size))


def _hierarchy(size: int, levels: int) -> Tree:
    """Return attention within tiles here, plus the same on rarer positions."""
    tree, yielded = attention(size, 2, window=_TILE, tiled=True)
    here = chain(layer_norm(size), tree, linear(yielded, size))
    return here if levels == 1 else op("sum", here, op("coarse", _hierarchy(size, levels - 1), stride=_STRIDE))


def _memory_augmented(features: int, parameters: Parameters) -> Body:
    slots = nearest_integer(parameters["memory_slots"])
    keys, values = linear(features, slots, bias=False), linear(slots, features, bias=False)
    read = chain(layer_norm(features), keys, op("softmax"), values)
    return Body(op("concat", op("identity"), read), 2 * features, mixed=True)


def _neural_ode(features: int, parameters: Parameters) -> Body:
    slope = chain(linear(features, features), op("tanh"), linear(features, features))
    return Body(op("integrate", slope, steps=nearest_integer(parameters["steps"])), features)


def _differentiable_nas(features: int, parameters: Parameters, layout: str) -> Body:
    choices = _layers(features) if layout == VECTOR else _convolutions(features)
    mixed = op("mixed", *choices, choices=len(choices), temperature=parameters["temperature"])
    return Body(mixed, features)


def _layers(features: int) -> list[Tree]:
    bent = [chain(linear(features, features), op(name)) for name in ("relu", "tanh", "sine")]
    return [op("identity"), *bent, chain(layer_norm(features), linear(features, features), op("gelu"))]


def _convolutions(features: int) -> list[Tree]:
    return [
        op("identity"),
        op("max_window", kernel=3),
        chain(conv(features, features, 3), op("relu")),
        chain(conv(features, features, 3, dilation=2), op("relu")),
        chain(conv(features, features, 5, groups=features), linear(features, features), op("relu")),
    ]


def _meta_learning(features: int, parameters: Parameters) -> Body:
    width, steps = min(features, _FAST_WIDTH_MAX), nearest_integer(parameters["adapt_steps"])
    return Body(op("fast_weights", features=features, width=width, steps=steps), width, mixed=True)


def _recursive_processing(features: int, parameters: Parameters) -> Body:
    cell = chain(layer_norm(features), linear(features, features), op("tanh"))
    return Body(op("recur", cell, steps=nearest_integer(parameters["depth"])), features)


def _experimental(
    blueprint_id: str,
    name: str,
    bodies: Mapping[str, BodyOf],
    *,
    risk: float = 0.8,
    description: str,
    parameters: Mapping[str, tuple[float, float]],
) -> Blueprint:
    return Blueprint(
        blueprint_id,
        name,
        "EXPERIMENTAL",
        risk=risk,
        stage=5,
        description=description,
        bodies=bodies,
        parameters=parameters,
        approval_required=True,
    )


EXPERIMENTAL_BLUEPRINTS: Final[tuple[Blueprint, ...]] = (
    _experimental(
        "BP036",
        "mixture_of_experts_4",
        everywhere(_mixture_of_experts),
        risk=0.7,
        description="`experts` GELU networks of which each position is shown to the likeliest one only, times its "
        "probability (Switch Transformer, Fedus et al. 2022). An expert takes at most `capacity` times its even share "
        "of a sample's positions, the earlier ones first, and the rest get zero; in vector of a batch's samples, in "
        "training only. `experts` is rounded to the nearest whole number, halves upward.",
        parameters={"experts": (4.0, 8.0), "capacity": (1.0, 2.0)},
    ),
    _experimental(
        "BP037",
        "hierarchical_attention",
        by_layout(_hierarchical_attention),
        risk=0.7,
        description="The sum over `levels` of attention within tiles of eight positions along each axis, every level "
        "on means of four positions of the one below, with a projection behind it (Zhu & Soricut 2021); in vector the "
        "features are tokens in a line. `levels` is rounded to the nearest whole number, halves upward.",
        parameters={"levels": (2.0, 4.0)},
    ),
    _experimental(
        "BP038",
        "memory_augmented",
        everywhere(_memory_augmented),
        description="The features beside what they recall: a softmax of their likeness to the trained keys of "
        "`memory_slots` slots mixes the slots' trained values, into a projection (Sukhbaatar et al. 2019). "
        "`memory_slots` is rounded to the nearest whole number, halves upward.",
        parameters={"memory_slots": (32.0, 128.0)},
    ),
    _experimental(
        "BP039",
        "neural_ode_block",
        everywhere(_neural_ode),
        description="The flow of dx/dt = W2 tanh(W1 x + b1) + b2 over one unit of time, in `steps` steps of the "
        "midpoint rule that share their weights (Chen et al. 2018). `steps` is rounded to the nearest whole number, "
        "halves upward.",
        parameters={"steps": (1.0, 10.0)},
    ),
    _experimental(
        "BP040",
        "differentiable_nas",
        by_layout(_differentiable_nas),
        description="Five candidates at once, mixed by the softmax of one trained number each over `temperature` "
        "(DARTS, Liu et al. 2019): the input, a maximum, two convolutions and a separable one; in vector the input "
        "and layers of four activations.",
        parameters={"temperature": (0.5, 2.0)},
    ),
    _experimental(
        "BP041",
        "meta_learning_layer",
        everywhere(_meta_learning),
        description="A linear map W q that first takes `adapt_steps` gradient steps on the sample's own pairs of key "
        "and value, from trained slow weights at a trained rate, into a projection (fast weights, Schmidhuber 1992; "
        "test-time training, Sun et al. 2024). The pairs are those of all positions, in sequence of those so far. "
        "`adapt_steps` is rounded to the nearest whole number, halves upward.",
        parameters={"adapt_steps": (1.0, 5.0)},
    ),
    _experimental(
        "BP042",
        "recursive_processing",
        everywhere(_recursive_processing),
        description="One cell `depth` times, z = tanh(W norm(z + x) + b) from z = 0, with the input shown each time "
        "and the weights shared (Bai et al. 2019). `depth` is rounded to the nearest whole number, halves upward.",
        parameters={"depth": (2.0, 6.0)},
    ),
)
