"""Blueprints that look at neighbouring positions.

In vector most of them read the features as a line of positions with one feature each: what stands beside what then
matters, as it does where a slot reads a signal.
"""

from __future__ import annotations

from typing import Final

from esper.karn._blueprint import Blueprint, Body, Tree, nearest_integer
from esper.karn._families._trees import (
    LINE_CHANNELS,
    MAPS,
    SEQUENCE,
    VECTOR,
    Parameters,
    along,
    by_layout,
    chain,
    conv,
    linear,
    multiple,
    op,
    residual,
    safe,
)


def _pooling_max(features: int, parameters: Parameters, layout: str) -> Body:
    kernel = nearest_integer(parameters["kernel"])
    if layout != VECTOR:
        return Body(op("max_window", kernel=kernel), features)
    return Body({"op": "maxout", "in": features, "out": features, "pieces": kernel}, features)


def _grouped_conv(features: int, parameters: Parameters, layout: str) -> Body:
    groups = nearest_integer(parameters["groups"])
    wide = multiple(features, groups)
    blocks: Tree = {"op": "grouped_linear", "in": wide, "out": wide, "groups": groups}
    mix = blocks if layout == VECTOR else conv(wide, wide, 3, groups=groups)
    return Body(chain(op("fit", features=wide), mix, op("relu")), wide, mixed=True)


def _depthwise_separable(features: int, parameters: Parameters, layout: str) -> Body:
    kernel = nearest_integer(parameters["kernel"])

    def core(inputs: int, outputs: int) -> Tree:
        lift = [] if inputs == outputs else [linear(inputs, outputs)]
        return chain(*lift, conv(outputs, outputs, kernel, groups=outputs), linear(outputs, outputs), op("relu"))

    return along(features, layout, core)


def _spatial_attention(features: int, parameters: Parameters, layout: str) -> Body:
    kernel = 2 * nearest_integer(parameters["radius"]) + 1
    if layout == VECTOR:
        return Body(op("modulate", chain(op("line"), conv(1, 1, kernel), op("sigmoid"), op("flatten"))), features)
    return Body(op("modulate", chain(op("feature_pool"), conv(2, 1, kernel), op("sigmoid"))), features)


def _adaptive_pooling(features: int, parameters: Parameters, layout: str) -> Body:
    size = nearest_integer(parameters["output_size"])

    def core(inputs: int, outputs: int) -> Tree:
        return op("pooled", chain(conv(inputs, outputs, 3), op("relu")), size=size)

    return along(features, layout, core)


def _feature_pyramid(features: int, parameters: Parameters, layout: str) -> Body:
    levels = nearest_integer(parameters["levels"])

    def core(inputs: int, outputs: int) -> Tree:
        lift = [] if inputs == outputs else [linear(inputs, outputs)]
        return chain(*lift, _pyramid(outputs, levels))

    return along(features, layout, core)


def _pyramid(features: int, levels: int) -> Tree:
    """Return a level of the pyramid: a lateral map of what stands here, and what comes down from the level above."""
    if levels == 1:
        return chain(conv(features, features, 3), op("relu"))
    above = chain(conv(features, features, 3), op("relu"), _pyramid(features, levels - 1))
    return op("sum", linear(features, features), op("coarse", above, stride=2))


def _temporal_conv(features: int, parameters: Parameters, layout: str) -> Body:
    dilation = nearest_integer(parameters["dilation"])

    def core(inputs: int, outputs: int) -> Tree:
        lift = [] if inputs == outputs else [linear(inputs, outputs)]
        return chain(*lift, *[_causal_block(outputs, dilation * step) for step in (1, 2)])

    return along(features, layout, core)


def _causal_block(features: int, dilation: int) -> Tree:
    first, second = (conv(features, features, 3, dilation=dilation, one_sided=True) for _ in range(2))
    return residual(first, op("relu"), second, op("relu"))


def _dilated_conv(features: int, parameters: Parameters, layout: str) -> Body:
    dilation = nearest_integer(parameters["dilation"])
    return along(
        features, layout, lambda inputs, outputs: chain(conv(inputs, outputs, 3, dilation=dilation), op("relu"))
    )


def _deformable_conv(features: int, parameters: Parameters, layout: str) -> Body:
    groups = nearest_integer(parameters["offset_groups"])
    channels = multiple(LINE_CHANNELS, groups)

    def core(inputs: int, outputs: int) -> Tree:
        wide = multiple(outputs, groups)
        fitted = op("fit", features=wide) if inputs == outputs else conv(inputs, wide, 3)
        deformable: Tree = {"op": "deformable_conv", "in": wide, "out": outputs, "groups": groups}
        return chain(fitted, deformable, op("relu"))

    return along(features, layout, core, channels=channels)


