"""From runs of the log to the results of a plan, and everything about them that speaks against believing those."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from esper.simic.trials._arms import Result, Routine, Unfit, Wanted, plain, routine
from esper.simic.trials._places import Place
from esper.simic.trials._plan import LEARNED, POLICIES, SEARCH, Pair, Plan
from esper.simic.trials._runs import TrialRun
from esper.simic.trials._search import searched


@dataclass(frozen=True)
class TrainedOn:
    """Names of the cells whose runs a policy was trained on; `said`: so its update says, the log does not hold all."""

    cells: frozenset[str]
    said: bool = False


#: By the digest of a learned policy.
LearnedFrom = Mapping[str, TrainedOn]
NOTHING_KNOWN: Final[LearnedFrom] = {}


@dataclass(frozen=True)
class Problem:
    """Why the runs of an arm cannot be believed; `arm` is "" where it concerns all of them."""

    arm: str
    what: str

    def __str__(self) -> str:
        return f"{self.arm}: {self.what}" if self.arm else self.what


@dataclass(frozen=True)
class Evidence:
    """Results by cell, arm and seed, what speaks against them, and what a reader should know besides."""

    plan: Plan
    results: Mapping[tuple[str, str, int], Result]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    #: Runs that were lost with whoever trained them, and that others stand in for.
    lost: tuple[TrialRun, ...]

    def of(self, arm: str, cell: str) -> list[Result]:
        """Return the results of an arm in a cell, by seed."""
        found = [self.results.get((cell, arm, seed)) for seed in self.plan.seeds]
        return [each for each in found if each is not None]


def pairs_of(plan: Plan) -> list[Pair]:
    """Return every pair of the plan, cell by cell."""
    return [Pair(cell, seed) for cell in plan.cells for seed in plan.seeds]


def gather(plan: Plan, runs: Iterable[TrialRun], learned_from: LearnedFrom = NOTHING_KNOWN) -> Evidence:
    """Return what runs come to under a plan; pure, and decides by nothing but the runs.

    A run that was lost with its trainer counts for nothing; any other second run of a place, a run that failed or is
    not over, and one that is not what its arm had to ask for are problems, and so is a place without a run.
    """
    all_runs = list(runs)
    places, problems = _by_place(all_runs)
    results: dict[tuple[str, str, int], Result] = {}
    asked: set[Place] = set()
    for pair in pairs_of(plan):
        for arm in plan.arms.names():
            try:
                result = _result(plan, pair, arm, places, asked)
            except Unfit as unfit:
                problems.append(Problem(arm, f"{pair.cell.name}, seed {pair.seed}: {unfit}"))
            else:
                results[pair.cell.name, arm, pair.seed] = result
    problems += [
        Problem(place.arm, f"the plan has no place for {place}") for place in sorted_places(set(places) - asked)
    ]
    problems += _unpaired(plan, results)
    problems += _deciders(plan, results)
    seen, unchecked = _pedigree(plan, results, learned_from)
    return Evidence(
        plan,
        results,
        (*problems, *seen),
        (*_notes(all_runs), *unchecked),
        tuple(run for run in all_runs if run.lost),
    )


def sorted_places(places: Iterable[Place]) -> list[Place]:
    """Return places in an order of their own."""
    return sorted(places, key=lambda place: (place.task, place.host, place.arm, place.seed, place.part))


def _by_place(runs: Sequence[TrialRun]) -> tuple[dict[Place, TrialRun], list[Problem]]:
    """Return the one run of each place, and what is wrong with places."""
    held: defaultdict[Place, list[TrialRun]] = defaultdict(list)
    for run in runs:
        if not run.lost:
            held[run.place].append(run)
    places, problems = {}, []
    for place, found in held.items():
        if len(found) > 1:
            ids = ", ".join(run.run_id for run in found)
            problems.append(Problem(place.arm, f"{len(found)} runs are {place}: {ids}"))
        places[place] = found[0]
    return places, problems


def _result(plan: Plan, pair: Pair, arm: str, places: Mapping[Place, TrialRun], asked: set[Place]) -> Result:
    def look(wanted: Wanted) -> TrialRun:
        asked.add(wanted.place)
        run = places.get(wanted.place)
        if run is None:
            raise Unfit(f"there is no run of {wanted.place}")
        return checked(run, wanted)

    if arm == SEARCH:
        grown = look(plain(plan, pair, plan.grown))
        trials = [
            run
            for place, run in places.items()
            if (place.task, place.host, place.seed, place.arm) == (pair.cell.task, pair.cell.host, pair.seed, SEARCH)
        ]
        asked.update(run.place for run in trials)
        for run in trials:
            over(run)
        return searched(plan, pair, trials, budget=grown.end.multiply_adds)
    return replay(routine(plan, pair, arm), look)


def replay(steps: Routine, look: Callable[[Wanted], TrialRun]) -> Result:
    """Return what a routine comes to with the runs that `look` finds for what it wants.

    Raises:
        Unfit: from `look`, or from the routine.
    """
    try:
        wanted = next(steps)
        while True:  # ends with the routine
            wanted = steps.send([look(each) for each in wanted])
    except StopIteration as end:
        result: Result = end.value
        return result


def over(run: TrialRun) -> TrialRun:
    """Return a run that finished with figures that can be.

    Raises:
        Unfit: it failed, is not over, or says something that no run comes to.
    """
    if run.status == "failed":
        raise Unfit(f"run {run.run_id} ({run.place}) failed: {run.reason}")
    if run.status != "finished":
        raise Unfit(f"run {run.run_id} ({run.place}) is not over")
    end = run.end
    if min(end.epochs, end.multiply_adds, end.parameters) < 1:
        raise Unfit(f"run {run.run_id} ({run.place}) counts no epochs, multiply-adds or parameters")
    if not all(math.isfinite(share) and 0.0 <= share <= 1.0 for share in (end.accuracy, end.validation_accuracy)):
        raise Unfit(f"run {run.run_id} ({run.place}) has an accuracy that is none")
    return run


def checked(run: TrialRun, wanted: Wanted) -> TrialRun:
    """Return a finished run that is what was wanted, to the letter of its request.

    Raises:
        Unfit: it is not over, or something of it is otherwise; the message names the first such thing.
    """
    over(run)
    request = run.request
    rates = [(each.epoch, each.learning_rate) for each in request.learning_rates]
    facts: list[tuple[str, object, object]] = [
        ("task", request.task, wanted.place.task),
        ("host", request.host, wanted.host),
        ("seed", request.seed, wanted.place.seed),
        ("policy", request.policy, wanted.policy),
        ("policy parameters", dict(request.policy_parameters), dict(wanted.policy_parameters)),
        ("epochs", request.epochs, wanted.epochs),
        ("finished epochs", run.end.epochs, wanted.epochs),
        ("epochs in the log", [epoch.epoch for epoch in run.curve], list(range(1, wanted.epochs + 1))),
        ("origin", request.forked_from, wanted.fork_of),
        ("forked epochs", request.forked_epochs, wanted.fork_epochs),
        ("replicate", request.replicate, 0),
        ("kernels from the beginning", bool(request.built_in), bool(request.built_in) and bool(wanted.shape_of)),
        ("seeds", bool(run.end.seeds) and wanted.policy == "noop", False),
    ]
    if wanted.fork_of:
        facts.append(("learning rate after the fork", rates[-1:], [(wanted.fork_epochs, wanted.learning_rate)]))
    else:
        alone = {} if wanted.learning_rate is None else {"learning_rate": wanted.learning_rate}
        facts.append(("hyperparameters", dict(request.hyperparameters), alone))
        facts.append(("learning rates", rates, []))
    for name, found, expected in facts:
        if found != expected:
            raise Unfit(f"run {run.run_id} ({run.place}) has {name} {found!r}, not {expected!r}")
    return run


def _unpaired(plan: Plan, results: Mapping[tuple[str, str, int], Result]) -> list[Problem]:
    """Return pairs whose runs did not begin alike, and tasks whose data changed."""
    found = []
    data: dict[str, set[str]] = defaultdict(set)
    for pair in pairs_of(plan):
        first: set[str] = set()
        for arm in plan.arms.names():
            result = results.get((pair.cell.name, arm, pair.seed))
            for run in result.runs if result else ():
                data[pair.cell.task].add(run.data_digest)
                if run.request.host == pair.cell.host and not run.request.built_in:
                    first.add(run.initial_digest)
        if len(first) > 1 or "" in first:
            found.append(Problem("", f"{pair.cell.name}, seed {pair.seed}: its arms did not begin with equal weights"))
    found += [Problem("", f"the data of {task} were not the same in all runs") for task in data if len(data[task]) > 1]
    return found


def _deciders(plan: Plan, results: Mapping[tuple[str, str, int], Result]) -> list[Problem]:
    """Return arms of policies that more than one version decided, or that were not decided in every epoch."""
    found = []
    for arm in (name for name in plan.arms.names() if name in POLICIES):
        runs = [result.run for (_, name, _), result in results.items() if name == arm]
        deciders = {decider for run in runs for decider in run.deciders}
        if len(deciders) > 1:
            names = ", ".join(sorted(f"{one.policy} {one.version} {one.digest[:12]}" for one in deciders))
            found.append(Problem(arm, f"it was decided by more than one policy: {names}"))
        policy = plan.policy_of(arm)[0].partition("@")[0]
        others = sorted({one.policy for one in deciders if one.policy.partition("@")[0] != policy or not one.digest})
        if others:
            found.append(Problem(arm, f"it was decided by {', '.join(map(repr, others))}, not by a known {policy!r}"))
        silent = [run.run_id for run in runs if not run.deciders or run.decisions != run.end.epochs]
        if silent:
            found.append(Problem(arm, f"{len(silent)} runs have epochs without a decision, the first is {silent[0]}"))
    return found


def _pedigree(
    plan: Plan, results: Mapping[tuple[str, str, int], Result], learned_from: LearnedFrom
) -> tuple[list[Problem], list[str]]:
    """Return held-out cells that the learned policy was trained on, and policies of which that is not known."""
    held_out = {cell.name for cell in plan.cells if cell.split == "held_out"}
    runs = [result.run for (_, arm, _), result in results.items() if arm == LEARNED]
    problems, notes = [], []
    for digest in sorted({decider.digest for run in runs for decider in run.deciders}):
        if digest not in learned_from:
            notes.append(f"what {LEARNED} ({digest[:12]}) was trained on is not all in this log: not checked")
            continue
        trained = learned_from[digest]
        if seen := sorted(held_out & trained.cells):
            problems.append(Problem(LEARNED, f"it was trained on held-out cells: {', '.join(seen)}"))
        elif trained.said:
            cells = ", ".join(sorted(trained.cells))
            notes.append(f"{LEARNED} ({digest[:12]}) was trained on {cells}: so its update says, the runs are not here")
    return problems, notes


def _notes(runs: Sequence[TrialRun]) -> tuple[str, ...]:
    """Return what differed between runs without making their comparison unfair."""
    notes = []
    for what, values in (
        ("numerics", {run.numerics for run in runs if run.status == "finished"}),
        ("versions of the code", {run.code_version for run in runs if run.status == "finished"}),
    ):
        if len(values) > 1:
            notes.append(f"runs of {len(values)} {what}: {'; '.join(sorted(values))}")
    return tuple(notes)
