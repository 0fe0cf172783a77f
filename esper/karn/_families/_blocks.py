"""Blueprints that combine layers which see each position alone, some with a look at all positions at once."""

from __future__ import annotations

from typing import Final

from esper.karn._blueprint import Blueprint, Body, Tree, nearest_integer
from esper.karn._families._trees import (
    VECTOR,
    Parameters,
    by_layout,
    chain,
    context,
    conv,
    everywhere,
    layer_norm,
    linear,
    op,
    residual,
    safe,
)

#: The activations of concat_fusion's branches, in this order.
_ACTIVATIONS: Final = ("relu", "tanh", "gelu", "sine")


def _residual_block(features: int, parameters: Parameters) -> Body:
    block = residual(layer_norm(features), linear(features, features), op("relu"), linear(features, features))
    return Body(chain(*[block] * nearest_integer(parameters["depth"])), features)


def _concat_fusion(features: int, parameters: Parameters) -> Body:
    branches = nearest_integer(parameters["branches"])
    bent = [chain(linear(features, features), op(name)) for name in _ACTIVATIONS[:branches]]
    return Body(op("concat", *bent), branches * features, mixed=True)


def _highway_gate(features: int, parameters: Parameters) -> Body:
    gate: Tree = {"op": "gate", "in": features, "out": features, "bias": parameters["gate_bias"]}
    transform = chain(linear(features, features), op("relu"))
    return Body(op("highway", gate, transform), features)


def _squeeze_excitation(features: int, parameters: Parameters, layout: str) -> Body:
    squeezed = max(1, nearest_integer(features / parameters["reduction"]))
    gate: Tree = {"op": "gate", "in": squeezed, "out": features, "bias": 0.0}
    return Body(op("modulate", chain(context(layout), linear(features, squeezed), op("relu"), gate)), features)


def _channel_attention(features: int, parameters: Parameters, layout: str) -> Body:
    gates = op("channel_attention", features=features, heads=nearest_integer(parameters["heads"]))
    return Body(op("modulate", chain(context(layout), gates)), features)


def _feedforward_gated(features: int, parameters: Parameters) -> Body:
    hidden = nearest_integer(parameters["hidden_multiple"] * features)
    gate = chain(linear(features, hidden), op("silu"))
    return Body(op("product", gate, linear(features, hidden)), hidden, mixed=True)


def _dynamic_conv(features: int, parameters: Parameters, layout: str) -> Body:
    experts = nearest_integer(parameters["experts"])
    expert = linear(features, features) if layout == VECTOR else conv(features, features, 3)
    router = chain(context(layout), linear(features, experts))
    return Body(chain(op("routed", router, *[expert] * experts, experts=experts), op("relu")), features)


def _dense_connection(features: int, parameters: Parameters) -> Body:
    growth = nearest_integer(parameters["growth_rate"])
    grown = chain(linear(features, growth), op("relu"))
    return Body(op("concat", op("identity"), grown), features + growth, mixed=True)


BLOCK_BLUEPRINTS: Final[tuple[Blueprint, ...]] = (
    safe(
        "BP009",
        "residual_block",
        risk=0.3,
        stage=1,
        description="`depth` residual steps in a row, each x + W2 relu(W1 norm(x) + b1) + b2 (pre-activation, He et "
        "al. 2016); `depth` is rounded to the nearest whole number, halves upward.",
        bodies=everywhere(_residual_block),
        parameters={"depth": (1.0, 4.0)},
    ),
    safe(
        "BP010",
        "concat_fusion",
        risk=0.3,
        stage=1,
        description="`branches` layers side by side, relu, tanh, gelu and sine of a W x + b of their own, fused by a "
        "projection (Szegedy et al. 2015); `branches` is rounded to the nearest whole number, halves upward.",
        bodies=everywhere(_concat_fusion),
        parameters={"branches": (2.0, 4.0)},
    ),
    safe(
        "BP014",
        "highway_gate",
        risk=0.4,
        stage=1,
        description="A highway layer, t * relu(W x + b) + (1 - t) * x with t = sigmoid(V x + c) (Srivastava et al. "
        "2015); every entry of c begins at `gate_bias`, negative values carry the input at first.",
        bodies=everywhere(_highway_gate),
        parameters={"gate_bias": (-3.0, 3.0)},
    ),
    safe(
        "BP016",
        "squeeze_excitation",
        risk=0.4,
        stage=2,
        description="A gate for each feature from the mean over the positions, x * sigmoid(V relu(W mean(x) + b) + c) "
        "(Hu et al. 2018), through D / `reduction` hidden features, rounded and at least one. In sequence the mean "
        "is over the positions so far; in vector it is x.",
        bodies=by_layout(_squeeze_excitation),
        parameters={"reduction": (4.0, 16.0)},
    ),
    safe(
        "BP017",
        "channel_attention",
        risk=0.4,
        stage=2,
        description="Features compete for attention: x times D times the mean over `heads` softmaxes of W mean(x) + b "
        "(gates as in Hu et al. 2018, but a distribution). The mean is over the positions, in sequence over those so "
        "far, in vector it is x; `heads` is rounded to the nearest whole number, halves upward.",
        bodies=by_layout(_channel_attention),
        parameters={"heads": (1.0, 4.0)},
    ),
    safe(
        "BP021",
        "feedforward_gated",
        risk=0.5,
        stage=2,
        description="A gated feed-forward layer, silu(W x + b) * (V x + c) into a projection (SwiGLU, Shazeer 2020); "
        "the hidden width is `hidden_multiple` * D rounded to the nearest whole number, halves upward.",
        bodies=everywhere(_feedforward_gated),
        parameters={"hidden_multiple": (2.0, 6.0)},
    ),
    safe(
        "BP025",
        "dynamic_conv",
        risk=0.5,
        stage=3,
        description="`experts` convolutions of three taps, mixed by a softmax over the mean of the sample's positions "
        "(in sequence: those so far), then relu (CondConv, Yang et al. 2019; Chen et al. 2020). In vector the experts "
        "are linear layers, mixed by what x says; `experts` is rounded to the nearest whole number, halves upward.",
        bodies=by_layout(_dynamic_conv),
        parameters={"experts": (2.0, 8.0)},
    ),
    safe(
        "BP028",
        "dense_connection",
        risk=0.5,
        stage=3,
        description="The features beside `growth_rate` new ones, [x, relu(W x + b)], into a projection (Huang et al. "
        "2017); `growth_rate` is rounded to the nearest whole number, halves upward.",
        bodies=everywhere(_dense_connection),
        parameters={"growth_rate": (8.0, 48.0)},
    ),
)
