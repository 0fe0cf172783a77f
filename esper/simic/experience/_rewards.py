"""What a step was worth: differences of figures from one decision to the next, weighted by whoever learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from esper.simic.experience._columns import Floats

#: Figures of a field report at the beginning of its window, which is its decision's own epoch; and at its end.
MEASURED: Final = ("validation_accuracy", "validation_loss", "parameters", "multiply_adds")


@dataclass(frozen=True)
class RewardWeights:
    """Weights of the parts of a reward. An episode's parts add up to what the run came to, so nothing counts twice."""

    #: Of the rise of the held-out accuracy, in 0..1.
    accuracy: float = 1.0
    #: Of the fall of the held-out loss, in nats; a step's is bounded to +-1.
    loss: float = 0.0
    #: Of the multiply-adds spent, in units of what the run would cost at its first epoch's price; negative is a cost.
    compute: float = -0.001
    #: Of the parameters added, as a multiple of the first ones.
    parameters: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Return the weights by name."""
        return asdict(self)


def parts_of(now: Mapping[str, Floats], after: Mapping[str, Floats], first: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return the unweighted parts of each step's reward; what was not measured at both ends is 0.0.

    Args:
        now: Figures of MEASURED at the decision, each [N].
        after: At the next decision of the episode, or at the end of the last one's window.
        first: At the episode's first decision, with its `epoch` and the `epochs_planned`.
    """
    price = np.maximum(first["multiply_adds"], 1.0) / np.maximum(first["epoch"], 1.0)
    whole = price * np.maximum(first["epochs_planned"], 1.0)
    parts = {
        "accuracy": after["validation_accuracy"] - now["validation_accuracy"],
        "loss": np.clip(now["validation_loss"] - after["validation_loss"], -1.0, 1.0),
        "compute": (after["multiply_adds"] - now["multiply_adds"]) / whole,
        "parameters": (after["parameters"] - now["parameters"]) / np.maximum(first["parameters"], 1.0),
    }
    return {name: np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0) for name, values in parts.items()}


def weighted(parts: Mapping[str, Floats], weights: RewardWeights) -> Floats:
    """Return the rewards, [N]."""
    total = np.zeros(len(next(iter(parts.values()))))
    for name, weight in weights.as_dict().items():
        if weight:
            total = total + weight * parts[name]
    return total
