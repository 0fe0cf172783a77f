"""How a learned policy is made: demonstrations, then generations that learn from their own runs.

python -m benchmarks.evaluation.learn [--generations 8] [--runs 1024] [--seconds 3000] [--workers 2] [--device cpu]

Runs on the training cells of plan.yaml alone. A grid of schedules is tried; the best of them show what may be done, and
a first policy is trained on their runs. Each generation then draws runs of its own, learns from them, and is held
against the gates, with paired runs on seeds that nothing else uses; what passes is promoted. A generation that its
paired runs show to be worse is not gone on from. Everything stands in the log of the home (ESPER_HOME): called anew,
the command goes on from the version trained last. Prints a line of JSON for each step.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

from esper.core.clock import SYSTEM_CLOCK
from esper.core.errors import EsperError
from esper.core.settings import load_settings
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.simic.experience import ranges_until_now
from esper.simic.trials import Cell, load_plan
from esper.tamiyo import shipped_policy
from esper.weatherlight import (
    KERNEL_MAKERS,
    Collection,
    PolicyTraining,
    TrainingRequest,
    Validation,
    collect,
    members_for_a_while,
    policy_list,
    policy_show,
    promote_policy,
    train_policy,
    validate_policy,
)

PLAN: Final = Path(__file__).with_name("plan.yaml")
#: Seeds of paired runs begin here, so many apart; those of the evaluation at 1,000,000, those learned from at 0.
_CANARY_SEEDS, _APART = 2_000_000, 10_000
#: A candidate whose paired runs are so much worse than the incumbent's is no parent.
_WORSE: Final = -0.005
#: Share of the episodes that must still judge what is learned from them: the gates have a quarter of some hundred
#: episodes, of which a tenth is too few.
_SUPPORT: Final = 0.25
#: What multiply-adds take from the reward, in units of the host's own price: about what the plan takes from the score,
#: which counts doublings, over the blueprints that may be grafted.
_COMPUTE: Final = -0.0002

#: What `fixed` is tried with, over the blueprints that the other policies may order: the grid that the arm `fixed` of
#: the plan is chosen from, too. 0: as soon as may be.
SCHEDULES: Final[tuple[Mapping[str, float], ...]] = tuple(
    {"germinate": germinate, "graft": germinate + trained, "blend": blend, "fossilize": fossilize, **blueprint}
    for (germinate, trained, blend), fossilize, blueprint in product(
        ((1, 1, 1), (4, 4, 4)),
        (0, 20, 36),
        (
            {"blueprint": 21, "parameter.hidden_multiple": 2},
            {"blueprint": 9, "parameter.depth": 1},
            {"blueprint": 9, "parameter.depth": 2},
        ),
    )
)
#: So many schedules, the best ones, show a first policy what may be done.
_SHOWN: Final = 3


@dataclass(frozen=True)
class Demonstrations(Collection):
    """Runs that follow schedules in turn, each seed with each of them."""

    schedules: tuple[Mapping[str, float], ...] = SCHEDULES

    def parameters_of(self, index: int) -> Mapping[str, float]:
        """Return the schedule of run `index`."""
        return self.schedules[index % len(self.schedules)]

    def request(self, index: int) -> TrainingRequest:
        """Return the request of run `index`."""
        seed = self.first.seed + index // len(self.schedules)
        return replace(self.first, seed=seed, policy_parameters=dict(self.parameters_of(index)))


@dataclass(frozen=True)
class Asked:
    """What the command line says."""

    generations: int
    runs: int
    seconds: float
    workers: int
    device: str
    stack: int
    epochs: int
    explore: float


def tell(**figures: object) -> None:
    """Print a line of JSON."""
    print(json.dumps(figures), flush=True)


def training_cells() -> tuple[Cell, ...]:
    """Return the cells of the plan that may be learned from."""
    return tuple(cell for cell in load_plan(PLAN).cells if cell.split == "training")


def request(asked: Asked, cell: Cell, policy: str, *, seed: int, parameters: Mapping[str, float]) -> TrainingRequest:
    """Return the first request of a collection on a cell."""
    return TrainingRequest(
        task=cell.task,
        host=cell.host,
        policy=policy,
        epochs=asked.epochs,
        seed=seed,
        device=asked.device,
        experiment="learning",
        policy_parameters=dict(parameters),
        digest_every_epochs=asked.epochs,
    )


def demonstrate(fabric: Fabric, asked: Asked) -> int:
    """Try every schedule on each cell, then have the best ones show; return how many runs these were."""
    scores: defaultdict[int, list[float]] = defaultdict(list)
    for cell in training_cells():
        tried = follow(fabric, asked, cell, SCHEDULES, seed=0)
        rows = by_schedule(fabric, tried["runs"])
        for index, row in enumerate(rows):
            scores[index].append(row["score"])
        tell(cell=cell.name, tried=tried["episodes"], seconds=round(tried["seconds"]), schedules=rows)
    best = sorted(scores, key=lambda index: -statistics.fmean(scores[index]))[:_SHOWN]
    tell(best=[{**SCHEDULES[index], "score": statistics.fmean(scores[index])} for index in best])
    shown = 0
    for cell in training_cells():
        showing = follow(fabric, asked, cell, tuple(SCHEDULES[index] for index in best), seed=_APART)
        shown += showing["episodes"]
        tell(cell=cell.name, shown=showing["episodes"], accuracy=showing["accuracy"], seconds=showing["seconds"])
    return shown


def follow(
    fabric: Fabric, asked: Asked, cell: Cell, schedules: tuple[Mapping[str, float], ...], *, seed: int
) -> dict[str, Any]:
    """Have `asked.runs` runs, over all cells, that follow schedules in turn."""
    first = request(asked, cell, "fixed", seed=seed, parameters={})
    each = max(1, asked.runs // (len(schedules) * len(training_cells())))
    runs = Demonstrations(first, runs=each * len(schedules), stack=asked.stack, schedules=schedules)
    return collect(fabric, runs, workers=asked.workers)


def by_schedule(fabric: Fabric, runs: list[str]) -> list[dict[str, Any]]:
    """Return what each schedule's runs came to; the score is the plan's, but for what its static host takes off."""
    found: dict[int, list[ly.TrainingRunFinished]] = defaultdict(list)
    place = {run_id: index % len(SCHEDULES) for index, run_id in enumerate(runs)}
    for message in ends(fabric):
        if message.run_id in place:
            found[place[message.run_id]].append(message)
    price = load_plan(PLAN).cost.multiply_adds
    rows = []
    for index, ended in sorted(found.items()):
        accuracy = statistics.fmean(each.accuracy for each in ended)
        spent = statistics.fmean(each.multiply_adds for each in ended)
        score = accuracy - price * math.log2(spent)
        rows.append({**SCHEDULES[index], "accuracy": accuracy, "score": score, "runs": len(ended)})
    return rows


def ends(fabric: Fabric) -> Iterator[ly.TrainingRunFinished]:
    """Yield the ends of all runs in the log."""
    places = [("runs", number) for number in range(fabric.topics["runs"].partitions)]
    with fabric.reader(dict.fromkeys(places, "begin")) as reader:
        for event in reader.read_to_end():
            if isinstance(event.message, ly.TrainingRunFinished):
                yield event.message


def generation(fabric: Fabric, asked: Asked, number: int, parent: str, shown: int) -> str:
    """Have a parent's runs, learn from them, judge what came of it; return whom the next generation comes from."""
    if parent:
        for cell in training_cells():
            first = request(
                asked,
                cell,
                f"learned@{parent}",
                seed=(number + 1) * _APART,
                parameters={"explore": asked.explore},
            )
            runs = max(asked.stack, asked.runs // len(training_cells()))
            drawn = collect(fabric, Collection(first, runs=runs, stack=asked.stack), workers=asked.workers)
            tell(
                generation=number,
                cell=cell.name,
                drawn=drawn["episodes"],
                accuracy=drawn["accuracy"],
                fossilized=drawn["seeds_fossilized"],
                seconds=round(drawn["seconds"]),
            )
    asked_for = PolicyTraining(parent=parent, seed=number, support_min=_SUPPORT, rewards={"compute": _COMPUTE})
    if not parent:  # Whoever is sure of every step leaves nothing to judge other steps by: one round, near to them.
        # A quarter of what was shown is left for judging.
        asked_for = replace(asked_for, policies=("fixed",), episodes_max=3 * shown // 4, rounds=1)
    trained = train_policy(fabric, asked_for)
    rounds = trained["rounds"]
    tell(
        generation=number,
        version=trained["version"],
        parent=parent,
        episodes=trained["episodes"],
        rounds=len(rounds),
        ended=trained["ended"],
        effective_episodes=trained["effective_episodes"],
        first=rounds[0] if rounds else None,
        last=rounds[-1] if rounds else None,
        mean_return=trained["scores"]["mean_return"],
        seconds=round(trained["seconds"]),
    )
    return judged(fabric, number, trained["version"], parent)


def judged(fabric: Fabric, number: int, version: str, parent: str) -> str:
    """Hold a version against the gates, promote it where it passes; return it, or its parent where it is worse."""
    began = SYSTEM_CLOCK.monotonic()
    tasks = tuple(dict.fromkeys(cell.task for cell in training_cells()))
    asked = Validation(version, ranges=since_decided(fabric), tasks=tasks, seed=_CANARY_SEEDS + number * _APART)
    verdict = validate_policy(fabric, asked)
    tell(
        generation=number,
        version=version,
        passed=verdict["passed"],
        reason=verdict["reason"],
        scores={name: round(value, 5) for name, value in verdict["scores"].items()},
        seconds=round(SYSTEM_CLOCK.monotonic() - began),
    )
    if verdict["passed"]:
        promote_policy(fabric, version, issued_by="benchmarks.evaluation.learn", reason=f"generation {number}")
        return version
    worse = verdict["scores"].get("canary_gain", 0.0) < _WORSE
    return parent if worse else version


def since_decided(fabric: Fabric) -> tuple[ly.OffsetRange, ...]:
    """Return what the log holds since the version that decides was trained: what a successor is judged on.

    Where no generation passes by what it drew alone, the next ones have more to judge by. Nothing while no version of
    this log decides.
    """
    deciding = [row["version"] for row in made_here(fabric) if row["status"] == "active"]
    if not deciding:
        return ()
    known = policy_show(fabric, deciding[0])["training_data"]
    return ranges_until_now(fabric, since={(one["topic"], one["partition"]): one["end_offset"] for one in known})


def made_here(fabric: Fabric) -> list[dict[str, Any]]:
    """Return the versions that this log made, the oldest first: without the one that comes with the package."""
    shipped = shipped_policy()
    names = set() if shipped is None else {shipped.tamiyo_policy_version}
    return [row for row in policy_list(fabric) if row["version"] not in names]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--runs", type=int, default=1024, help="of each generation, over all cells")
    parser.add_argument("--seconds", type=float, default=3000.0, help="no generation begins later")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stack", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--explore", type=float, default=0.03)
    asked = Asked(**vars(parser.parse_args()))
    began = SYSTEM_CLOCK.monotonic()
    settings = load_settings()
    try:
        with Fabric.open(settings, member="cli") as fabric, members_for_a_while(settings, wanted=KERNEL_MAKERS):
            versions = [row["version"] for row in made_here(fabric)]
            parent = versions[-1] if versions else ""
            shown = 0 if parent else demonstrate(fabric, asked)
            for number in range(len(versions), asked.generations):
                if SYSTEM_CLOCK.monotonic() - began > asked.seconds:
                    break
                parent = generation(fabric, asked, number, parent, shown)
            tell(episodes=sum(1 for _ in ends(fabric)), seconds=round(SYSTEM_CLOCK.monotonic() - began))
    except EsperError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
