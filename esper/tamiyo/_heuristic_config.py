"""Every number of the rule policy, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from esper.tamiyo._policy import BadPolicyParameters, unknown_parameter, whole_number

_POLICY = "heuristic"
_COUNT_MAX = 1_000_000


@dataclass(frozen=True)
class HeuristicConfig:
    """Numbers of HeuristicPolicy; `_fraction` means of the planned epochs, gains are relative to a loss.

    Fields of type int are counts from 1 up, the others shares from 0 to 1.
    """

    #: On a plateau the first seed may come after a twentieth of the run; before that a falling loss is only noise.
    germination_earliest_fraction: float = 0.05
    #: Without a plateau it comes after a tenth: growing late starves the seed of epochs.
    germination_latest_fraction: float = 0.10
    #: Below half a per cent an epoch the host is on a plateau: the noise of MNIST-1D's validation loss is about that.
    plateau_improvement_per_epoch: float = 0.005
    #: The incubator stays short: isolation buys safety and evidence, not accuracy.
    training_fraction: float = 0.10
    #: The stability gate fits a trend through the shadow losses, which takes two epochs.
    training_epochs_min: int = 2
    #: One per cent lower loss at alpha 1 is more than the shadow loss varies on a fixed probe.
    graft_gain_min: float = 0.01
    #: At the end of TRAINING it is enough that the seed does no harm: joint training then improves it.
    graft_gain_late: float = 0.0
    #: How long a stage waits beyond its time before the seed is culled, so that one refusal of a gate is not the end.
    patience_fraction: float = 0.05
    patience_epochs_min: int = 2
    #: Alpha rises over a twentieth of the run, 2 of 40 epochs: slow enough for the host to follow, and no waiting.
    blending_fraction: float = 0.05
    blending_epochs_min: int = 1
    #: One epoch's edge between EVALUATE and FOSSILIZE, so that two measurements must agree.
    probation_epochs: int = 1
    #: A seed is kept when it lowers the held-out loss by at least a thousandth: any less is not worth its parameters.
    keep_gain_min: float = 0.001
    #: One seed gave the measured gains; a second one on a plateau is the most that the equal-compute bar bears.
    seeds_kept_max: int = 2
    seeds_tried_max: int = 4
    #: Two orders without a seed (a kernel late twice) and the next blueprint gets its turn.
    tries_per_option: int = 2
    #: Scale of the fractions where a run does not say how many epochs it plans.
    epochs_assumed: int = 40

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, float]) -> HeuristicConfig:
        """Return the defaults with `parameters` put over them.

        Raises:
            BadPolicyParameters: a name is unknown or a value out of range.
        """
        defaults = cls()
        known = {field.name: type(getattr(defaults, field.name)) for field in fields(cls)}
        counts: dict[str, int] = {}
        shares: dict[str, float] = {}
        for name, value in parameters.items():
            if name not in known:
                raise unknown_parameter(_POLICY, name, tuple(known))
            if known[name] is int:
                counts[name] = whole_number(_POLICY, name, value, low=1, high=_COUNT_MAX)
            else:
                shares[name] = _share(name, value)
        return cls(**counts, **shares)  # type: ignore[arg-type]  # the loop above gave each name its own type

    def germination_epochs(self, planned: int) -> tuple[int, int]:
        """Return the earliest and the latest epoch at whose edge the first seed starts."""
        earliest = max(1, math.ceil(self.germination_earliest_fraction * planned))
        return earliest, max(earliest, math.floor(self.germination_latest_fraction * planned))

    def training_epochs_max(self, planned: int) -> int:
        """Return the epochs after which TRAINING ends, one way or the other."""
        return max(self.training_epochs_min, math.floor(self.training_fraction * planned))

    def patience_epochs(self, planned: int) -> int:
        """Return the epochs that a stage may overrun."""
        return max(self.patience_epochs_min, math.floor(self.patience_fraction * planned))

    def blending_epochs(self, planned: int) -> int:
        """Return the epochs that alpha takes from 0 to 1."""
        return max(self.blending_epochs_min, math.floor(self.blending_fraction * planned))

    def epochs_to_grow(self, planned: int) -> int:
        """Return the epochs from GERMINATE's edge to FOSSILIZE's: train, blend, one for EVALUATE, probation."""
        return self.training_epochs_max(planned) + self.blending_epochs(planned) + 1 + self.probation_epochs


def _share(name: str, value: float) -> float:
    if not 0.0 <= value <= 1.0:  # also refuses NaN
        raise BadPolicyParameters(
            f"policy {_POLICY!r} cannot use {name}={value:g}",
            cause=f"{name} is a number from 0 to 1",
            next_step="correct the parameter or leave it out",
        )
    return value
