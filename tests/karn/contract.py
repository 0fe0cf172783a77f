"""The predecessor's catalogue as data: what parity is checked against (only the blueprints that exist here)."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One line of the old catalogue."""

    name: str
    risk: float
    stage: int
    parameters: dict[str, tuple[float, float]]


CONTRACT = {
    "BP002": Row("linear_projection", 0.1, 0, {"scale": (0.5, 2.0)}),
    "BP003": Row("layer_norm_basic", 0.1, 0, {"epsilon": (1e-6, 1e-3)}),
    "BP005": Row("relu_activation", 0.1, 0, {}),
    "BP008": Row("skip_connection", 0.2, 1, {}),
    "BP009": Row("residual_block", 0.3, 1, {"depth": (1.0, 4.0)}),
    "BP011": Row("gelu_activation", 0.2, 1, {}),
    "BP014": Row("highway_gate", 0.4, 1, {"gate_bias": (-3.0, 3.0)}),
    "BP021": Row("feedforward_gated", 0.5, 2, {"hidden_multiple": (2.0, 6.0)}),
    "BP028": Row("dense_connection", 0.5, 3, {"growth_rate": (8.0, 48.0)}),
}


def lowest(blueprint_id: str) -> dict[str, float]:
    """Return the blueprint's parameters, each at its lower bound."""
    return {name: low for name, (low, _) in CONTRACT[blueprint_id].parameters.items()}
