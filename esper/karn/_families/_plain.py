"""Blueprints of one layer that sees each position alone."""

from __future__ import annotations

import math
from typing import Final

from esper.karn._blueprint import Blueprint, Body, Tree
from esper.karn._families._trees import (
    EPSILON,
    MAPS,
    SEQUENCE,
    VECTOR,
    Parameters,
    chain,
    everywhere,
    layer_norm,
    linear,
    op,
    safe,
)


def _identity(features: int, _parameters: Parameters) -> Body:
    return Body(op("identity"), features, plain=True)


def _linear_projection(features: int, parameters: Parameters) -> Body:
    scale: Tree = {"op": "scale", "factor": parameters["scale"]}
    return Body(chain(linear(features, features, bias=False), scale), features)


def _layer_norm_basic(features: int, parameters: Parameters) -> Body:
    return Body(layer_norm(features, parameters["epsilon"]), features)


def _dropout_light(features: int, parameters: Parameters) -> Body:
    dropout = op("dropout", rate=parameters["dropout"])
    return Body(chain(layer_norm(features), linear(features, features), dropout), features)


def _relu_activation(features: int, _parameters: Parameters) -> Body:
    return Body(chain(linear(features, features), op("relu")), features)


def _batch_norm(features: int, parameters: Parameters) -> Body:
    return Body(op("batch_norm", features=features, momentum=parameters["momentum"], epsilon=EPSILON), features)


def _skip_connection(features: int, _parameters: Parameters) -> Body:
    return Body(op("identity"), features)


def _gelu_activation(features: int, _parameters: Parameters) -> Body:
    return Body(chain(layer_norm(features), linear(features, features), op("gelu")), features)


def _layer_scaling(features: int, parameters: Parameters) -> Body:
    return Body(op("dynamic_tanh", features=features, alpha=parameters["scale"]), features)


def _positional(features: int, parameters: Parameters) -> Body:
    table = op("positional", features=features, frequency=parameters["frequency"])
    return Body(chain(table, linear(features, features), op("gelu")), features)


def _fourier_features(features: int, parameters: Parameters) -> Body:
    turns = op("scale", factor=2.0 * math.pi * parameters["frequency"])
    return Body(chain(linear(features, features), turns, op("sine")), features)


PLAIN_BLUEPRINTS: Final[tuple[Blueprint, ...]] = (
    safe(
        "BP001",
        "identity_passthrough",
        risk=0.0,
        stage=0,
        description="The features unchanged, times one trained factor for all of them (ReZero, Bachlechner et al. "
        "2020); where the slot takes more or fewer features, zeros are added or the last ones cut off.",
        bodies=everywhere(_identity),
    ),
    safe(
        "BP002",
        "linear_projection",
        risk=0.1,
        stage=0,
        description="A linear mix of the features, scale * W x, without a bias; `scale` is a constant factor.",
        bodies=everywhere(_linear_projection),
        parameters={"scale": (0.5, 2.0)},
    ),
    safe(
        "BP003",
        "layer_norm_basic",
        risk=0.1,
        stage=0,
        description="The features of each sample, at each of its positions, brought to mean 0 and variance 1, then a "
        "trained weight and bias per feature; `epsilon` is added to the variance (Ba et al. 2016).",
        bodies=everywhere(_layer_norm_basic),
        parameters={"epsilon": (1e-6, 1e-3)},
    ),
    safe(
        "BP004",
        "dropout_light",
        risk=0.2,
        stage=0,
        description="A linear layer on normalised features, W norm(x) + b, of which each number is left out in "
        "training with probability `dropout` (Srivastava et al. 2014).",
        bodies=everywhere(_dropout_light),
        parameters={"dropout": (0.0, 0.4)},
    ),
    safe(
        "BP005",
        "relu_activation",
        risk=0.1,
        stage=0,
        description="One rectified layer, relu(W x + b), as wide as its input.",
        bodies=everywhere(_relu_activation),
    ),
    safe(
        "BP006",
        "batch_norm_1d",
        risk=0.2,
        stage=0,
        description="Each feature brought to mean 0 and variance 1 over the batch and all positions, then a trained "
        "weight and bias (Ioffe & Szegedy 2015); `momentum` is the share of its running statistics that a training "
        "step keeps. No layout sequence, as the statistics would hold the future.",
        bodies={VECTOR: _batch_norm, "map1d": _batch_norm},
        parameters={"momentum": (0.5, 0.99)},
    ),
    safe(
        "BP008",
        "skip_connection",
        risk=0.2,
        stage=1,
        description="A shortcut: the features pass unchanged, and only the gain per feature or the projection behind "
        "them is trained (He et al. 2016).",
        bodies=everywhere(_skip_connection),
    ),
    safe(
        "BP011",
        "gelu_activation",
        risk=0.2,
        stage=1,
        description="One GELU layer on normalised features, gelu(W norm(x) + b) (Hendrycks & Gimpel 2016): unlike "
        "relu, GELU bends differently at another scale of its input, hence the norm.",
        bodies=everywhere(_gelu_activation),
    ),
    safe(
        "BP012",
        "layer_scaling",
        risk=0.3,
        stage=1,
        description="A norm without statistics, w * tanh(a x) + b with a weight and bias per feature (dynamic tanh, "
        "Zhu et al. 2025); the one trained a begins at `scale`.",
        bodies=everywhere(_layer_scaling),
        parameters={"scale": (0.8, 1.2)},
    ),
    safe(
        "BP035",
        "learned_positional",
        risk=0.5,
        stage=4,
        description="A layer that knows where it stands, gelu(W (x + p) + b), where p is a trained wave of the "
        "position per feature, its frequency drawn from up to `frequency` radians a position (learnable Fourier "
        "features, Li et al. 2021). In vector the features are the coordinates: sin(2 pi `frequency` (W x + b)) "
        "(Tancik et al. 2020).",
        bodies={VECTOR: _fourier_features} | dict.fromkeys((SEQUENCE, *MAPS), _positional),
        parameters={"frequency": (0.1, 1.0)},
    ),
)
