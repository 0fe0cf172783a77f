"""Words that look along the positions of a sample; in `sequence` at earlier ones alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from esper.core.kernel._request import FEATURES_MAX
from esper.core.kernel._word import (
    LAYOUTS_ALL,
    MAP,
    Attributes,
    Shape,
    TensorPlan,
    Word,
    counted,
    features,
    featurewise,
    flag,
    mapped,
    products,
    same,
    within,
)

KERNEL_MAX: Final = 31
#: Taps of a deformable convolution along an axis, and how many neighbours a tap may fall between.
DEFORMABLE_TAPS: Final = 3
_VECTOR: Final = frozenset({"vector"})


def placed(shape: Shape) -> bool:
    """Return whether a sample of this shape has positions."""
    return len(shape) > 1


def _kept_placed(_attributes: Attributes, shape: Shape, _children: Sequence[Shape]) -> Shape | None:
    return shape if placed(shape) else None


def _conv_shape(attributes: Attributes, shape: Shape, children: Sequence[Shape]) -> Shape | None:
    even = attributes["in"] % attributes["groups"] == 0 == attributes["out"] % attributes["groups"]
    return mapped(attributes, shape, children) if even and placed(shape) else None


def _conv(attributes: Attributes, shape: Shape) -> dict[str, TensorPlan]:
    kernel = (int(attributes["kernel"]),) * (len(shape) - 1)
    inputs = max(1, int(attributes["in"]) // int(attributes["groups"]))
    bound = 1.0 / math.sqrt(inputs * math.prod(kernel))
    outputs = int(attributes["out"])
    return {"weight": TensorPlan((outputs, inputs, *kernel), bound), "bias": TensorPlan((outputs,), bound)}


def _conv_products(attributes: Attributes, shape: Shape, out: Shape) -> int:
    taps = math.prod(int(attributes["kernel"]) for _ in shape[:-1])
    return math.prod(out) * taps * (int(attributes["in"]) // int(attributes["groups"]))


def _deformable_shape(attributes: Attributes, shape: Shape, children: Sequence[Shape]) -> Shape | None:
    return mapped(attributes, shape, children) if placed(shape) and shape[-1] % attributes["groups"] == 0 else None


def _deformable(attributes: Attributes, shape: Shape) -> dict[str, TensorPlan]:
    inputs, outputs, axes = int(attributes["in"]), int(attributes["out"]), len(shape) - 1
    taps = DEFORMABLE_TAPS**axes
    offsets, bound = int(attributes["groups"]) * taps * axes, 1.0 / math.sqrt(inputs)
    mix = 1.0 / math.sqrt(inputs * taps)
    return {
        "offset_weight": TensorPlan((offsets, inputs), bound),
        "offset_bias": TensorPlan((offsets,), bound),
        "weight": TensorPlan((outputs, taps * inputs), mix),
        "bias": TensorPlan((outputs,), mix),
    }


def _deformable_products(attributes: Attributes, shape: Shape, out: Shape) -> int:
    axes, places, inputs = len(shape) - 1, math.prod(shape[:-1]), shape[-1]
    taps, groups = math.prod(DEFORMABLE_TAPS for _ in range(axes)), int(attributes["groups"])
    offsets = groups * taps * axes * inputs
    # Every tap is a mean of its neighbours, as many as there are taps, weighted by a product over the axes.
    sampled = taps * taps * (inputs + groups * (axes - 1))
    return places * (offsets + sampled + taps * inputs * out[-1])


def _context_shape(_attributes: Attributes, shape: Shape, _children: Sequence[Shape]) -> Shape | None:
    return (*(1 for _ in shape[:-1]), shape[-1])


def _two(_attributes: Attributes, shape: Shape, _children: Sequence[Shape]) -> Shape | None:
    return (*shape[:-1], 2)


def _coarser(attributes: Attributes, shape: Shape) -> Shape:
    stride = int(attributes["stride"])
    return (*(math.ceil(size / stride) for size in shape[:-1]), shape[-1])


def _scaled_positions(shape: Shape, children: Sequence[Shape], inner: Shape) -> Shape | None:
    if not placed(shape) or children[0][:-1] != inner[:-1]:
        return None
    return (*shape[:-1], children[0][-1])


def _coarse_shape(attributes: Attributes, shape: Shape, children: Sequence[Shape]) -> Shape | None:
    return _scaled_positions(shape, children, _coarser(attributes, shape))


def _pooled_inner(attributes: Attributes, shape: Shape) -> Shape:
    return (*(int(attributes["size"]) for _ in shape[:-1]), shape[-1])


def _pooled_shape(attributes: Attributes, shape: Shape, children: Sequence[Shape]) -> Shape | None:
    return _scaled_positions(shape, children, _pooled_inner(attributes, shape))


def _pooled_products(attributes: Attributes, shape: Shape, out: Shape) -> int:
    """Count two matrices along each axis: one that pools, one that resizes back."""
    size, axes = int(attributes["size"]), len(shape) - 1
    total, down, up = 0, list(shape), [*(size for _ in range(axes)), out[-1]]
    for axis in range(axes):
        total += math.prod(down) * size + math.prod(up) * shape[axis]
        down[axis], up[axis] = size, shape[axis]
    return total


def _positional(attributes: Attributes, shape: Shape) -> dict[str, TensorPlan]:
    size, axes = int(attributes["features"]), len(shape) - 1
    return {
        "frequency": TensorPlan((max(1, axes), size), attributes["frequency"]),
        "phase": TensorPlan((size,), math.pi),
        "amplitude": TensorPlan((size,), fill=1.0),
    }


def _positional_shape(attributes: Attributes, shape: Shape, children: Sequence[Shape]) -> Shape | None:
    return featurewise(attributes, shape, children) if placed(shape) else None


def _lined(_attributes: Attributes, shape: Shape, _children: Sequence[Shape]) -> Shape | None:
    return None if placed(shape) else (*shape, 1)


def _flattened(_attributes: Attributes, shape: Shape, _children: Sequence[Shape]) -> Shape | None:
    flat = math.prod(shape)
    return (flat,) if flat <= FEATURES_MAX else None


def _tokens_shape(attributes: Attributes, shape: Shape, children: Sequence[Shape]) -> Shape | None:
    return (
        None
        if placed(shape) or featurewise(attributes, shape, children) is None
        else (*shape, int(attributes["width"]))
    )


def _tokens(attributes: Attributes, _shape: Shape) -> dict[str, TensorPlan]:
    width = int(attributes["width"])
    shape, bound = (int(attributes["features"]), width), 1.0 / math.sqrt(width)
    return {"weight": TensorPlan(shape, bound), "bias": TensorPlan(shape, bound)}


POSITION_WORDS: Final[Mapping[str, Word]] = {
    # A convolution over the positions, `kernel` taps along each axis and `dilation` apart, zeros beyond the border.
    # One-sided it looks at earlier positions only, as it does in a sequence anyway.
    "conv": Word(
        _conv_shape,
        {
            **MAP,
            "kernel": counted(1, KERNEL_MAX),
            "dilation": counted(1, KERNEL_MAX),
            "groups": features,
            "one_sided": flag,
        },
        tensors_of=_conv,
        products_of=_conv_products,
    ),
    # A convolution of three taps along each axis whose places are moved by up to one position, as the input says.
    "deformable_conv": Word(
        _deformable_shape,
        {**MAP, "groups": features},
        tensors_of=_deformable,
        products_of=_deformable_products,
    ),
    # The largest value of each feature among `kernel` positions along each axis.
    "max_window": Word(_kept_placed, {"kernel": counted(1, KERNEL_MAX)}),
    # The mean over all positions as the one position there is; in a sequence over the positions so far, at each.
    "context": Word(_context_shape, {}, products_of=products(1), layouts=LAYOUTS_ALL - {"sequence"}),
    "running_context": Word(same, {}, products_of=products(1), layouts=frozenset({"sequence"})),
    # Mean and largest of the features at each position.
    "feature_pool": Word(_two, {}, products_of=lambda _attributes, shape, _out: math.prod(shape[:-1])),
    # child(x) at positions `stride` times rarer, each the mean of `stride` neighbours along each axis, and back.
    "coarse": Word(
        _coarse_shape,
        {"stride": counted(2, KERNEL_MAX)},
        children=(1, 1),
        child_shape=_coarser,
        products_of=lambda attributes, shape, _out: math.prod(_coarser(attributes, shape)) * (len(shape) - 1),
    ),
    # child(x) at `size` positions along each axis, each a mean of its share of x, and back by linear interpolation.
    "pooled": Word(
        _pooled_shape,
        {"size": counted(1, KERNEL_MAX)},
        children=(1, 1),
        child_shape=_pooled_inner,
        products_of=_pooled_products,
        layouts=LAYOUTS_ALL - {"sequence"},
    ),
    # x + amplitude * sin(frequency . position + phase), all three trained, frequencies drawn from [-f, f].
    "positional": Word(
        _positional_shape,
        {"features": features, "frequency": within(1e-6, 100.0)},
        tensors_of=_positional,
        products_of=lambda _attributes, shape, out: math.prod(out) * len(shape),
    ),
    # The features of a vector as a line of positions with one feature each.
    "line": Word(_lined, {}, layouts=_VECTOR),
    # Feature i of a vector as position i, with x_i * W_i + b_i as its `width` features.
    "feature_tokens": Word(
        _tokens_shape,
        {"features": features, "width": features},
        tensors_of=_tokens,
        products_of=products(1),
        layouts=_VECTOR,
    ),
    # Everything that all positions hold as one vector.
    "flatten": Word(_flattened, {}, layouts=_VECTOR),
}
