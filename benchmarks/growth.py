"""Does growing pay? Paired seeds: static, grown, static with the grown run's multiply-adds, and the final size at once.

python -m benchmarks.growth [--task mnist1d] [--seeds 1,2,3,4,5] [--epochs 40] [--json]

Same seed means same initial weights and same data order. The equal-compute arm is static and trains
longer, until its whole training has spent at least as many multiply-adds as the grown run, shadow and
gate passes included. The final-size arm trains an MLP of one hidden layer with the grown network's
number of parameters from scratch, for as many epochs; no claim is made against it, its figures are
published. Accuracy is on the test part, looked at once at each run's end. Intervals are paired
bootstrap intervals of the mean difference (Efron, 1979), 10,000 resamples, fixed seed.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

import numpy as np

from benchmarks._report import at_least_above, report
from benchmarks._system import whole_system
from benchmarks._wide import wide_host
from esper.weatherlight import TrainingRequest, train

_BOUND_POINTS = 5.0
_RESAMPLES = 10_000


def interval(differences: list[float]) -> tuple[float, float]:
    """Return the 95 % paired bootstrap interval of the mean of `differences`."""
    values = np.asarray(differences)
    picks = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def epochs_for(multiply_adds: int, static: dict[str, Any]) -> int:
    """Return the static epochs that spend at least `multiply_adds`."""
    return math.ceil(multiply_adds / (static["multiply_adds"] / static["epochs"]))


def arms(fabric: Any, supervisor: Any, *, task: str, seed: int, epochs: int) -> dict[str, dict[str, Any]]:  # noqa: ANN401 - wired by the caller
    """Return the documents of the four arms for one seed."""

    def run(policy: str, epochs: int) -> dict[str, Any]:
        return train(fabric, TrainingRequest(task=task, policy=policy, epochs=epochs, seed=seed), supervisor)

    static, grown = run("noop", epochs), run("heuristic", epochs)
    wide = TrainingRequest(
        task=f"benchmarks._wide:{task}",
        host=wide_host(task, grown["parameters"]),
        policy="noop",
        epochs=epochs,
        seed=seed,
    )
    return {
        "static": static,
        "grown": grown,
        "equal": run("noop", epochs_for(grown["multiply_adds"], static)),
        "final_size": train(fabric, wide, supervisor),
    }


def summary(name: str, pairs: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return the paired difference of grown and one arm, in points of accuracy."""
    differences = [100 * (pair["grown"]["accuracy"] - pair[name]["accuracy"]) for pair in pairs]
    low, high = interval(differences)
    return {"arm": name, "mean": float(np.mean(differences)), "low": low, "high": high, "each": differences}


def main() -> int:
    """Run all arms for all seeds through the log and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", default="mnist1d")
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    with whole_system() as (fabric, supervisor):
        pairs = [arms(fabric, supervisor, task=arguments.task, seed=s, epochs=arguments.epochs) for s in seeds]
    mean = {arm: 100 * float(np.mean([pair[arm]["accuracy"] for pair in pairs])) for arm in pairs[0]}
    claims = [
        at_least_above(
            f"{arguments.task}_grown_above_{arm}", mean["grown"], "points", peer=mean[arm], bound=_BOUND_POINTS
        )
        for arm in ("static", "equal")
    ]
    details = {
        "differences": [summary(arm, pairs) for arm in ("static", "equal", "final_size")],
        "fossilized": [sum(seed["stage"] == "FOSSILIZED" for seed in pair["grown"]["seeds"]) for pair in pairs],
        "runs": [
            {"seed": seed} | {arm: _row(pair[arm]) for arm in pair} for seed, pair in zip(seeds, pairs, strict=True)
        ],
    }
    if not arguments.json:
        for difference in details["differences"]:
            line = "grown - {arm}: {mean:+.2f} points [{low:+.2f}, {high:+.2f}]"
            print(line.format(**difference))
    return report(f"growth_{arguments.task}", claims, details, as_json=arguments.json)


def _row(document: dict[str, Any]) -> dict[str, Any]:
    kept = ("accuracy", "loss", "epochs", "parameters", "multiply_adds", "digest")
    return {name: document[name] for name in kept} | {"seeds": [seed["stage"] for seed in document["seeds"]]}


if __name__ == "__main__":
    sys.exit(main())
