"""Whether growing pays and whether the policy does: judged from runs of the log alone, and closed where in doubt."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from esper.core.rng import derive_seed
from esper.simic.trials._arms import Result
from esper.simic.trials._evidence import NOTHING_KNOWN, Evidence, LearnedFrom, gather
from esper.simic.trials._plan import LEARNED, POPULATION, SEARCH, SHAPE, SHAPE_EQUAL, STATIC, STATIC_EQUAL, Claim, Plan
from esper.simic.trials._runs import TrialRun
from esper.simic.trials._statistics import Comparison, Floats, compare, holm

GROWTH_PAYS: Final = "GROWTH_PAYS"
POLICY_PAYS: Final = "POLICY_PAYS"
NOT_SHOWN: Final = "NOT_SHOWN"
BLOCKED: Final = "BLOCKED"

#: Rivals that a claim must name: (those it must be better than, those it must at least not be inferior to).
_DEMANDED: Final[Mapping[str, tuple[frozenset[str], frozenset[str]]]] = {
    "growth": (frozenset({STATIC, STATIC_EQUAL}), frozenset({SHAPE, SHAPE_EQUAL, SEARCH})),
    "policy": (frozenset({STATIC, "random", "fixed"}), frozenset({"heuristic", POPULATION})),
}
_WORDS: Final = {"growth": GROWTH_PAYS, "policy": POLICY_PAYS}


@dataclass(frozen=True)
class Held:
    """A claim's arm held against one rival; `adjusted_p` counts all rivals of the claim (Holm)."""

    rival: str
    relation: str
    margin: float
    comparison: Comparison
    adjusted_p: float
    shown: bool


@dataclass(frozen=True)
class Judged:
    """What became of one claim: its word, why, and the comparisons that it rests on."""

    claim: str
    arm: str
    metric: str
    word: str
    reasons: tuple[str, ...]
    rivals: tuple[Held, ...]


@dataclass(frozen=True)
class Verdict:
    """The word on the whole plan, why, and each claim's own."""

    word: str
    reasons: tuple[str, ...]
    claims: tuple[Judged, ...]


def verdict(plan: Plan, runs: Iterable[TrialRun], learned_from: LearnedFrom = NOTHING_KNOWN) -> Verdict:
    """Return what the runs of the log show of a plan's claims; pure, and reads no summary.

    BLOCKED while anything is missing or not as the plan says. A claim is shown on the held-out cells alone: towards
    each rival that it must beat the paired bootstrap interval of the mean difference lies above 0, the probability of
    improvement is at least the plan's bound, and the test holds after Holm's correction over the claim's rivals;
    towards each other rival interval and test lie above the negative margin. POLICY_PAYS goes before GROWTH_PAYS.

    `learned_from`: by the digest of a learned policy, the cells whose runs it was trained on; one that learned from a
    held-out cell blocks, and of one that is not in it a note says that nobody checked.
    """
    return judged(gather(plan, runs, learned_from))


def judged(evidence: Evidence) -> Verdict:
    """Return the verdict on evidence that was gathered from runs."""
    plan = evidence.plan
    made = {"growth": (plan.grown, plan.claims.growth), "policy": (LEARNED, plan.claims.policy)}
    claims = [_judge(evidence, name, arm, claim) for name, (arm, claim) in made.items() if claim is not None]
    words = {each.claim: each.word for each in claims}
    reasons = tuple(reason for each in claims for reason in each.reasons)
    if not claims:
        return Verdict(NOT_SHOWN, ("the plan claims nothing",), ())
    if BLOCKED in words.values():
        blocking = [reason for each in claims if each.word == BLOCKED for reason in each.reasons]
        return Verdict(BLOCKED, tuple(dict.fromkeys(blocking)), tuple(claims))
    for name in ("policy", "growth"):
        if words.get(name) == _WORDS[name]:
            return Verdict(words[name], tuple(dict.fromkeys(reasons)), tuple(claims))
    return Verdict(NOT_SHOWN, tuple(dict.fromkeys(reasons)), tuple(claims))


def _judge(evidence: Evidence, name: str, arm: str, claim: Claim) -> Judged:
    blocked = _blocked(evidence, name, arm, claim)
    if blocked:
        return Judged(name, arm, claim.metric, BLOCKED, tuple(blocked), ())
    rivals = _held(evidence, name, arm, claim)
    failed = [_why_not(arm, each) for each in rivals if not each.shown]
    if failed:
        return Judged(name, arm, claim.metric, NOT_SHOWN, tuple(failed), rivals)
    said = f"{arm} is better than {', '.join(claim.superior_to)}"
    if claim.not_inferior_to:
        said += f", and by no more than {claim.margin:g} worse than {', '.join(claim.not_inferior_to)}"
    return Judged(name, arm, claim.metric, _WORDS[name], (said,), rivals)


