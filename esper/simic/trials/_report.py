"""The report of an evaluation: a document of figures, computed from the runs of the log and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from esper.core.rng import derive_seed
from esper.simic.trials._arms import Result
from esper.simic.trials._evidence import NOTHING_KNOWN, Evidence, LearnedFrom, gather
from esper.simic.trials._plan import LEARNED, Cell, Plan
from esper.simic.trials._runs import TrialRun
from esper.simic.trials._statistics import Estimate, compare, estimate, interquartile_mean
from esper.simic.trials._verdict import Judged, Verdict, differences, figure, figures, judged

#: Points of a learning curve; runs of unequal lengths are laid beside each other by shares of their epochs.
_CURVE_POINTS: Final = 41
_SPLITS: Final = ("held_out", "training")
_METRICS: Final = ("accuracy", "score")
#: Enough to see what is wrong; the count stands beside it.
_PROBLEMS_LISTED: Final = 200

Document = dict[str, Any]


def report(
    plan: Plan,
    runs: Iterable[TrialRun],
    offsets: Mapping[str, Mapping[str, int]],
    *,
    learned_from: LearnedFrom = NOTHING_KNOWN,
) -> Document:
    """Return the report of a plan's runs as JSON holds it; pure.

    Args:
        plan: What was to be run.
        runs: All runs of the plan that the log holds up to `offsets`.
        offsets: Topic -> partition -> first offset that was not read: the same vector gives the same report.
        learned_from: See `verdict`.
    """
    all_runs = list(runs)
    evidence = gather(plan, all_runs, learned_from)
    return {
        "format": 1,
        "plan": {"digest": plan.digest, **plan.model_dump(mode="json")},
        "offsets": {topic: dict(places) for topic, places in offsets.items()},
        "verdict": _verdict(judged(evidence)),
        "runs": _counts(all_runs),
        "problems": {
            "count": len(evidence.problems),
            "listed": [str(problem) for problem in evidence.problems[:_PROBLEMS_LISTED]],
        },
        "notes": list(evidence.notes),
        "arms": [row for split in _SPLITS for arm in plan.arms.names() for row in _arm(evidence, arm, split)],
        "comparisons": [row for split in _SPLITS for row in _comparisons(evidence, split)],
        "losing": _losing(evidence),
        "cells": [row for cell in plan.cells for arm in plan.arms.names() for row in _cell(evidence, cell, arm)],
        "curves": [row for cell in plan.cells for arm in plan.arms.names() for row in _curve(evidence, cell, arm)],
        "results": [_result(evidence, result) for _, result in sorted(evidence.results.items())],
    }


def _verdict(found: Verdict) -> Document:
    return {"word": found.word, "reasons": list(found.reasons), "claims": [_claim(claim) for claim in found.claims]}


def _claim(claim: Judged) -> Document:
    rivals = [
        {
            "rival": held.rival,
            "relation": held.relation,
            "margin": held.margin,
            "adjusted_p": held.adjusted_p,
            "shown": held.shown,
            **asdict(held.comparison),
        }
        for held in claim.rivals
    ]
    head = {"claim": claim.claim, "arm": claim.arm, "metric": claim.metric, "word": claim.word}
    return {**head, "reasons": list(claim.reasons), "rivals": rivals}


def _counts(runs: Sequence[TrialRun]) -> Document:
    return {
        "finished": sum(run.status == "finished" for run in runs),
        "failed": sum(run.status == "failed" and not run.lost for run in runs),
        "lost": sum(run.lost for run in runs),
        "open": sum(run.status == "open" for run in runs),
    }


def _results(evidence: Evidence, arm: str, split: str) -> list[Result]:
    cells = [cell for cell in evidence.plan.cells if cell.split == split]
    return [result for cell in cells for result in evidence.of(arm, cell.name)]


def _arm(evidence: Evidence, arm: str, split: str) -> list[Document]:
    """Return one row for an arm over the cells of a split; none where it has no result."""
    results = _results(evidence, arm, split)
    if not results:
        return []
    row: Document = {"split": split, "arm": arm, "runs": len(results)}
    bounds = evidence.plan.bounds
    for metric in _METRICS:
        strata = figures(evidence, arm, metric, split=split)
        if strata:
            seed = derive_seed(0, "report", evidence.plan.digest, arm, split, metric)
            mean, middle = estimate(strata, level=bounds.level, resamples=bounds.resamples, seed=seed)
            row[metric] = {"mean": asdict(mean), "interquartile_mean": asdict(middle)}
    return [row | _costs(results)]


def _costs(results: Sequence[Result]) -> Document:
    return {
        "multiply_adds": _mean(result.multiply_adds for result in results),
        "parameters": _mean(result.parameters for result in results),
        "seconds": _mean(result.seconds for result in results),
        "curve_area": _mean(result.curve_area for result in results),
    }


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _cell(evidence: Evidence, cell: Cell, arm: str) -> list[Document]:
    results = evidence.of(arm, cell.name)
    if not results:
        return []
    accuracies = np.asarray([result.accuracy for result in results], dtype=np.float64)
    row = {"task": cell.task, "host": cell.host, "split": cell.split, "arm": arm, "seeds": len(results)}
    spread = float(accuracies.std(ddof=1)) if len(results) > 1 else 0.0
    return [
        {
            **row,
            "accuracy": float(accuracies.mean()),
            "interquartile_mean": float(interquartile_mean(accuracies)),
            "deviation": spread,
            "worst": float(accuracies.min()),
            "best": float(accuracies.max()),
            **_costs(results),
        }
    ]


def _subjects(plan: Plan) -> list[str]:
    """Return the arms that others are held against: the grown one and the learned one."""
    return [arm for arm in dict.fromkeys((plan.grown, LEARNED)) if arm in plan.arms.names()]


def _comparisons(evidence: Evidence, split: str) -> list[Document]:
    """Return every other arm beside each subject, by both metrics; unadjusted, for reading."""
    plan, found = evidence.plan, []
    for arm in _subjects(plan):
        for rival in (name for name in plan.arms.names() if name != arm):
            for metric in _METRICS:
                strata = differences(evidence, arm, rival, metric, split=split)
                if not strata:
                    continue
                compared = compare(
                    strata,
                    margin=0.0,
                    level=plan.bounds.level,
                    resamples=plan.bounds.resamples,
                    seed=derive_seed(0, "report", plan.digest, arm, rival, metric, split),
                )
                found.append({"split": split, "arm": arm, "rival": rival, "metric": metric, **asdict(compared)})
    return found


def _losing(evidence: Evidence) -> list[Document]:
    """Return every cell and rival where a subject does worse on average, the worst first."""
    plan, found = evidence.plan, []
    for arm in _subjects(plan):
        for rival in (name for name in plan.arms.names() if name != arm):
            for cell in plan.cells:
                pairs = _paired(evidence, arm, rival, cell)
                if pairs and sum(pairs.values()) < 0.0:
                    found.append(_losing_row(evidence, arm, rival, cell, pairs))
    return sorted(found, key=lambda row: (row["mean"]["value"], row["task"], row["host"], row["rival"]))


def _paired(evidence: Evidence, arm: str, rival: str, cell: Cell) -> dict[int, float]:
    found = {}
    for seed in evidence.plan.seeds:
        one, other = (evidence.results.get((cell.name, name, seed)) for name in (arm, rival))
        if one and other:
            found[seed] = one.accuracy - other.accuracy
    return found


def _losing_row(evidence: Evidence, arm: str, rival: str, cell: Cell, pairs: Mapping[int, float]) -> Document:
    values = np.asarray(list(pairs.values()), dtype=np.float64)
    bounds = evidence.plan.bounds
    seed = derive_seed(0, "report", evidence.plan.digest, arm, rival, cell.name)
    mean: Estimate = compare([values], margin=0.0, level=bounds.level, resamples=bounds.resamples, seed=seed).mean
    return {
        "task": cell.task,
        "host": cell.host,
        "split": cell.split,
        "arm": arm,
        "rival": rival,
        "mean": asdict(mean),
        "worse_pairs": int(np.count_nonzero(values < 0.0)),
        "pairs": len(values),
        "worst_seed": min(pairs, key=lambda each: pairs[each]),
    }


def _curve(evidence: Evidence, cell: Cell, arm: str) -> list[Document]:
    """Return an arm's mean learning curve in a cell: validation accuracy by epoch and by all that the arm spent."""
    results = [result for result in evidence.of(arm, cell.name) if result.run.curve]
    if not results:
        return []
    shares = np.linspace(0.0, 1.0, _CURVE_POINTS)
    laid = np.asarray([_laid(result, shares) for result in results])
    low, high = np.quantile(laid[:, 2], [0.25, 0.75], axis=0)
    means = laid.mean(axis=0)
    points = [
        {"epoch": float(e), "multiply_adds": float(m), "accuracy": float(a), "low": float(lo), "high": float(hi)}
        for e, m, a, lo, hi in zip(*means, low, high, strict=True)
    ]
    return [{"task": cell.task, "host": cell.host, "arm": arm, "points": points}]


