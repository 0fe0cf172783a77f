"""Evaluations whose figures are stated: the runs that a plan's arms ask for, with accuracies by arm, cell and seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from esper.leyline import messages as ly
from esper.simic.trials import (
    SEARCH,
    Decider,
    Epoch,
    Pair,
    Place,
    Plan,
    TrialRun,
    Wanted,
    pairs_of,
    plan_of,
    routine,
    search,
)

#: Accuracy of each arm before what a seed adds to all arms of its pair.
GOOD: Final[Mapping[str, float]] = {
    "static": 0.50,
    "static_equal_compute": 0.55,
    "final_shape": 0.70,
    "final_shape_equal_compute": 0.70,
    "random": 0.60,
    "fixed": 0.62,
    "heuristic": 0.69,
    "learned": 0.74,
    "pbt": 0.58,
    "search": 0.70,
}
AccuracyOf = Callable[[Place], float]


def content(**changes: Any) -> dict[str, Any]:
    """Return a plan's content with all arms, four held-out cells and twenty seeds."""
    hosts = ("mlp:3", "mlp:4", "mlp:5", "mlp:6")
    found: dict[str, Any] = {
        "format": 1,
        "name": "stated",
        "epochs": 8,
        "seeds": {"first": 0, "count": 20},
        "cells": [{"task": "spirals", "host": host} for host in hosts],
        "arms": {arm: {} for arm in GOOD} | {"search": {"rungs": 2, "widths": [2, 12]}},
        "bounds": {"resamples": 1000},
    }
    return found | changes


def plan(**changes: Any) -> Plan:
    """Return the plan of such a content."""
    return plan_of(content(**changes))


def stated(accuracies: Mapping[str, float], *, noise: float = 0.01) -> AccuracyOf:
    """Return accuracies of arms, with noise that a pair's arms share and some that they do not."""

    def of(place: Place) -> float:
        shared = random.Random(f"{place.task}{place.host}{place.seed}").gauss(0.0, 0.03)  # noqa: S311 - seeded data
        own = random.Random(str(place)).gauss(0.0, noise)  # noqa: S311 - seeded data
        return min(1.0, max(0.0, accuracies[place.arm] + shared + own))

    return of


def world(stated_plan: Plan, accuracy_of: AccuracyOf | None = None) -> list[TrialRun]:
    """Return finished runs for everything that the plan's arms ask for."""
    accuracy_of = accuracy_of or stated(GOOD)
    held: dict[Place, TrialRun] = {}
    for pair in pairs_of(stated_plan):
        for arm in stated_plan.arms.names():
            _drive(stated_plan, pair, arm, held, accuracy_of)
    return list(held.values())


def _drive(stated_plan: Plan, pair: Pair, arm: str, held: dict[Place, TrialRun], accuracy_of: AccuracyOf) -> None:
    steps = search(stated_plan, pair) if arm == SEARCH else routine(stated_plan, pair, arm)
    try:
        wanted = next(steps)
        while True:  # ends with the routine
            for each in wanted:
                if each.place not in held:
                    held[each.place] = run_of(stated_plan, each, accuracy_of(each.place), number=len(held))
            wanted = steps.send([held[each.place] for each in wanted])
    except StopIteration:
        return


def run_of(stated_plan: Plan, wanted: Wanted, accuracy: float, *, number: int) -> TrialRun:
    """Return a run that is to the letter what was wanted; growing makes a host three times as large and costly."""
    grew = wanted.policy != "noop" or bool(wanted.shape_of)
    # A searched host costs as much as it is wider.
    wider = int(wanted.host.partition(":")[2]) / int(wanted.place.host.partition(":")[2])
    epoch_cost = 3_000 if grew else round(1_000 * wider)
    request = ly.TrainingRunRequested(
        run_id=f"run-{number:06d}",
        task=wanted.place.task,
        host=wanted.host,
        policy=wanted.policy,
        policy_parameters=wanted.policy_parameters,
        epochs=wanted.epochs,
        seed=wanted.place.seed,
        experiment_name=wanted.place.label(stated_plan.digest),
        forked_from=wanted.fork_of,
        forked_epochs=wanted.fork_epochs,
    )
    if wanted.fork_of:
        request.learning_rates.add(epoch=wanted.fork_epochs, learning_rate=wanted.learning_rate or 0.0)
    elif wanted.learning_rate is not None:
        request.hyperparameters["learning_rate"] = wanted.learning_rate
    if wanted.shape_of:
        request.built_in.add(slot="hidden", spec=b"{}")
    parameters = 300 if grew else 100
    finished = ly.TrainingRunFinished(
        run_id=request.run_id,
        attempt=1,
        epochs=wanted.epochs,
        accuracy=accuracy,
        validation_accuracy=accuracy,
        parameters=parameters,
        multiply_adds=epoch_cost * wanted.epochs,
        seeds=[ly.SeedSummary(seed_id="s", slot="hidden")] if wanted.policy != "noop" else [],
    )
    curve = tuple(
        Epoch(epoch, 1.0, 1.0, accuracy, epoch_cost * epoch, parameters) for epoch in range(1, wanted.epochs + 1)
    )
    return TrialRun(
        run_id=request.run_id,
        place=wanted.place,
        request=request,
        status="finished",
        reason="",
        finished=finished,
        initial_digest=f"{wanted.place.task} {wanted.place.host} {wanted.place.seed}",
        data_digest=wanted.place.task,
        code_version="1",
        numerics="cpu",
        offset=number,
        curve=curve,
        deciders=frozenset({Decider(wanted.policy, "1", "d" * 64)}),
        decisions=wanted.epochs,
        kernels={},
        seconds=1.0,
    )


def changed(runs: list[TrialRun], arm: str, change: Callable[[TrialRun], TrialRun]) -> list[TrialRun]:
    """Return runs with the first one of an arm changed."""
    at = next(index for index, run in enumerate(runs) if run.place.arm == arm)
    return [*runs[:at], change(runs[at]), *runs[at + 1 :]]


def asking(run: TrialRun, **fields: Any) -> TrialRun:
    """Return a run whose request says something else."""
    request = ly.TrainingRunRequested()
    request.CopyFrom(run.request)
    for name, value in fields.items():
        setattr(request, name, value)
    return replace(run, request=request)


def ending(run: TrialRun, **fields: Any) -> TrialRun:
    """Return a run whose end says something else."""
    finished = ly.TrainingRunFinished()
    finished.CopyFrom(run.end)
    for name, value in fields.items():
        setattr(finished, name, value)
    return replace(run, finished=finished)
