"""Bodies for the layout `vector`: a sample is D features, and each blueprint means something else.

Written for D input features x; the seed's output is the body's output times a gain, or through a projection,
that begins at zero. W and b stand for a trained matrix and bias, drawn at random at first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from esper.karn._blueprint import Blueprint, Body, Tree, nearest_integer

#: The customary epsilon of layer normalisation, where the blueprint does not leave it open (BP003 does).
_EPSILON: Final = 1e-5

_Parameters = Mapping[str, float]


def _sequential(*children: Tree) -> Tree:
    return {"op": "sequential", "children": list(children)}


def _linear(inputs: int, outputs: int, *, bias: bool = True) -> Tree:
    return {"op": "linear", "in": inputs, "out": outputs, "bias": bias}


def _layer_norm(features: int, epsilon: float = _EPSILON) -> Tree:
    return {"op": "layer_norm", "features": features, "epsilon": epsilon}


def _linear_projection(features: int, parameters: _Parameters) -> Body:
    scale: Tree = {"op": "scale", "factor": parameters["scale"]}
    return Body(_sequential(_linear(features, features, bias=False), scale), features)


def _layer_norm_basic(features: int, parameters: _Parameters) -> Body:
    return Body(_layer_norm(features, parameters["epsilon"]), features)


def _relu_activation(features: int, _parameters: _Parameters) -> Body:
    return Body(_sequential(_linear(features, features), {"op": "relu"}), features)


def _skip_connection(features: int, _parameters: _Parameters) -> Body:
    return Body({"op": "identity"}, features)


def _residual_block(features: int, parameters: _Parameters) -> Body:
    block: Tree = {
        "op": "residual",
        "children": [
            _sequential(_layer_norm(features), _linear(features, features), {"op": "relu"}, _linear(features, features))
        ],
    }
    return Body(_sequential(*[block] * nearest_integer(parameters["depth"])), features)


def _gelu_activation(features: int, _parameters: _Parameters) -> Body:
    return Body(_sequential(_layer_norm(features), _linear(features, features), {"op": "gelu"}), features)


def _highway_gate(features: int, parameters: _Parameters) -> Body:
    gate: Tree = {"op": "gate", "in": features, "out": features, "bias": parameters["gate_bias"]}
    transform = _sequential(_linear(features, features), {"op": "relu"})
    return Body({"op": "highway", "children": [gate, transform]}, features)


def _feedforward_gated(features: int, parameters: _Parameters) -> Body:
    hidden = nearest_integer(parameters["hidden_multiple"] * features)
    gate = _sequential(_linear(features, hidden), {"op": "silu"})
    return Body({"op": "product", "children": [gate, _linear(features, hidden)]}, hidden, mixed=True)


def _dense_connection(features: int, parameters: _Parameters) -> Body:
    growth = nearest_integer(parameters["growth_rate"])
    grown = _sequential(_linear(features, growth), {"op": "relu"})
    return Body({"op": "concat", "children": [{"op": "identity"}, grown]}, features + growth, mixed=True)


_SAFE: Final = "SAFE"

VECTOR_BLUEPRINTS: Final[tuple[Blueprint, ...]] = (
    Blueprint(
        "BP002",
        "linear_projection",
        _SAFE,
        risk=0.1,
        stage=0,
        description="A linear mix of the features, scale * W x, without a bias; `scale` is a constant factor.",
        bodies={"vector": _linear_projection},
        parameters={"scale": (0.5, 2.0)},
    ),
    Blueprint(
        "BP003",
        "layer_norm_basic",
        _SAFE,
        risk=0.1,
        stage=0,
        description="The features of each sample brought to mean 0 and variance 1, then a trained weight and "
        "bias per feature; `epsilon` is added to the variance (Ba et al. 2016).",
        bodies={"vector": _layer_norm_basic},
        parameters={"epsilon": (1e-6, 1e-3)},
    ),
    Blueprint(
        "BP005",
        "relu_activation",
        _SAFE,
        risk=0.1,
        stage=0,
        description="One rectified layer, relu(W x + b), as wide as its input.",
        bodies={"vector": _relu_activation},
    ),
    Blueprint(
        "BP008",
        "skip_connection",
        _SAFE,
        risk=0.2,
        stage=1,
        description="A shortcut: the features pass unchanged, and only the gain or projection behind them is trained.",
        bodies={"vector": _skip_connection},
    ),
    Blueprint(
        "BP009",
        "residual_block",
        _SAFE,
        risk=0.3,
        stage=1,
        description="`depth` residual steps in a row, each x + W2 relu(W1 norm(x) + b1) + b2 (pre-activation, He et "
        "al. 2016); `depth` is rounded to the nearest whole number, halves upward.",
        bodies={"vector": _residual_block},
        parameters={"depth": (1.0, 4.0)},
    ),
    Blueprint(
        "BP011",
        "gelu_activation",
        _SAFE,
        risk=0.2,
        stage=1,
        description="One GELU layer on normalised features, gelu(W norm(x) + b) (Hendrycks & Gimpel 2016): unlike "
        "relu, GELU bends differently at another scale of its input, hence the norm.",
        bodies={"vector": _gelu_activation},
    ),
    Blueprint(
        "BP014",
        "highway_gate",
        _SAFE,
        risk=0.4,
        stage=1,
        description="A highway layer, t * relu(W x + b) + (1 - t) * x with t = sigmoid(V x + c) (Srivastava et al. "
        "2015); every entry of c begins at `gate_bias`, negative values carry the input at first.",
        bodies={"vector": _highway_gate},
        parameters={"gate_bias": (-3.0, 3.0)},
    ),
    Blueprint(
        "BP021",
        "feedforward_gated",
        _SAFE,
        risk=0.5,
        stage=2,
        description="A gated feed-forward layer, silu(W x + b) * (V x + c) into a projection (SwiGLU, Shazeer 2020); "
        "the hidden width is `hidden_multiple` * D rounded to the nearest whole number, halves upward.",
        bodies={"vector": _feedforward_gated},
        parameters={"hidden_multiple": (2.0, 6.0)},
    ),
    Blueprint(
        "BP028",
        "dense_connection",
        _SAFE,
        risk=0.5,
        stage=3,
        description="The features beside `growth_rate` new ones, [x, relu(W x + b)], into a projection (Huang et al. "
        "2017); `growth_rate` is rounded to the nearest whole number, halves upward.",
        bodies={"vector": _dense_connection},
        parameters={"growth_rate": (8.0, 48.0)},
    ),
)
