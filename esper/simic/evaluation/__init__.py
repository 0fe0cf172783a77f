"""What a policy would have reached, from episodes that another one collected. Tensors in, figures out; no log."""

from esper.simic.evaluation._estimates import (
    Episodes,
    Weighted,
    doubly_robust,
    effective_episodes,
    logged,
    per_decision,
)
from esper.simic.evaluation._gain import Gain, GainBounds, judged_gain
from esper.simic.evaluation._intervals import Interval, of_mean, of_statistic, resampled
from esper.simic.evaluation._seen import Seen, as_seen

__all__ = [
    "Episodes",
    "Gain",
    "GainBounds",
    "Interval",
    "Seen",
    "Weighted",
    "as_seen",
    "doubly_robust",
    "effective_episodes",
    "judged_gain",
    "logged",
    "of_mean",
    "of_statistic",
    "per_decision",
    "resampled",
]