def _laid(result: Result, shares: np.ndarray[Any, np.dtype[np.float64]]) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    """Return epoch, multiply-adds and accuracy of a run by shares of its length; all that the arm spent counts."""
    curve = result.run.curve
    at = 1.0 + shares * (len(curve) - 1)
    epochs = np.arange(1.0, len(curve) + 1.0)
    whole = result.multiply_adds / max(1, curve[-1].multiply_adds)
    spent = np.interp(at, epochs, [epoch.multiply_adds for epoch in curve]) * whole
    return [at, spent, np.interp(at, epochs, [epoch.val_accuracy for epoch in curve])]


def _result(evidence: Evidence, result: Result) -> Document:
    scored = (result.pair.cell.name, "static", result.pair.seed) in evidence.results
    return {
        "task": result.pair.cell.task,
        "host": result.pair.cell.host,
        "seed": result.pair.seed,
        "arm": result.arm,
        "run_id": result.run.run_id,
        "runs": len(result.runs),
        "accuracy": result.accuracy,
        "score": figure(evidence, result, "score") if scored else None,
        "loss": result.run.end.loss,
        "epochs": result.run.end.epochs,
        "multiply_adds": result.multiply_adds,
        "parameters": result.parameters,
        "seconds": result.seconds,
        "seeds_grafted": len(result.run.end.seeds),
    }
