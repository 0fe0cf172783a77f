"""Population based training as runs of the log: members train on, and the worst becomes a fork of the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from esper.core.rng import derive_seed, stream_of
from esper.simic.trials._arms import Result, Routine, Unfit, Wanted, check_spent, epochs_for, plain
from esper.simic.trials._plan import POPULATION, STATIC, Pair, Plan, PopulationArm
from esper.simic.trials._runs import TrialRun


@dataclass(frozen=True)
class Exploit:
    """A member that goes on with another's weights, and with a learning rate near the other's."""

    member: int
    donor: int
    rate: float


def first_rates(arm: PopulationArm, seed: int) -> list[float]:
    """Return what each member begins with: the first with the task's own rate, the others drawn."""
    return [arm.first_rate, *(_drawn(arm, seed, "first", member) for member in range(1, arm.population))]


def boundaries(arm: PopulationArm, epochs: int) -> list[int]:
    """Return the epochs after which members are compared; none at the end, where nothing would follow."""
    interval = math.ceil(epochs / arm.generations)
    return list(range(interval, epochs, interval))


def exploits(
    arm: PopulationArm, scores: Sequence[float], rates: Sequence[float], *, seed: int, generation: int
) -> list[Exploit]:
    """Return who copies whom: each of the lower quantile one of the upper, drawn; of equals the first is better.

    The rate is drawn afresh with probability `resample`, else the donor's times one of `factors` (Jaderberg et al.,
    2017, "truncation selection" and "perturb").
    """
    order = sorted(range(len(scores)), key=lambda member: (-scores[member], member))
    count = min(max(1, math.ceil(arm.quantile * len(scores))), len(scores) // 2)
    found = []
    for member in sorted(order[-count:]):
        stream = stream_of(derive_seed(seed, "pbt", "exploit", generation, member))
        donor = order[stream.randrange(count)]
        if stream.random() < arm.resample:
            rate = _drawn(arm, seed, "resampled", generation, member)
        else:
            rate = rates[donor] * arm.factors[stream.randrange(2)]
        found.append(Exploit(member, donor, min(max(rate, arm.rates[0]), arm.rates[1])))
    return found


def population(plan: Plan, pair: Pair) -> Routine:
    """Ask for the members and their forks; the judged one is the best by validation at the end.

    Members have so many epochs that all together spend what the grown run did. A member that is replaced stays in the
    log to its end, and a fork repeats its origin's epochs: only the epochs that a population would train count.
    """
    arm = plan.arms.pbt
    assert arm is not None, "asked of plans that have the arm"
    grown, static = yield [plain(plan, pair, plan.grown), plain(plan, pair, STATIC)]
    epochs = epochs_for(plan, grown.end.multiply_adds, static, share=arm.population)
    seed = derive_seed(pair.seed, "pbt", pair.cell.task, pair.cell.host)
    rates = first_rates(arm, seed)
    members = yield [_member(plan, pair, epochs, number, rate) for number, rate in enumerate(rates)]
    taken = list(members)
    for generation, boundary in enumerate(boundaries(arm, epochs), 1):
        scores = [_score(run, boundary) for run in members]
        moves = exploits(arm, scores, rates, seed=seed, generation=generation)
        forks = yield [_fork(plan, pair, epochs, generation, boundary, move, members) for move in moves]
        for move, fork in zip(moves, forks, strict=True):
            members[move.member], rates[move.member] = fork, move.rate
        taken += forks
    best = max(range(len(members)), key=lambda number: (members[number].end.validation_accuracy, -number))
    spent = sum(run.end.multiply_adds for run in members)
    check_spent(spent, grown.end.multiply_adds)
    return Result(pair, POPULATION, members[best], tuple(taken), spent)


def _member(plan: Plan, pair: Pair, epochs: int, number: int, rate: float) -> Wanted:
    asked = plain(plan, pair, POPULATION, epochs=epochs, part=f"g0m{number}")
    return Wanted(asked.place, asked.host, asked.policy, asked.policy_parameters, epochs, learning_rate=rate)


def _fork(
    plan: Plan, pair: Pair, epochs: int, generation: int, boundary: int, move: Exploit, members: Sequence[TrialRun]
) -> Wanted:
    asked = plain(plan, pair, POPULATION, epochs=epochs, part=f"g{generation}m{move.member}")
    return Wanted(
        asked.place,
        asked.host,
        asked.policy,
        asked.policy_parameters,
        epochs,
        learning_rate=move.rate,
        fork_of=members[move.donor].run_id,
        fork_epochs=boundary,
    )


def _score(run: TrialRun, epoch: int) -> float:
    for each in run.curve:
        if each.epoch == epoch:
            return each.val_accuracy
    raise Unfit(f"run {run.run_id} has no packet of epoch {epoch}")


def _drawn(arm: PopulationArm, seed: int, *names: str | int) -> float:
    low, high = (math.log(rate) for rate in arm.rates)
    return math.exp(low + (high - low) * stream_of(derive_seed(seed, "pbt", "rate", *names)).random())
