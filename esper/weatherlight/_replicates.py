"""What another policy would have been worth: pairs of forks that draw alike and differ in who decides."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from esper.core.errors import UsageError
from esper.weatherlight._fork_runs import ForkRequest

#: One pair has no spread; a thousand are a mistake.
REPLICATES_MIN: Final = 2
REPLICATES_MAX: Final = 1000
_CONFIDENCE: Final = 0.95
#: What the arms are compared by; `True` where more is better.
_METRICS: Final = {"accuracy": True, "loss": False, "multiply_adds": False, "parameters": False}
_STEPS: Final = 2000

#: Trains a fork and returns the document of `esper train`.
Train = Callable[[ForkRequest], Mapping[str, Any]]


@dataclass(frozen=True)
class Effect:
    """A mean of paired differences with its interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, differences: Sequence[float]) -> Effect:
        """Return the paired t interval of 95 % (Student, 1908); needs two differences or more."""
        mean = statistics.fmean(differences)
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        half = student_quantile(0.5 + _CONFIDENCE / 2, len(differences) - 1) * error
        return cls(mean, mean - half, mean + half)


def check_replicates(request: ForkRequest, count: int) -> None:
    """Raise where a fork cannot be replicated.

    Raises:
        UsageError: too few or too many, or the fork decides as its origin does.
    """
    if not REPLICATES_MIN <= count <= REPLICATES_MAX:
        raise UsageError(
            f"{count} replicates cannot be compared",
            cause="an interval needs pairs that differ",
            next_step=f"Choose {REPLICATES_MIN} to {REPLICATES_MAX}",
        )
    origin = request.origin
    same = request.effective_parameters == dict(origin.policy_parameters)
    if request.effective_policy == origin.policy and same:
        raise UsageError(
            "both arms of the comparison would be the same",
            cause=f"the fork's policy is the origin's, {origin.policy!r}, with the same parameters",
            next_step="Name another with --policy, or other parameters with --set",
        )


def replicate(request: ForkRequest, count: int, train: Train) -> dict[str, Any]:
    """Train `count` pairs of forks and return what the policy of `request` was worth, as `runs fork` prints it.

    Both forks of pair i draw alike after the fork: order of the data, dropout, the policy's own choices. One is
    decided by the origin's policy, the other by that of `request`. `effects` holds for each figure the mean of the
    second less the first with the paired t interval of 95 %.

    Raises:
        UsageError: see `check_replicates`; else whatever `train` raises, after which finished forks stay in the log.
    """
    check_replicates(request, count)
    recorded = replace(request, policy="", policy_parameters={})
    pairs = []
    for number in range(1, count + 1):
        a, b = (train(replace(arm, replicate=number)) for arm in (recorded, request))
        pairs.append({"replicate": number, "a": _figures(a), "b": _figures(b)})
    return {
        "forked_from": request.origin.run_id,
        "forked_epochs": request.epoch,
        "a": {"policy": recorded.effective_policy, "policy_parameters": recorded.effective_parameters},
        "b": {"policy": request.effective_policy, "policy_parameters": request.effective_parameters},
        "replicates": count,
        "interval": "paired t, 95 %",
        "effects": {name: _effect(pairs, name, better) for name, better in _METRICS.items()},
        "pairs": pairs,
    }


def _figures(document: Mapping[str, Any]) -> dict[str, Any]:
    return {"run_id": document["run_id"], **{name: document[name] for name in _METRICS}}


def _effect(pairs: Sequence[Mapping[str, Any]], name: str, more_is_better: bool) -> dict[str, Any]:
    effect = Effect.of([pair["b"][name] - pair["a"][name] for pair in pairs])
    clear = effect.low > 0.0 or effect.high < 0.0
    better = (effect.mean > 0.0) == more_is_better
    return {
        "mean": effect.mean,
        "low": effect.low,
        "high": effect.high,
        "verdict": ("better" if better else "worse") if clear else "not clear",
    }


def student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t for `freedom` degrees, for a probability in 0.5..1; by bisection."""
    low, high = 0.0, 1.0
    while _student_share(high, freedom) < probability:
        high *= 2.0
    for _ in range(80):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _student_share(middle, freedom) < probability else (low, middle)
    return (low + high) / 2.0


def _student_share(value: float, freedom: int) -> float:
    """Return the probability of less than `value` >= 0: with t = sqrt(n) tan(u) the density is a power of cos(u)."""
    end = math.atan(value / math.sqrt(freedom))
    width = end / _STEPS
    weights = [1, *(4 if step % 2 else 2 for step in range(1, _STEPS)), 1]
    area = sum(weight * math.cos(step * width) ** (freedom - 1) for step, weight in enumerate(weights)) * width / 3.0
    scale = math.exp(math.lgamma((freedom + 1) / 2.0) - math.lgamma(freedom / 2.0)) / math.sqrt(math.pi)
    return 0.5 + scale * area