def _blocked(evidence: Evidence, name: str, arm: str, claim: Claim) -> list[str]:
    """Return everything that stands against judging a claim at all."""
    plan, bounds = evidence.plan, evidence.plan.bounds
    better, not_worse = _DEMANDED[name]
    named = set(claim.superior_to) | set(claim.not_inferior_to)
    found = [
        f"the claim of {name} is not held to be better than {rival}"
        for rival in sorted(better - set(claim.superior_to))
    ]
    found += [f"the claim of {name} is not held against {rival}" for rival in sorted(not_worse - named)]
    arms = plan.arms.names()
    found += [f"the plan has no arm {each}" for each in sorted({arm, *named} - set(arms))]
    if arm in named:
        found.append(f"the claim of {name} is held against its own arm")
    if plan.seeds.count < bounds.seeds_min:
        found.append(f"the plan has {plan.seeds.count} seeds, a claim takes {bounds.seeds_min}")
    held_out = [cell for cell in plan.cells if cell.split == "held_out"]
    if len(held_out) < bounds.held_out_cells_min:
        found.append(f"the plan has {len(held_out)} held-out cells, a claim takes {bounds.held_out_cells_min}")
    return found + _problems(evidence)


def _problems(evidence: Evidence) -> list[str]:
    """Return what speaks against the runs: all of it for a few, a count and the first for an arm with many."""
    by_arm: dict[str, list[str]] = {}
    for problem in evidence.problems:
        by_arm.setdefault(problem.arm, []).append(problem.what)
    found = []
    # A problem anywhere closes the verdict: nobody then knows what else of the log is not as it should be.
    for arm, whats in by_arm.items():
        more = f" (and {len(whats) - 1} more)" if len(whats) > 1 else ""
        found.append(f"{arm}: {whats[0]}{more}" if arm else f"{whats[0]}{more}")
    return found


def _held(evidence: Evidence, name: str, arm: str, claim: Claim) -> tuple[Held, ...]:
    bounds = evidence.plan.bounds
    relations = [(rival, "superior", 0.0) for rival in claim.superior_to]
    relations += [
        (rival, "not_inferior", claim.margin) for rival in claim.not_inferior_to if rival not in claim.superior_to
    ]
    compared = [
        compare(
            differences(evidence, arm, rival, claim.metric, split="held_out"),
            margin=margin,
            level=bounds.level,
            resamples=bounds.resamples,
            seed=derive_seed(0, "evaluation", evidence.plan.digest, name, rival),
        )
        for rival, _, margin in relations
    ]
    adjusted = holm([each.p_value for each in compared])
    return tuple(
        Held(rival, relation, margin, found, p, _shown(evidence.plan, relation, margin, found, p))
        for (rival, relation, margin), found, p in zip(relations, compared, adjusted, strict=True)
    )


def _shown(plan: Plan, relation: str, margin: float, found: Comparison, adjusted_p: float) -> bool:
    bounds = plan.bounds
    clear = found.mean.low > -margin and adjusted_p <= bounds.level / 2.0
    return clear and (relation != "superior" or found.improvement.value >= bounds.improvement_min)


def _why_not(arm: str, held: Held) -> str:
    found, mean = held.comparison, held.comparison.mean
    what = "better than" if held.relation == "superior" else f"at most {held.margin:g} worse than"
    return (
        f"{arm} is not shown to be {what} {held.rival}: mean difference {mean.value:+.4f} "
        f"[{mean.low:+.4f}, {mean.high:+.4f}], better in {found.improvement.value:.0%} of pairs, "
        f"p {held.adjusted_p:.3g}"
    )


def differences(evidence: Evidence, arm: str, rival: str, metric: str, *, split: str) -> list[Floats]:
    """Return, cell by cell of a split, the arm's figure less the rival's for each seed that both have."""
    found = []
    for cell in evidence.plan.cells:
        if split not in (cell.split, "all"):
            continue
        both = [
            (evidence.results.get((cell.name, arm, seed)), evidence.results.get((cell.name, rival, seed)))
            for seed in evidence.plan.seeds
        ]
        values = [
            figure(evidence, one, metric) - figure(evidence, other, metric) for one, other in both if one and other
        ]
        if values:
            found.append(np.asarray(values, dtype=np.float64))
    return found


def figure(evidence: Evidence, result: Result, metric: str) -> float:
    """Return what a result is judged by: its accuracy on the test part, or that less what it cost.

    The cost is the plan's weight for each doubling of multiply-adds and of parameters, counted from the static host of
    the same pair.
    """
    if metric == "accuracy":
        return result.accuracy
    static = evidence.results[result.pair.cell.name, STATIC, result.pair.seed]
    cost = evidence.plan.cost
    more = math.log2(result.multiply_adds / static.multiply_adds)
    larger = math.log2(result.parameters / static.parameters)
    return result.accuracy - cost.multiply_adds * more - cost.parameters * larger


def figures(evidence: Evidence, arm: str, metric: str, *, split: str) -> Sequence[Floats]:
    """Return an arm's own figures, cell by cell of a split."""
    found = []
    for cell in evidence.plan.cells:
        if split in (cell.split, "all"):
            results = evidence.of(arm, cell.name)
            known = [each for each in results if metric == "accuracy" or _has_static(evidence, each)]
            if known:
                found.append(np.asarray([figure(evidence, each, metric) for each in known], dtype=np.float64))
    return found


def _has_static(evidence: Evidence, result: Result) -> bool:
    return (result.pair.cell.name, STATIC, result.pair.seed) in evidence.results
