"""Collecting episodes: stacks of hosts against the same runs one at a time, through the log, with grafts.

python -m benchmarks.stacked [--runs 64] [--stack 64] [--alone 3] [--rounds 2] [--workers 1] [--json]
python -m benchmarks.stacked --device cuda --mock --runs 16384 --stack 1024 --workers 16 --alone 0 --rounds 1 --json
python -m benchmarks.stacked --device cuda --mock --profile 256

An episode is one run of 40 epochs on MNIST-1D's mlp: requested, claimed, decided, grafted, reported and finished in the
log. Every run follows a schedule of its own that is drawn from its seed: when a seed germinates, when it is grafted,
how long it blends, which blueprint, and whether it is culled. Rounds are interleaved: some runs one at a time, by a
worker beside Tamiyo, then a collection of others; the claim compares the rates of one round's two arms, the worst round
counts. On a GPU one small stack is also trained with its steps replayed as CUDA graphs and with its steps one by one:
both must give the same digests. With --mock librdkafka's mock cluster is the broker, and one run at a time is a stack
of one in this process. At the end a member of each collection's first stack is verified where the broker keeps the
whole log. --profile says where the time of one stack of so many goes in this process, and nothing else.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from benchmarks._mock import believe_its_clock, mock_only
from benchmarks._replays import compared
from benchmarks._report import Claim, at_least, report
from benchmarks._system import broker_only
from esper.core.clock import SYSTEM_CLOCK
from esper.oona import Fabric
from esper.weatherlight import (
    SUBSYSTEMS,
    BlueprintPipeline,
    Collection,
    Supervisor,
    TrainingRequest,
    collect,
    members_for_a_while,
    train,
    verify_run,
)

_RATIO_BOUND: Final = 5.0
_GPU_BOUND: Final = 100.0
_BLUEPRINTS: Final = (9, 21)

believe_its_clock()  # In processes that a collection on the mock cluster starts.


def schedule(seed: int, epochs: int) -> dict[str, float]:
    """Return the parameters of policy `fixed` for one run: random-like, and the same for the same seed."""
    chooser = Random(seed)  # noqa: S311 - a seeded choice
    germinate = chooser.randint(1, max(1, epochs // 3))
    graft = germinate + chooser.randint(2, 5)
    blend = chooser.randint(1, 3)
    drawn = {"germinate": germinate, "graft": graft, "blend": blend, "blueprint": chooser.choice(_BLUEPRINTS)}
    if chooser.random() < 0.2:
        drawn["cull"] = graft + blend + 1
    return {name: float(value) for name, value in drawn.items()}


@dataclass(frozen=True)
class Scheduled(Collection):
    """A collection in which every run has its own schedule."""

    def parameters_of(self, index: int) -> Mapping[str, float]:
        """Return the schedule of run `index`."""
        return schedule(self.first.seed + index, self.first.epochs)


@contextmanager
def system(*, mock: bool, alone: bool) -> Iterator[tuple[Fabric, Supervisor | None]]:
    """Yield a fabric with kernel makers, and on a real broker the supervisor of what runs one at a time need."""
    if not mock and alone:
        with broker_only() as fabric, members_for_a_while(fabric.settings, wanted=tuple(SUBSYSTEMS)) as supervisor:
            yield fabric, supervisor
        return
    with mock_only() if mock else broker_only() as fabric, BlueprintPipeline(fabric):
        yield fabric, None


def alone(fabric: Fabric, supervisor: Supervisor | None, first: TrainingRequest, runs: int) -> dict[str, Any]:
    """Train runs one after the other; return how many there were a second, and their seeds."""
    began, seeds = SYSTEM_CLOCK.monotonic(), 0
    for index in range(runs):
        one = Scheduled(first, runs=runs, stack=1)
        if supervisor is None:
            only = Scheduled(one.request(index), runs=1, stack=1)
            seeds += collect(fabric, only)["seeds_grafted"]
        else:
            seeds += len(train(fabric, one.request(index), supervisor)["seeds"])
    seconds = SYSTEM_CLOCK.monotonic() - began
    rate = runs / seconds if runs else 0.0
    return {"episodes": runs, "seconds": seconds, "episodes_per_second": rate, "seeds_grafted": seeds}


def main() -> int:
    """Run both arms in turns and report."""
    arguments = _arguments()
    os.environ["ESPER_REPLAY_STACKS"] = "1"  # Also in the processes of a collection; on a CPU nothing is recorded.
    rounds: list[dict[str, Any]] = []
    replays: dict[str, Any] | None = None
    with system(mock=arguments.mock, alone=bool(arguments.alone)) as (fabric, supervisor):
        if arguments.profile:
            return _profile(fabric, arguments)
        if arguments.device != "cpu" and arguments.compare:
            replays = compared(fabric, Scheduled(_first(arguments, 7), runs=arguments.compare, stack=arguments.compare))
            print(json.dumps(replays), file=sys.stderr, flush=True)
        warm = TrainingRequest(task="mnist1d", epochs=12, policy="fixed", seed=1, device=arguments.device)
        alone(fabric, supervisor, warm, min(2, arguments.alone))
        collect(fabric, Scheduled(warm, runs=4, stack=4))
        for number in range(arguments.rounds):
            seed = 1_000 + 100_000 * number
            first = _first(arguments, seed)
            single = alone(fabric, supervisor, first, arguments.alone)
            stacked = collect(
                fabric,
                Scheduled(first, runs=arguments.runs, stack=arguments.stack),
                workers=arguments.workers,
                progress=_told(arguments.runs * arguments.epochs),
            )
            checked = None if arguments.mock or not arguments.alone else verify_run(fabric, stacked["runs"][0]).equal
            rounds.append({"alone": single, "stacked": _row(stacked), "verified": checked})
    details = {**_details(arguments, rounds), "replays": replays}
    claims = [*_claims(arguments, rounds), *_replay_claims(replays)]
    return report(f"stacked_{arguments.device}", claims, details, as_json=arguments.json)


def _first(arguments: argparse.Namespace, seed: int) -> TrainingRequest:
    return TrainingRequest(
        task="mnist1d",
        policy="fixed",
        epochs=arguments.epochs,
        seed=seed,
        device=arguments.device,
        digest_every_epochs=arguments.digest_every,
    )


def _told(total: int) -> Callable[[int], None]:
    """Return what says on stderr, every ten seconds, how many epochs of all runs are over."""
    began = SYSTEM_CLOCK.monotonic()
    done, due = 0, began

    def progress(epochs: int) -> None:
        nonlocal done, due
        done, now = done + epochs, SYSTEM_CLOCK.monotonic()
        if now >= due:
            due = now + 10.0
            print(f"{now - began:.0f} s: {done} of {total} epochs of runs", file=sys.stderr, flush=True)

    return progress


def _profile(fabric: Fabric, arguments: argparse.Namespace) -> int:
    """Show where the time of a stack goes; the profiler makes Python's share larger than it is."""
    members = arguments.profile
    collect(fabric, Scheduled(_first(arguments, 1), runs=8, stack=8))
    profile = cProfile.Profile()
    document = profile.runcall(collect, fabric, Scheduled(_first(arguments, 500), runs=members, stack=members))
    print(f"{document['episodes_per_second']:.2f} episodes/s in {document['seconds']:.1f} s, profiled")
    for order in ("cumulative", "tottime"):
        pstats.Stats(profile).sort_stats(order).print_stats(70)
    return 0


