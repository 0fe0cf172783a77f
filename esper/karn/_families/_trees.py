"""Trees of words that several families are written with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from esper.karn._blueprint import Blueprint, Body, BodyOf, Tree

Parameters = Mapping[str, float]
#: A body that is written differently where there are positions, and differently again in a sequence.
LayoutBodyOf = Callable[[int, Parameters, str], Body]

VECTOR: Final = "vector"
SEQUENCE: Final = "sequence"
MAPS: Final = ("map1d", "map2d")
#: The customary epsilon of layer normalisation, where the blueprint does not leave it open (BP003 does).
EPSILON: Final = 1e-5
#: Channels of a convolution over the features of a vector as a line. Few, as every place of the line keeps its own.
LINE_CHANNELS: Final = 4
#: Features of each token when the features of a vector attend to each other.
TOKEN_WIDTH: Final = 16


def everywhere(body: BodyOf) -> dict[str, BodyOf]:
    """Return the bodies of a blueprint that means the same in every layout."""
    return dict.fromkeys((VECTOR, SEQUENCE, *MAPS), body)


def by_layout(body: LayoutBodyOf, *layouts: str) -> dict[str, BodyOf]:
    """Return the bodies of a blueprint whose tree depends on the layout; without names, in all of them."""
    return {layout: partial(_told, body, layout) for layout in layouts or (VECTOR, SEQUENCE, *MAPS)}


def _told(body: LayoutBodyOf, layout: str, features: int, parameters: Parameters) -> Body:
    return body(features, parameters, layout)


def safe(
    blueprint_id: str,
    name: str,
    *,
    risk: float,
    stage: int,
    description: str,
    bodies: Mapping[str, BodyOf],
    parameters: Mapping[str, tuple[float, float]] | None = None,
) -> Blueprint:
    """Return a blueprint of the tier SAFE."""
    return Blueprint(
        blueprint_id,
        name,
        "SAFE",
        risk=risk,
        stage=stage,
        description=description,
        bodies=bodies,
        parameters=parameters or {},
    )


def chain(*children: Tree) -> Tree:
    """Return one word after the other."""
    return {"op": "sequential", "children": list(children)}


def op(name: str, *children: Tree, **attributes: float) -> Tree:
    """Return a word with its attributes, and its children where it has any."""
    return {"op": name, **attributes} | ({"children": list(children)} if children else {})


def linear(inputs: int, outputs: int, *, bias: bool = True) -> Tree:
    """Return W x + b, or W x."""
    return {"op": "linear", "in": inputs, "out": outputs, "bias": bias}


def layer_norm(features: int, epsilon: float = EPSILON) -> Tree:
    """Return layer normalisation of `features`."""
    return {"op": "layer_norm", "features": features, "epsilon": epsilon}


def conv(
    inputs: int, outputs: int, kernel: int, *, dilation: int = 1, groups: int = 1, one_sided: bool = False
) -> Tree:
    """Return a convolution over the positions that keeps their number."""
    sizes = {"in": inputs, "out": outputs, "kernel": kernel, "dilation": dilation, "groups": groups}
    return {"op": "conv", **sizes, "one_sided": one_sided}


def residual(*children: Tree) -> Tree:
    """Return x + the children, one after the other, of x."""
    return op("residual", chain(*children))


def context(layout: str) -> Tree:
    """Return the mean over all positions, in a sequence over those so far."""
    return op("running_context" if layout == SEQUENCE else "context")


def multiple(features: int, groups: int) -> int:
    """Return the smallest multiple of `groups` that is not below `features`."""
    return -(-features // groups) * groups


def along(
    features: int, layout: str, core: Callable[[int, int], Tree], *, mixed: bool = False, channels: int = LINE_CHANNELS
) -> Body:
    """Return `core(features in, features out)` along the positions.

    Those of a vector are its features, as a line of positions with one feature each, of which `core` makes `channels`.
    """
    if layout != VECTOR:
        return Body(core(features, features), features, mixed=mixed)
    return Body(chain(op("line"), core(1, channels), op("flatten")), features * channels, mixed=True)


def among(features: int, layout: str, core: Callable[[int], tuple[Tree, int]]) -> Body:
    """Return `core(features)`, a tree and how many features it yields, among the positions, into a projection.

    Those of a vector are its features, each a token with `TOKEN_WIDTH` features that are read back as one.
    """
    if layout != VECTOR:
        tree, yielded = core(features)
        return Body(tree, yielded, mixed=True)
    tree, yielded = core(TOKEN_WIDTH)
    tokens = op("feature_tokens", features=features, width=TOKEN_WIDTH)
    return Body(chain(tokens, tree, linear(yielded, 1), op("flatten")), features, mixed=True)


def attention(features: int, heads: int, *, width: int = 0, window: int = 0, tiled: bool = False) -> tuple[Tree, int]:
    """Return dot-product attention and how many features it yields; without a width, about as many as it is given."""
    wide = width or -(-features // heads)
    return op("attention", features=features, heads=heads, width=wide, window=window, tiled=tiled), heads * wide
