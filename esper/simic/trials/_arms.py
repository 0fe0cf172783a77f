"""What each arm runs and what came of it: routines that ask for runs and are handed what the log holds of them.

Whoever evaluates drives them with runs that it has trained; whoever judges drives the very same ones with the log
alone, and sees whether each run is what the arm had to ask for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Final

from esper.simic.trials._places import WHOLE, Place
from esper.simic.trials._plan import (
    POLICIES,
    POPULATION,
    SEARCH,
    SHAPE,
    SHAPE_EQUAL,
    STATIC,
    STATIC_EQUAL,
    Pair,
    Plan,
)
from esper.simic.trials._runs import TrialRun

#: Budgets are met in steps of this share of the plan's epochs, always upwards: runs of equal length share a stack.
_STEPS_OF_PLAN: Final = 8


@dataclass(frozen=True)
class Wanted:
    """One run that an arm asks for, with all that its request must say."""

    place: Place
    host: str
    policy: str
    policy_parameters: Mapping[str, float]
    epochs: int
    #: None: the task's own.
    learning_rate: float | None = None
    #: Run whose final shape the host has from its beginning; "": none.
    shape_of: str = ""
    #: Run that this one is up to `fork_epochs`; "": none. It then trains on with `learning_rate`.
    fork_of: str = ""
    fork_epochs: int = 0


@dataclass(frozen=True)
class Result:
    """What one arm came to in one pair. `run` ended with the network that is judged; `runs` are all that it took."""

    pair: Pair
    arm: str
    run: TrialRun
    runs: tuple[TrialRun, ...]
    #: Of all training that the arm did.
    multiply_adds: int

    @property
    def accuracy(self) -> float:
        """Accuracy on the test part, 0..1."""
        return self.run.end.accuracy

    @property
    def parameters(self) -> int:
        """Parameters of the final network."""
        return self.run.end.parameters

    @property
    def seconds(self) -> float:
        """Wall time of all its runs; evidence."""
        return sum(run.seconds for run in self.runs)

    @property
    def curve_area(self) -> float:
        """Mean validation accuracy over the epochs of the judged run."""
        curve = self.run.curve
        return sum(epoch.val_accuracy for epoch in curve) / len(curve) if curve else math.nan


class Unfit(Exception):
    """Runs of the log are not what an arm had to ask for; the message says how."""


#: Asks for runs, is sent them finished, and returns the arm's result; raises Unfit.
Routine = Generator[list[Wanted], list[TrialRun], Result]


def plain(plan: Plan, pair: Pair, arm: str, *, epochs: int | None = None, part: str = WHOLE) -> Wanted:
    """Return what a pair's cell trains under an arm's policy."""
    policy, parameters = plan.policy_of(arm)
    place = Place(pair.cell.task, pair.cell.host, pair.seed, arm, part)
    return Wanted(place, pair.cell.host, policy, parameters, plan.epochs if epochs is None else epochs)


def routine(plan: Plan, pair: Pair, arm: str) -> Routine:
    """Return the routine of an arm in a pair; that of the search, which needs a sampler, is made elsewhere."""
    if arm == POPULATION:
        from esper.simic.trials._population import population

        return population(plan, pair)
    assert arm != SEARCH, "who searches brings a sampler, who judges reads what was searched"
    return _ROUTINES[arm](plan, pair, arm)


def _one(plan: Plan, pair: Pair, arm: str) -> Routine:
    (run,) = yield [plain(plan, pair, arm)]
    return _result(pair, arm, run)


def _static_equal(plan: Plan, pair: Pair, arm: str) -> Routine:
    grown, static = yield [plain(plan, pair, plan.grown), plain(plan, pair, STATIC)]
    epochs = epochs_for(plan, grown.end.multiply_adds, static)
    (run,) = yield [plain(plan, pair, arm, epochs=epochs)]
    check_spent(run.end.multiply_adds, grown.end.multiply_adds)
    return _result(pair, arm, run)


def _shape(plan: Plan, pair: Pair, arm: str) -> Routine:
    (grown,) = yield [plain(plan, pair, plan.grown)]
    run = yield from _shaped(plan, pair, arm, grown, plan.epochs)
    return _result(pair, arm, run)


def _shape_equal(plan: Plan, pair: Pair, arm: str) -> Routine:
    (grown,) = yield [plain(plan, pair, plan.grown)]
    # What an epoch of the shape costs is known once a run of it was trained: that of equal epochs.
    full = yield from _shaped(plan, pair, SHAPE, grown, plan.epochs)
    run = yield from _shaped(plan, pair, arm, grown, epochs_for(plan, grown.end.multiply_adds, full))
    check_spent(run.end.multiply_adds, grown.end.multiply_adds)
    return _result(pair, arm, run)


def _shaped(
    plan: Plan, pair: Pair, arm: str, grown: TrialRun, epochs: int
) -> Generator[list[Wanted], list[TrialRun], TrialRun]:
    asked = plain(plan, pair, arm, epochs=epochs)
    wanted = Wanted(asked.place, asked.host, asked.policy, asked.policy_parameters, epochs, shape_of=grown.run_id)
    (run,) = yield [wanted]
    if run.end.parameters != grown.end.parameters:
        raise Unfit(
            f"run {run.run_id} has {run.end.parameters} parameters, the grown run {grown.run_id} has "
            f"{grown.end.parameters}: its shape is another"
        )
    return run


_ROUTINES: Final[Mapping[str, Callable[[Plan, Pair, str], Routine]]] = {
    STATIC: _one,
    STATIC_EQUAL: _static_equal,
    SHAPE: _shape,
    SHAPE_EQUAL: _shape_equal,
    **dict.fromkeys(POLICIES, _one),
}


def _result(pair: Pair, arm: str, run: TrialRun) -> Result:
    return Result(pair, arm, run, (run,), run.end.multiply_adds)


def epoch_cost(run: TrialRun) -> float:
    """Return the multiply-adds of one epoch of a run that did not grow."""
    if run.end.seeds or run.end.epochs < 1:
        raise Unfit(f"run {run.run_id} tells no cost of an epoch: it grew, or trained none")
    return run.end.multiply_adds / run.end.epochs


def epochs_for(plan: Plan, budget: int, run: TrialRun, *, share: int = 1) -> int:
    """Return how many epochs of `run`'s network, over `share` such networks, spend at least `budget`.

    Rounded up, to a multiple of an eighth of the plan's epochs: what is spent more is to the rival's advantage.
    """
    step = max(1, plan.epochs // _STEPS_OF_PLAN)
    return max(step, math.ceil(budget / (share * epoch_cost(run)) / step - 1e-9) * step)


def check_spent(spent: int, budget: int) -> None:
    """Raise Unfit where an arm of equal compute had less than the grown run spent."""
    if spent < budget:
        raise Unfit(f"it spent {spent} multiply-adds, the grown run {budget}: the compute is not equal")
