"""Words by which positions, features or memories attend to each other; in `sequence` to earlier positions alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from esper.core.kernel._request import FEATURES_MAX
from esper.core.kernel._word import (
    ELEMENTS_MAX,
    LAYOUTS_ALL,
    MAP,
    Attributes,
    Shape,
    TensorPlan,
    Word,
    counted,
    drawn_map,
    features,
    featurewise,
    flag,
    mapped,
)
from esper.core.kernel._words._positions import placed

HEADS_MAX: Final = 64
_HEADS: Final[Mapping[str, Callable[[object], bool]]] = {
    "features": features,
    "heads": counted(1, HEADS_MAX),
    "width": features,
}
_NEIGHBOURS: Final = 2


def _inner(attributes: Attributes) -> int:
    return int(attributes["heads"]) * int(attributes["width"])


def _triple(attributes: Attributes, _shape: Shape) -> dict[str, TensorPlan]:
    """Plan one map to queries, keys and values."""
    return drawn_map(int(attributes["features"]), 3 * _inner(attributes))


def _headed(attributes: Attributes, shape: Shape, scores: int) -> Shape | None:
    fits = placed(shape) and shape[-1] == attributes["features"] and scores <= ELEMENTS_MAX
    return (*shape[:-1], _inner(attributes)) if fits and _inner(attributes) <= FEATURES_MAX else None


def _attention_shape(attributes: Attributes, shape: Shape, _children: Sequence[Shape]) -> Shape | None:
    return _headed(attributes, shape, int(attributes["heads"]) * math.prod(shape[:-1]) ** 2)


def _attention_products(attributes: Attributes, shape: Shape, _out: Shape) -> int:
    places, inner = math.prod(shape[:-1]), _inner(attributes)
    return places * inner * (3 * shape[-1] + 2 * places + 1)


def _latent(attributes: Attributes, shape: Shape) -> dict[str, TensorPlan]:
    heads, count, width = int(attributes["heads"]), int(attributes["latents"]), int(attributes["width"])
    return _triple(attributes, shape) | {"latents": TensorPlan((heads, count, width), 1.0)}


def _latent_shape(attributes: Attributes, shape: Shape, _children: Sequence[Shape]) -> Shape | None:
    return _headed(attributes, shape, _scores(attributes, shape))


def _running_latent_shape(attributes: Attributes, shape: Shape, _children: Sequence[Shape]) -> Shape | None:
    return _headed(attributes, shape, _scores(attributes, shape) * math.prod(shape[:-1]))


def _scores(attributes: Attributes, shape: Shape) -> int:
    return int(attributes["heads"]) * int(attributes["latents"]) * math.prod(shape[:-1])


def _latent_products(attributes: Attributes, shape: Shape, _out: Shape) -> int:
    places, inner, latents = math.prod(shape[:-1]), _inner(attributes), int(attributes["latents"])
    # The maps; latents against positions and their reading; positions against latents and theirs; two scalings.
    return places * inner * (3 * shape[-1] + 4 * latents + 2)


def _running_latent_products(attributes: Attributes, shape: Shape, _out: Shape) -> int:
    places, inner, latents = math.prod(shape[:-1]), _inner(attributes), int(attributes["latents"])
    return places * inner * (3 * shape[-1] + latents * (3 + places) + 2)


def _graph_shape(attributes: Attributes, shape: Shape, children: Sequence[Shape]) -> Shape | None:
    return mapped(attributes, shape, children) if placed(shape) else None


def _graph(attributes: Attributes, _shape: Shape) -> dict[str, TensorPlan]:
    inputs, outputs = int(attributes["in"]), int(attributes["out"])
    ends = TensorPlan((outputs,), 1.0 / math.sqrt(outputs))
    return drawn_map(inputs, outputs) | {"asking": ends, "asked": ends}


def _graph_products(attributes: Attributes, shape: Shape, out: Shape) -> int:
    neighbours = 1 + _NEIGHBOURS * (len(shape) - 1)
    return math.prod(out) * (int(attributes["in"]) + 2 + neighbours)


def _channel(attributes: Attributes, _shape: Shape) -> dict[str, TensorPlan]:
    size = int(attributes["features"])
    return drawn_map(size, size * int(attributes["heads"]))


def _channel_products(attributes: Attributes, shape: Shape, out: Shape) -> int:
    return math.prod(out) * (shape[-1] * int(attributes["heads"]) + 1)


def _fast(attributes: Attributes, _shape: Shape) -> dict[str, TensorPlan]:
    width = int(attributes["width"])
    slow = {"slow": TensorPlan((width, width), 1.0 / math.sqrt(width)), "rate": TensorPlan((1,))}
    return drawn_map(int(attributes["features"]), 3 * width) | slow


def _fast_shape(attributes: Attributes, shape: Shape, children: Sequence[Shape]) -> Shape | None:
    fits = featurewise(attributes, shape, children) is not None and math.prod(shape[:-1]) ** 2 <= ELEMENTS_MAX
    return (*shape[:-1], int(attributes["width"])) if fits else None


def _fast_products(attributes: Attributes, shape: Shape, out: Shape) -> int:
    places, width, steps = math.prod(shape[:-1]), out[-1], int(attributes["steps"])
    # Maps and slow weights; keys against keys and queries; each step's prediction; the answer.
    return places * width * (3 * shape[-1] + 2 * width + places * (3 + steps))


ATTENTION_WORDS: Final[Mapping[str, Word]] = {
    # Scaled dot-product attention of `heads` heads, `width` features each, side by side. With a `window` a position
    # sees those within half of it along each axis, in a sequence the last so many; tiled, those of its own tile.
    "attention": Word(
        _attention_shape,
        {**_HEADS, "window": counted(0, FEATURES_MAX), "tiled": flag},
        tensors_of=_triple,
        products_of=_attention_products,
    ),
    # Trained latents read the positions, then the positions read the latents.
    "latent_attention": Word(
        _latent_shape,
        {**_HEADS, "latents": counted(1, 256)},
        tensors_of=_latent,
        products_of=_latent_products,
        layouts=LAYOUTS_ALL - {"sequence"},
    ),
    # The same where each position has latents of its own, which read no further than to it.
    "running_latent_attention": Word(
        _running_latent_shape,
        {**_HEADS, "latents": counted(1, 256)},
        tensors_of=_latent,
        products_of=_running_latent_products,
        layouts=frozenset({"sequence"}),
    ),
    # Additive attention among a position and its direct neighbours on the grid; in a sequence the two before it.
    "graph_attention": Word(_graph_shape, MAP, tensors_of=_graph, products_of=_graph_products),
    # Per head a distribution over the features, their mean scaled to 1: a gate for each feature.
    "channel_attention": Word(
        featurewise,
        {"features": features, "heads": counted(1, HEADS_MAX)},
        tensors_of=_channel,
        products_of=_channel_products,
    ),
    # A linear memory that takes `steps` gradient steps on the sample's own keys and values before it answers.
    "fast_weights": Word(
        _fast_shape,
        {"features": features, "width": features, "steps": counted(1, 64)},
        tensors_of=_fast,
        products_of=_fast_products,
    ),
}
