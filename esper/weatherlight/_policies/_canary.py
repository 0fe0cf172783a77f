"""Pairs of fresh runs, one decided by the candidate, one by the incumbent: same task, host, seed and data order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from esper.core.errors import OperationFailed
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.weatherlight._collect import collect
from esper.weatherlight._collecting import Collection
from esper.weatherlight._training import TrainingRequest

if TYPE_CHECKING:
    from esper.simic.promotion import Canary


def canary_runs(
    fabric: Fabric, policies: tuple[str, str], *, tasks: Sequence[str], pairs: int, epochs: int, seed: int
) -> Canary:
    """Train `pairs` pairs of runs on each task; return the accuracies that the log says they ended with.

    Args:
        fabric: Whose log.
        policies: Names of the candidate's and of the incumbent's policy.
        tasks: Whose `mlp` hosts are trained.
        pairs: On each task.
        epochs: Of each run.
        seed: Of the first pair.

    Raises:
        OperationFailed: a run failed, so that its pair says nothing.
    """
    from esper.simic.promotion import Canary

    found: tuple[list[float], list[float]] = ([], [])
    for task in tasks:
        for accuracies, policy in zip(found, policies, strict=True):
            first = TrainingRequest(
                task=task,
                host="mlp",
                policy=policy,
                epochs=epochs,
                seed=seed,
                experiment="canary",
                digest_every_epochs=epochs,
            )
            places = [("runs", number) for number in range(fabric.topics["runs"].partitions)]
            begins = {place: high for place, (_, high) in fabric.cluster.watermarks(places).items()}
            document = collect(fabric, Collection(first, runs=pairs, stack=pairs))
            accuracies += _ended(fabric, begins, document["runs"])
    return Canary(*found)


def _ended(fabric: Fabric, begins: dict[tuple[str, int], int], runs: Sequence[str]) -> list[float]:
    """Return the final accuracies in the order of the runs, which is that of their seeds, from the log alone."""
    accuracies: dict[str, float] = {}
    with fabric.reader(dict(begins)) as reader:
        for event in reader.read_to_end():
            if isinstance(event.message, ly.TrainingRunFinished):
                accuracies.setdefault(event.message.run_id, event.message.accuracy)
    missing = [run_id for run_id in runs if run_id not in accuracies]
    if missing:
        raise OperationFailed(
            f"{len(missing)} of {len(runs)} paired runs did not finish",
            cause=f"the log has no end of {missing[0]}",
            next_step=f"`esper runs show {missing[0]}` says what became of it; then validate again",
        )
    return [accuracies[run_id] for run_id in runs]
