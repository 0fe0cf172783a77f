"""What a kernel may keep while it trains."""

from __future__ import annotations

import pytest

from esper.core.errors import IntegrityError
from esper.core.kernel import plan_spec
from esper.core.kernel._spec import HELD_MAX


def spec(activations: int, width: int) -> dict[str, object]:
    """Return a spec that widens 256 positions and keeps that many of them: small weights, large activations."""
    words = [{"op": "linear", "in": 8, "out": width, "bias": False}, *[{"op": "relu"}] * activations]
    words.append({"op": "linear", "in": width, "out": 8, "bias": False})
    return {
        "format": 1,
        "layout": "sequence",
        "dtype": "float32",
        "in_shape": [256, 8],
        "out_shape": [256, 8],
        "body": {"op": "sequential", "children": words},
        "end": {"op": "gain", "features": 8},
    }


def test_the_sum_of_what_is_kept_is_bounded() -> None:
    """Goal: many tensors, each allowed, make no bomb. Method: one more activation than the bound holds is refused."""
    width = 8192
    most = HELD_MAX // (256 * width) - 3
    assert plan_spec(spec(most, width)).parameters < 1 << 18
    with pytest.raises(IntegrityError, match="elements kept per sample"):
        plan_spec(spec(most + 2, width))
