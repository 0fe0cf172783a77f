"""A search of the host's width and learning rate: what a user would do in place of growing, with as much compute."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from typing import Any, Final

from esper.core.errors import UsageError
from esper.core.rng import derive_seed
from esper.simic.trials._arms import Result, Routine, Unfit, Wanted, check_spent, epoch_cost, plain
from esper.simic.trials._plan import SEARCH, STATIC, Pair, Plan, SearchArm
from esper.simic.trials._runs import TrialRun

_SEED_BITS: Final = 2**32
#: How far the last runs of a search may go beyond the budget.
_SLACK: Final = 0.1


def rung_epochs(arm: SearchArm, epochs: int) -> list[int]:
    """Return how long the runs of a trial are, ascending; the last is the whole."""
    lengths = {max(1, round(epochs / arm.reduction**back)) for back in range(arm.rungs)}
    return sorted(lengths | {epochs})


def check_search(plan: Plan) -> None:
    """Raise where a plan asks for a search that cannot be done here.

    Raises:
        UsageError: Optuna is not installed, or a host has no width.
    """
    if plan.arms.search is None:
        return
    _optuna()
    for cell in plan.cells:
        if not cell.host.partition(":")[2].isdecimal():
            raise UsageError(
                f"the host {cell.host!r} of {cell.task!r} cannot be searched",
                cause="its name has no width to search",
                next_step="Name it with its width, as mlp:8, or leave the arm out",
            )


def search(plan: Plan, pair: Pair) -> Routine:
    """Ask for trials, one after the other, until they have spent what the grown run did.

    Each rung of a trial is a run of its own, from nothing, with the whole of its schedule: a user who stops early has
    trained so. Optuna proposes by TPE (Bergstra et al., 2011) and ends a trial by successive halving (ASHA, Li et al.,
    2018), both on the validation accuracy; a trial also ends where its next run would go far beyond the budget.
    """
    optuna = _optuna()
    arm = plan.arms.search
    assert arm is not None, "asked of plans that have the arm"
    grown, static = yield [plain(plan, pair, plan.grown), plain(plan, pair, STATIC)]
    budget = grown.end.multiply_adds
    rungs = rung_epochs(arm, plan.epochs)
    widest = affordable_width(arm, pair, rungs, budget=budget, epoch=epoch_cost(static))
    study = _study(optuna, arm, pair, rungs)
    runs: list[TrialRun] = []
    for number in range(arm.trials_max):
        if _spent(runs) >= budget:
            break
        trial = study.ask()
        width = trial.suggest_int("width", arm.widths[0], widest, log=True)
        rate = trial.suggest_float("learning_rate", *arm.rates, log=True)
        value, pruned = 0.0, False
        for rung, epochs in enumerate(rungs):
            (run,) = yield [_trial(plan, pair, number, rung, width=width, rate=rate, epochs=epochs)]
            runs.append(run)
            value = run.end.validation_accuracy
            trial.report(value, epochs)
            if epochs == rungs[-1]:
                break
            # The first trial is trained to its end, whatever that costs: a search must come to something.
            dear = number > 0 and _spent(runs) + epoch_cost(run) * rungs[rung + 1] > budget * (1.0 + _SLACK)
            pruned = dear or trial.should_prune()
            if pruned:
                break
        if pruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, value)
    return searched(plan, pair, runs, budget=budget)


def affordable_width(arm: SearchArm, pair: Pair, rungs: Iterable[int], *, budget: int, epoch: float) -> int:
    """Return the widest host that the search proposes: one whose every rung together costs no more than the budget.

    Nobody would propose what cannot be trained once. `epoch` is what one costs of the cell's own host; the cost of
    another is taken to follow its width. At least the narrowest that the plan names.
    """
    own = int(pair.cell.host.partition(":")[2])
    widest = math.floor(own * budget / (epoch * sum(rungs)))
    return min(arm.widths[1], max(arm.widths[0], widest))


def _spent(runs: Iterable[TrialRun]) -> int:
    return sum(run.end.multiply_adds for run in runs)


def searched(plan: Plan, pair: Pair, runs: Iterable[TrialRun], *, budget: int) -> Result:
    """Return what a search came to, from its runs alone: the best of those of full length, by validation.

    Raises:
        Unfit: a run is none that the search may ask for, none has the full length, or less was spent than `budget`.
    """
    arm = plan.arms.search
    assert arm is not None, "asked of plans that have the arm"
    all_runs = sorted(runs, key=lambda run: run.place.part)
    for run in all_runs:
        _check_trial(plan, arm, pair, run)
    full = [run for run in all_runs if run.end.epochs == plan.epochs]
    if not full:
        raise Unfit("no trial of the search was trained to the end")
    spent = _spent(all_runs)
    check_spent(spent, budget)
    # Sorted by part, so that of equals the earlier trial wins.
    best = max(full, key=lambda run: run.end.validation_accuracy)
    return Result(pair, SEARCH, best, tuple(all_runs), spent)


def _trial(plan: Plan, pair: Pair, number: int, rung: int, *, width: int, rate: float, epochs: int) -> Wanted:
    asked = plain(plan, pair, SEARCH, epochs=epochs, part=f"t{number:04d}r{rung}")
    host = f"{pair.cell.host.partition(':')[0]}:{width}"
    return Wanted(asked.place, host, asked.policy, asked.policy_parameters, epochs, learning_rate=rate)


def _check_trial(plan: Plan, arm: SearchArm, pair: Pair, run: TrialRun) -> None:
    request = run.request
    family, _, width = request.host.partition(":")
    rates = request.hyperparameters.get("learning_rate", 0.0)
    fits = (
        family == pair.cell.host.partition(":")[0]
        and width.isdecimal()
        and arm.widths[0] <= int(width) <= arm.widths[1]
        and arm.rates[0] <= rates <= arm.rates[1]
        and run.end.epochs == request.epochs
        and request.epochs in rung_epochs(arm, plan.epochs)
        and (request.task, request.seed, request.policy) == (pair.cell.task, pair.seed, "noop")
        and not request.built_in
        and not request.forked_from
    )
    if not fits:
        raise Unfit(f"run {run.run_id} is no trial of the search that the plan states")


def _study(optuna: Any, arm: SearchArm, pair: Pair, rungs: list[int]) -> Any:  # noqa: ANN401 - another package's
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = derive_seed(pair.seed, "search", pair.cell.task, pair.cell.host) % _SEED_BITS
    return optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=arm.startup_trials),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=rungs[0], reduction_factor=arm.reduction),
    )


def _optuna() -> Any:  # noqa: ANN401 - another package's
    try:
        return importlib.import_module("optuna")
    except ImportError as error:
        raise UsageError(
            "the search of the width cannot be done",
            cause=str(error),
            next_step="Install the extra: pip install 'esper-grow[evaluate]', or plan without the arm `search`",
        ) from error