CONVOLUTION_BLUEPRINTS: Final[tuple[Blueprint, ...]] = (
    safe(
        "BP007",
        "pooling_max",
        risk=0.2,
        stage=0,
        description="The largest value of each feature among `kernel` neighbouring positions along each axis, in "
        "sequence among the last so many. In vector the largest of so many linear maps, feature by feature (maxout, "
        "Goodfellow et al. 2013). `kernel` is rounded to the nearest whole number, halves upward.",
        bodies=by_layout(_pooling_max),
        parameters={"kernel": (2.0, 5.0)},
    ),
    safe(
        "BP013",
        "grouped_conv",
        risk=0.4,
        stage=1,
        description="A convolution of three taps in `groups` groups of features that do not see each other, then relu "
        "and a projection that mixes them (ResNeXt, Xie et al. 2017); in vector a block-diagonal linear layer. "
        "`groups` is rounded to the nearest whole number, halves upward; zeros fill the last group.",
        bodies=by_layout(_grouped_conv),
        parameters={"groups": (2.0, 8.0)},
    ),
    safe(
        "BP015",
        "depthwise_separable",
        risk=0.4,
        stage=2,
        description="A convolution of `kernel` taps within each feature, then a linear layer across features and relu "
        "(Chollet 2017); in vector along the features as a line. `kernel` is rounded to the nearest whole number, "
        "halves upward.",
        bodies=by_layout(_depthwise_separable),
        parameters={"kernel": (3.0, 7.0)},
    ),
    safe(
        "BP018",
        "spatial_attention",
        risk=0.4,
        stage=2,
        description="A gate for each position: x times the sigmoid of a convolution, 2 * `radius` + 1 taps along each "
        "axis, over mean and maximum of the features (CBAM, Woo et al. 2018); in sequence the last so many. In vector "
        "a gate for each feature from its neighbours (ECA, Wang et al. 2020). `radius` is rounded to the nearest whole "
        "number, halves upward.",
        bodies=by_layout(_spatial_attention),
        parameters={"radius": (1.0, 3.0)},
    ),
    safe(
        "BP026",
        "adaptive_pooling",
        risk=0.5,
        stage=3,
        description="The positions averaged to `output_size` along each axis, mixed there by a convolution of three "
        "taps and relu, and drawn out again by linear interpolation (pooling as in He et al. 2015); in vector along "
        "the features as a line. `output_size` is rounded to the nearest whole number, halves upward. No layout "
        "sequence, as averages would hold the future.",
        bodies=by_layout(_adaptive_pooling, VECTOR, *MAPS),
        parameters={"output_size": (4.0, 16.0)},
    ),
    safe(
        "BP027",
        "feature_pyramid",
        risk=0.5,
        stage=3,
        description="A pyramid of `levels` levels, each half as fine as the one below: convolutions and relu on the "
        "way up, on the way down each level adds a linear map of its own (Lin et al. 2017); in vector along the "
        "features as a line. `levels` is rounded to the nearest whole number, halves upward.",
        bodies=by_layout(_feature_pyramid),
        parameters={"levels": (3.0, 5.0)},
    ),
    safe(
        "BP031",
        "temporal_conv",
        risk=0.5,
        stage=4,
        description="Two residual blocks of two convolutions of three taps that look back only, `dilation` positions "
        "apart and then twice as far (TCN, Bai et al. 2018); in vector along the features as a line. `dilation` is "
        "rounded to the nearest whole number, halves upward. No layout map2d, which has no time.",
        bodies=by_layout(_temporal_conv, VECTOR, SEQUENCE, "map1d"),
        parameters={"dilation": (1.0, 5.0)},
    ),
    safe(
        "BP032",
        "dilated_conv",
        risk=0.5,
        stage=4,
        description="One convolution of three taps, `dilation` positions apart along each axis, then relu (Yu & Koltun "
        "2016); in vector along the features as a line. `dilation` is rounded to the nearest whole number, halves "
        "upward.",
        bodies=by_layout(_dilated_conv),
        parameters={"dilation": (1.0, 8.0)},
    ),
    safe(
        "BP033",
        "deformable_conv",
        risk=0.5,
        stage=4,
        description="A convolution of three taps along each axis whose places move by less than one position, as the "
        "input says, for each of `offset_groups` groups of features, then relu (Dai et al. 2017, offsets bounded by "
        "tanh); in vector along the features as a line. `offset_groups` is rounded to the nearest whole number, halves "
        "upward; zeros fill the last group.",
        bodies=by_layout(_deformable_conv),
        parameters={"offset_groups": (1.0, 4.0)},
    ),
)
