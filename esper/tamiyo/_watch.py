"""Whether a promoted version keeps what its gates promised: its field reports held against those of the one before.

Pure, and no clock is asked. What is looked at is fixed by the log: of each partition of `field-reports` the first
`reports` that were decided by this promotion, and the last that the version before left there. A restart reads the
same and comes to the same verdict; while the window fills, each look is at what has been appended so far.

Reports are compared at equal epochs, since early epochs gain more than late ones and a version may take over in the
middle of a run. Errors are those of whole runs: the reports of one run are no independent evidence.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from esper.core.checks import check
from esper.leyline import messages as ly

#: A difference counts from this many standard errors on: the window is looked at after every report, and at two each
#: tenth version that is as good as the one before would be given up.
_ERRORS: Final = 3.0
#: Reports of the version before at an epoch, and runs on either side, below which nothing is compared.
_ALIKE_MIN: Final = 4
#: Reports of the version before that are kept, of each partition.
_BEFORE_MAX: Final = 1_000


@dataclass(frozen=True)
class Limits:
    """What a promoted version is watched for; as the settings say."""

    #: Reports of each partition; 0: nothing is watched.
    reports: int
    #: Reports from which on anything is judged.
    reports_min: int
    #: How far the mean reward of a decision may fall.
    reward_drop: float
    #: How far the share of decisions that were aborted or made things worse may rise.
    bad_rise: float
    aborted_share: float
    invalid_share: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What one report says; `reward` is None where its window saw no further epoch, or where it is invalid."""

    run_id: str
    epoch: int
    reward: float | None
    aborted: bool
    bad: bool
    invalid: bool


def seen(report: ly.FieldReport, weights: Mapping[str, float]) -> Seen:
    """Return what a report says, its reward by what the version was trained for.

    `weights` are those of its specification, of the parts that Simic learns from. A version that names none is judged
    by the unweighted sum of the report's own parts. It is invalid where its window saw a further epoch whose figures
    are no numbers.
    """
    parts = report.reward_parts
    invalid = bool(report.next_state_event_id) and "validation_gain" not in parts
    if weights:
        learned = _learned_parts(report)
        reward = math.fsum(weight * learned.get(name, 0.0) for name, weight in sorted(weights.items()))
    else:
        reward = math.fsum(value for _, value in sorted(parts.items()))
    aborted = report.outcome == ly.FIELD_REPORT_OUTCOME_ABORTED
    return Seen(
        run_id=report.training_run_id,
        epoch=report.epoch,
        reward=reward if parts and not invalid and math.isfinite(reward) else None,
        aborted=aborted,
        bad=aborted or report.outcome == ly.FIELD_REPORT_OUTCOME_REGRESSION,
        invalid=invalid,
    )


def _learned_parts(report: ly.FieldReport) -> dict[str, float]:
    """Return the parts that Simic learns from (`esper.simic.experience.RewardWeights`), over the report's own window.

    Parameters are in units of those at the window's beginning: what the run had first stands in no report.
    """
    figures, parts = report.metrics, report.reward_parts
    found = {"compute": -parts["compute"]} if "compute" in parts else {}
    if "validation_gain" in parts:
        found["loss"] = max(-1.0, min(1.0, parts["validation_gain"]))
    if {"validation_accuracy_begin", "validation_accuracy_end"} <= set(figures):
        found["accuracy"] = figures["validation_accuracy_end"] - figures["validation_accuracy_begin"]
    if {"parameters_begin", "parameters_end"} <= set(figures):
        before = figures["parameters_begin"]
        found["parameters"] = (figures["parameters_end"] - before) / max(before, 1.0)
    return found


class Window:
    """The reports that a promotion is judged by: a fold of `field-reports`, by partition.

    However the partitions interleave, the same records give the same window.
    """

    def __init__(
        self, promotion_id: str, *, digest: str, digest_before: str, weights: Mapping[str, float], limits: Limits
    ) -> None:
        self._promotion_id = promotion_id
        self._digest = digest
        self._digest_before = digest_before
        self._weights = weights
        self._limits = limits
        self._after: dict[int, dict[tuple[str, int], Seen]] = defaultdict(dict)
        self._before: dict[int, deque[Seen]] = defaultdict(lambda: deque(maxlen=_BEFORE_MAX))

    def fold(self, partition: int, report: ly.FieldReport) -> bool:
        """Take in one report; return whether the window grew by it.

        A run that explores has a digest of its own, and is no evidence of how the version decides.
        """
        if report.policy_digest == self._digest and report.policy_event_id == self._promotion_id:
            held = self._after[partition]
            key = (report.training_run_id, report.epoch)
            if key in held or len(held) >= self._limits.reports:
                return False
            held[key] = seen(report, self._weights)
            return True
        if self._digest_before and report.policy_digest == self._digest_before:
            self._before[partition].append(seen(report, self._weights))
        return False

    def full(self, partitions: int) -> bool:
        """Return whether nothing more belongs to the window of a topic with so many partitions."""
        return sum(len(held) for held in self._after.values()) >= partitions * self._limits.reports

    def checks(self) -> tuple[ly.GateCheck, ...]:
        """Return the figures held against their bounds; too few reports leave nothing but their number."""
        after = [one for place in sorted(self._after) for one in self._after[place].values()]
        before = [one for place in sorted(self._before) for one in self._before[place]]
        return judge(after, before, self._limits)


