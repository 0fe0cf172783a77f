"""Blueprints by which positions attend to each other; in vector the features do, each as a token.

The tokens are those of the FT-Transformer (Gorishniy et al. 2021): a trained vector times the feature plus another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from esper.karn._blueprint import Blueprint, Body, Tree, nearest_integer
from esper.karn._families._trees import (
    SEQUENCE,
    Parameters,
    along,
    among,
    attention,
    by_layout,
    chain,
    conv,
    layer_norm,
    linear,
    op,
    residual,
    safe,
)

_LATENTS: Final = 8
_BLOCK_HEADS: Final = 4
#: Hidden features of a transformer's feed-forward layer, as a multiple of the features.
_BLOCK_HIDDEN: Final = 2


def _cross_attention(features: int, parameters: Parameters, layout: str) -> Body:
    heads = nearest_integer(parameters["heads"])
    name = "running_latent_attention" if layout == SEQUENCE else "latent_attention"

    def core(size: int) -> tuple[Tree, int]:
        width = -(-size // heads)
        return op(name, features=size, heads=heads, width=width, latents=_LATENTS), heads * width

    return among(features, layout, core)


def _single_head(features: int, parameters: Parameters, layout: str) -> Body:
    window = nearest_integer(parameters["sequence_length"])
    return among(features, layout, lambda size: attention(size, 1, window=window))


def _multi_head(features: int, parameters: Parameters, layout: str) -> Body:
    def core(size: int) -> tuple[Tree, int]:
        tree, yielded = attention(size, nearest_integer(parameters["heads"]))
        return chain(layer_norm(size), tree), yielded

    return among(features, layout, core)


def _attending(size: int, heads: int) -> Tree:
    """Return x + W attention(norm(x)) + b."""
    tree, yielded = attention(size, heads)
    return residual(layer_norm(size), tree, linear(yielded, size))


def _transformer_block(features: int, parameters: Parameters, layout: str) -> Body:
    def core(size: int) -> tuple[Tree, int]:
        hidden = _BLOCK_HIDDEN * size
        feed = residual(layer_norm(size), linear(size, hidden), op("gelu"), linear(hidden, size))
        return chain(*[_attending(size, _BLOCK_HEADS), feed] * nearest_integer(parameters["layers"])), size

    return among(features, layout, core)


def _conv_transformer(features: int, parameters: Parameters, layout: str) -> Body:
    kernel = nearest_integer(parameters["kernel"])

    def core(size: int) -> tuple[Tree, int]:
        gate: Tree = {"op": "gate", "in": size, "out": size, "bias": 0.0}
        gated = op("product", gate, linear(size, size))
        depthwise = conv(size, size, kernel, groups=size)
        convolving = residual(layer_norm(size), gated, depthwise, op("silu"), linear(size, size))
        return chain(_attending(size, _BLOCK_HEADS), convolving), size

    return among(features, layout, core)


def _graph_attention(features: int, parameters: Parameters, layout: str) -> Body:
    hops = nearest_integer(parameters["hops"])

    def core(inputs: int, outputs: int) -> Tree:
        sizes = [inputs, *[outputs] * hops]
        rounds: list[Tree] = []
        for size in sizes[:-1]:
            rounds += [{"op": "graph_attention", "in": size, "out": outputs}, op("gelu")]
        return chain(*rounds)

    return along(features, layout, core)


def _non_local_block(features: int, parameters: Parameters, layout: str) -> Body:
    window = nearest_integer(parameters["window"])
    return among(features, layout, lambda size: attention(size, 1, width=-(-size // 2), window=window, tiled=True))


def _by_position(
    blueprint_id: str,
    name: str,
    body: Callable[[int, Parameters, str], Body],
    *,
    stage: int,
    description: str,
    parameters: dict[str, tuple[float, float]],
) -> Blueprint:
    return safe(
        blueprint_id,
        name,
        risk=0.5,
        stage=stage,
        description=description,
        bodies=by_layout(body),
        parameters=parameters,
    )


ATTENTION_BLUEPRINTS: Final[tuple[Blueprint, ...]] = (
    _by_position(
        "BP019",
        "cross_attention",
        _cross_attention,
        stage=2,
        description="Eight trained latents read the positions, then every position reads the latents, with `heads` "
        "heads each way, into a projection (induced set attention, Lee et al. 2019). In sequence the latents that t "
        "reads have read the positions up to t; in vector the features are tokens. `heads` is rounded to the nearest "
        "whole number, halves upward.",
        parameters={"heads": (2.0, 4.0)},
    ),
    _by_position(
        "BP020",
        "attention_single_head",
        _single_head,
        stage=2,
        description="Dot-product attention with one head among neighbours, into a projection (Vaswani et al. 2017): "
        "in sequence to the last `sequence_length` positions, in maps to those at most half of it away along each "
        "axis; in vector the features are tokens in a line. `sequence_length` is rounded to the nearest whole number, "
        "halves upward.",
        parameters={"sequence_length": (16.0, 256.0)},
    ),
    _by_position(
        "BP022",
        "multi_head_attention_4",
        _multi_head,
        stage=3,
        description="Attention of normalised features among all positions with `heads` heads, from four, into a "
        "projection (Vaswani et al. 2017); in vector the features are tokens. `heads` is rounded to the nearest whole "
        "number, halves upward, and shares the features evenly, rounded up.",
        parameters={"heads": (4.0, 6.0)},
    ),
    _by_position(
        "BP023",
        "transformer_block",
        _transformer_block,
        stage=3,
        description="`layers` transformer layers with a projection behind them: attention with four heads, then a GELU "
        "layer of twice the width, both residual and on normalised features (Vaswani et al. 2017; Xiong et al. 2020); "
        "in vector the features are tokens. `layers` is rounded to the nearest whole number, halves upward.",
        parameters={"layers": (1.0, 6.0)},
    ),
    _by_position(
        "BP024",
        "conv_transformer",
        _conv_transformer,
        stage=3,
        description="Attention with four heads, then a gated convolution of `kernel` taps within each feature, both "
        "residual, with a projection behind them (Conformer, Gulati et al. 2020); in vector the features are tokens "
        "in a line. `kernel` is rounded to the nearest whole number, halves upward.",
        parameters={"kernel": (3.0, 11.0)},
    ),
    _by_position(
        "BP029",
        "multi_head_attention_8",
        _multi_head,
        stage=4,
        description="Attention of normalised features among all positions with `heads` heads, from eight, into a "
        "projection (Vaswani et al. 2017): more and narrower heads than BP022; in vector the features are tokens. "
        "`heads` is rounded to the nearest whole number, halves upward, and shares the features evenly, rounded up.",
        parameters={"heads": (8.0, 10.0)},
    ),
    _by_position(
        "BP030",
        "graph_attention",
        _graph_attention,
        stage=4,
        description="`hops` rounds in which every position weighs itself and its direct neighbours by additive "
        "attention, then GELU (Velickovic et al. 2018): on the line or grid, in sequence the two before; in vector the "
        "features in a line. `hops` is rounded to the nearest whole number, halves upward.",
        parameters={"hops": (1.0, 3.0)},
    ),
    _by_position(
        "BP034",
        "non_local_block",
        _non_local_block,
        stage=4,
        description="A non-local block: attention with one head of half the features, within tiles of `window` "
        "positions along each axis, into a projection (Wang et al. 2018; tiles as in Liu et al. 2021); in vector the "
        "features are tokens in a line. `window` is rounded to the nearest whole number, halves upward.",
        parameters={"window": (4.0, 16.0)},
    ),
)
