"""Whether a log shows that one policy is better than another; what cannot be shown fails."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from esper.core.checks import check
from esper.leyline import messages as ly
from esper.simic.evaluation._estimates import Episodes, Weighted, doubly_robust, effective_episodes, per_decision
from esper.simic.evaluation._intervals import SAMPLES, Interval, of_mean, of_statistic, resampled


@dataclass(frozen=True)
class GainBounds:
    """What must hold of a gain, in the log's own scale of rewards."""

    #: Of every interval; its lower bound alone is looked at.
    coverage: float = 0.9
    #: How much worse the lower bounds may be.
    loss_max: float = 0.0
    #: Of the candidate's importance weights: so many episodes, and such a share of all.
    effective_min: float = 30.0
    effective_share_min: float = 0.1


@dataclass(frozen=True)
class Gain:
    """What a candidate returns more than an incumbent, an episode, by each estimate; and the checks in their order."""

    effective_episodes: float
    per_decision: Interval
    weighted: Interval
    doubly_robust: Interval
    checks: tuple[ly.GateCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(each.passed for each in self.checks)


def judged_gain(
    candidate: Episodes,
    incumbent_log_ratios: Tensor,
    values: Tensor,
    next_values: Tensor,
    bounds: GainBounds,
    *,
    generator: torch.Generator,
    samples: int = SAMPLES,
) -> Gain:
    """Hold a candidate against an incumbent on episodes that the candidate did not learn from.

    Both are judged on the same episodes with the same critic, so that what an episode's luck did to both cancels. The
    self-normalised and the doubly robust gain must both be shown, and must agree on the sign: the first is biased and
    steady, the second right on average and led by a critic.

    Args:
        candidate: The episodes as the candidate sees them.
        incumbent_log_ratios: log incumbent(a|s) - log mu(a|s), [R, T]; 0.0 where the incumbent collected them.
        values: A critic's of the states acted in, [R, T]; of any policy, fitted without these episodes.
        next_values: Of the states reached; see `doubly_robust`.
        bounds: What must hold.
        generator: Draws the samples of episodes.
        samples: How many.
    """
    incumbent = replace(candidate, log_ratios=incumbent_log_ratios)
    count = len(candidate.held)
    counts = resampled(count, generator=generator, samples=samples)
    plain = of_mean(per_decision(candidate) - per_decision(incumbent), counts, coverage=bounds.coverage)
    ours, theirs = Weighted.of(candidate), Weighted.of(incumbent)
    weighted = of_statistic(lambda each: ours.estimate(each) - theirs.estimate(each), counts, coverage=bounds.coverage)
    robust = of_mean(
        doubly_robust(candidate, values, next_values) - doubly_robust(incumbent, values, next_values),
        counts,
        coverage=bounds.coverage,
    )
    effective = effective_episodes(candidate)
    checks = (
        check("effective_episodes", effective, ">=", max(bounds.effective_min, bounds.effective_share_min * count)),
        check("weighted_gain_low", weighted.low, ">", -bounds.loss_max),
        check("doubly_robust_gain_low", robust.low, ">", -bounds.loss_max),
        check("signs_of_gains", weighted.estimate * robust.estimate, ">", 0.0),
    )
    return Gain(effective, plain, weighted, robust, checks)
