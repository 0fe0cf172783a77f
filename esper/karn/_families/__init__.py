"""The blueprints BP001 to BP042, by family.

Written for D input features x; a seed's output is the body's output times a gain, or through a projection, that
begins at zero. W and b stand for a trained matrix and bias, drawn at random at first. In the layouts `sequence`,
`map1d` and `map2d` what is said of features holds at every position alike; in a map they are its channels.

Along positions everything is causal in `sequence`: what stands at t depends on positions up to t only.
"""

from typing import Final

from esper.karn._blueprint import Blueprint
from esper.karn._families._attention import ATTENTION_BLUEPRINTS
from esper.karn._families._blocks import BLOCK_BLUEPRINTS
from esper.karn._families._convolution import CONVOLUTION_BLUEPRINTS
from esper.karn._families._experimental import EXPERIMENTAL_BLUEPRINTS
from esper.karn._families._plain import PLAIN_BLUEPRINTS

FAMILY_BLUEPRINTS: Final[tuple[Blueprint, ...]] = (
    *PLAIN_BLUEPRINTS,
    *BLOCK_BLUEPRINTS,
    *CONVOLUTION_BLUEPRINTS,
    *ATTENTION_BLUEPRINTS,
    *EXPERIMENTAL_BLUEPRINTS,
)

__all__ = ["FAMILY_BLUEPRINTS"]
