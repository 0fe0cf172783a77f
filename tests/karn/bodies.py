"""Building blueprints for tests: every blueprint in every layout that it lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

import torch

from esper.core.kernel import CHANNELS_FIRST, Kernel
from esper.karn import catalogue
from tests.karn.contract import CONTRACT, HIGH_RISK, lowest

ALL: Final = sorted(CONTRACT)
#: Those that do what they promise in training: their steps belong in quarantine.
HARMFUL: Final = frozenset(name for name in ALL if CONTRACT[name].tier == HIGH_RISK)
LAYOUTS: Final = ("vector", "sequence", "map1d", "map2d")
#: (blueprint, layout) of everything that can be built, and of what can also be trained outside quarantine.
CASES: Final = [(name, layout) for name in ALL for layout in LAYOUTS if layout in catalogue()[name].layouts]
TAME: Final = [(name, layout) for name, layout in CASES if name not in HARMFUL]
#: One sample of six features at nine, or five by four, positions.
SHAPES: Final[Mapping[str, tuple[int, ...]]] = {
    "vector": (6,),
    "sequence": (9, 6),
    "map1d": (6, 9),
    "map2d": (6, 5, 4),
}


def reshaped(layout: str, shape: tuple[int, ...], features: int) -> tuple[int, ...]:
    """Return the shape with another number of features."""
    return (features, *shape[1:]) if layout in CHANNELS_FIRST else (*shape[:-1], features)


def built(
    blueprint_id: str,
    layout: str = "vector",
    *,
    shape: tuple[int, ...] | None = None,
    out_features: int | None = None,
    seed: int = 1,
    parameters: Mapping[str, float] | None = None,
    **changes: float,
) -> Kernel:
    """Return the seed of a blueprint with its lowest parameters, or others as told."""
    taken = shape or SHAPES[layout]
    module = catalogue()[blueprint_id].build(
        layout=layout,
        shape=taken,
        parameters={**(lowest(blueprint_id) if parameters is None else parameters), **changes},
        generator=torch.Generator().manual_seed(seed),
        out_shape=None if out_features is None else reshaped(layout, taken, out_features),
    )
    return cast("Kernel", module)


def opened(kernel: Kernel) -> Kernel:
    """Make the zero end of a seed pass its body on, so that what the body computes can be seen."""
    with torch.no_grad():
        for name, parameter in kernel.end.named_parameters():
            drawn = torch.randn(parameter.shape, dtype=parameter.dtype, generator=torch.Generator().manual_seed(9))
            parameter.copy_(torch.zeros_like(drawn) if name == "bias" else drawn)
    return kernel


def batch(layout: str = "vector", rows: int = 7, *, shape: tuple[int, ...] | None = None) -> torch.Tensor:
    """Return fixed random samples."""
    return torch.randn(rows, *(shape or SHAPES[layout]), generator=torch.Generator().manual_seed(3))