def _replay_claims(replays: dict[str, Any] | None) -> list[Claim]:
    if replays is None:
        return []
    taken, peer = (replays[name]["seconds"] for name in ("replayed", "eager"))
    same = float(replays["equal"] and replays["repeats"])
    return [
        at_least("stacked_replays_same_bits", same, "share", peer=1.0, bound=1.0),
        at_least("stacked_replays", 1.0 / taken, "stacks/s", peer=1.0 / peer, bound=1.5),
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=64)
    parser.add_argument("--stack", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--alone", type=int, default=3, help="runs one at a time; 0 leaves the ratio out")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--digest-every", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compare", type=int, default=64, help="members of the stack that is also taken step by step")
    parser.add_argument("--profile", type=int, default=0, help="profile one stack of so many members, and end")
    parser.add_argument("--mock", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _claims(arguments: argparse.Namespace, rounds: list[dict[str, Any]]) -> list[Claim]:
    rate = min(one["stacked"]["episodes_per_second"] for one in rounds)
    grafted = sum(one["stacked"]["seeds_grafted"] for one in rounds)
    episodes = sum(one["stacked"]["episodes"] for one in rounds)
    claims = [at_least("stacked_seeds_a_run", grafted / episodes, "seeds", peer=1.0, bound=0.9)]
    if arguments.alone:
        worst = min(rounds, key=lambda one: one["stacked"]["episodes_per_second"] / one["alone"]["episodes_per_second"])
        beside, peer = worst["stacked"]["episodes_per_second"], worst["alone"]["episodes_per_second"]
        claims.append(at_least("stacked_episodes", beside, "episodes/s", peer=peer, bound=_RATIO_BOUND))
    if arguments.device != "cpu":
        claims.append(at_least("stacked_episodes_on_one_gpu", rate, "episodes/s", peer=1.0, bound=_GPU_BOUND))
    return claims


def _details(arguments: argparse.Namespace, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    device = torch.cuda.get_device_name() if arguments.device != "cpu" else "cpu"
    return {"arguments": vars(arguments), "device": device, "torch": torch.__version__, "rounds": rounds}


def _row(document: dict[str, Any]) -> dict[str, Any]:
    kept = ("episodes", "failed", "seconds", "episodes_per_second", "accuracy", "seeds_grafted", "seeds_fossilized")
    return {name: document[name] for name in (*kept, "digest", "stacks")}


if __name__ == "__main__":
    sys.exit(main())