def breaches(checks: Sequence[ly.GateCheck]) -> tuple[ly.GateCheck, ...]:
    """Return the figures that end a watch with a rollback: missing evidence is none."""
    return tuple(one for one in checks if not one.passed and one.name != _REPORTS)


_REPORTS: Final = "watch.reports"


def judge(after: Sequence[Seen], before: Sequence[Seen], limits: Limits) -> tuple[ly.GateCheck, ...]:
    """Return the figures of the reports `after` a promotion against their bounds, measured by those `before`."""
    found = [check(_REPORTS, float(len(after)), ">=", float(limits.reports_min))]
    if len(after) < limits.reports_min:
        return tuple(found)
    invalid, aborted = sum(one.invalid for one in after) / len(after), sum(one.aborted for one in after) / len(after)
    found.append(check("watch.invalid_share", invalid, "<=", limits.invalid_share))
    found.append(check("watch.aborted_share", aborted, "<=", limits.aborted_share))
    reward = change(_figures(after, "reward"), _figures(before, "reward"), least=limits.reports_min)
    if reward is not None:
        found.append(check("watch.reward_change_upper", reward.mean + reward.margin, ">=", -limits.reward_drop))
    bad = change(_figures(after, "bad"), _figures(before, "bad"), least=limits.reports_min)
    if bad is not None:
        found.append(check("watch.bad_share_rise_lower", bad.mean - bad.margin, "<=", limits.bad_rise))
    return tuple(found)


@dataclass(frozen=True)
class Change:
    """A mean difference, and how far chance may have moved it either way."""

    mean: float
    margin: float


#: Run, epoch, value.
_Figure = tuple[str, int, float]


def _figures(reports: Sequence[Seen], name: str) -> list[_Figure]:
    values = ((one.run_id, one.epoch, getattr(one, name)) for one in reports)
    return [(run_id, epoch, float(value)) for run_id, epoch, value in values if value is not None]


def change(after: Sequence[_Figure], before: Sequence[_Figure], *, least: int) -> Change | None:
    """Return by how much figures differ from those before at the same epochs; None where too few can be compared.

    Each figure after is held against the mean before at its epoch. The error is that of means over clusters, the runs
    (Liang and Zeger 1986), of both sides, and at least what it would be if all figures were independent.
    """
    at: dict[int, list[float]] = defaultdict(list)
    for _, epoch, value in before:
        at[epoch].append(value)
    means = {epoch: math.fsum(values) / len(values) for epoch, values in at.items() if len(values) >= _ALIKE_MIN}
    differences = [(run_id, epoch, value - means[epoch]) for run_id, epoch, value in after if epoch in means]
    alike = [(run_id, epoch, value - means[epoch]) for run_id, epoch, value in before if epoch in means]
    count = len(differences)
    if count < least or min(_runs(differences), _runs(alike)) < _ALIKE_MIN:
        return None
    mean = math.fsum(value for _, _, value in differences) / count
    share: dict[int, float] = defaultdict(float)
    for _, epoch, _ in differences:
        share[epoch] += 1.0 / count
    ours = [(run_id, (value - mean) / count) for run_id, _, value in differences]
    theirs = [(run_id, share[epoch] * value / len(at[epoch])) for run_id, epoch, value in alike]
    freedom = min(_runs(differences), _runs(alike)) - 1
    return Change(mean, _quantile(freedom) * math.sqrt(_variance(ours) + _variance(theirs)))


def _quantile(freedom: int) -> float:
    """Return the quantile of Student's t where the normal one is _ERRORS (Abramowitz and Stegun 26.7.5).

    A variance that was estimated from few runs is itself uncertain.
    """
    z = _ERRORS
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def _runs(figures: Sequence[_Figure]) -> int:
    return len({run_id for run_id, _, _ in figures})


def _variance(influences: Sequence[tuple[str, float]]) -> float:
    """Return the variance of a sum of influences that belong together by run."""
    sums: dict[str, float] = defaultdict(float)
    for run_id, value in influences:
        sums[run_id] += value
    clustered = math.fsum(value * value for value in sums.values()) * len(sums) / (len(sums) - 1)
    return max(clustered, math.fsum(value * value for _, value in influences))
