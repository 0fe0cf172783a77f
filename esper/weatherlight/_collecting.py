"""What `esper collect` trains: runs of one task and host that differ by their seeds, a stack at a time."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from esper.core.clock import SYSTEM_CLOCK
from esper.core.errors import UsageError
from esper.core.settings import Settings
from esper.core.stacks import member_run_id, new_stack_id
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.weatherlight._training import TrainingRequest

if TYPE_CHECKING:
    from esper.core.ports import BlueprintRuntime

Told = Callable[[str, int], None]


@dataclass(frozen=True)
class Collection:
    """Which episodes are collected: run i has the seed `first.seed + i` and what `parameters_of` says.

    `first` is the request of the first; a subclass at a module's top level may give each run its own parameters.
    """

    first: TrainingRequest
    runs: int
    stack: int

    def __post_init__(self) -> None:
        for name, value in (("runs", self.runs), ("stack", self.stack)):
            if value < 1:
                raise UsageError(f"{name} = {value} cannot be used", next_step="give at least 1")

    def parameters_of(self, index: int) -> Mapping[str, float]:
        """Return the policy's parameters for run `index`, from 0."""
        return self.first.policy_parameters

    def request(self, index: int) -> TrainingRequest:
        """Return the request of run `index`, from 0."""
        return replace(self.first, seed=self.first.seed + index, policy_parameters=dict(self.parameters_of(index)))

    def stacks(self) -> list[range]:
        """Return the runs of each stack; the last may be smaller."""
        return [range(at, min(at + self.stack, self.runs)) for at in range(0, self.runs, self.stack)]


@dataclass
class Collected:
    """What collecting came to; `digests` are those of the networks at the ends of the runs, by their place."""

    runs: dict[int, str] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    accuracies: dict[int, float] = field(default_factory=dict)
    seeds: int = 0
    fossilized: int = 0
    failed: int = 0
    stacks: list[dict[str, Any]] = field(default_factory=list)

    def __add__(self, other: Collected) -> Collected:
        """Return both together."""
        return Collected(
            {**self.runs, **other.runs},
            {**self.digests, **other.digests},
            {**self.accuracies, **other.accuracies},
            self.seeds + other.seeds,
            self.fossilized + other.fossilized,
            self.failed + other.failed,
            [*self.stacks, *other.stacks],
        )

    def document(self, collection: Collection, *, seconds: float) -> dict[str, Any]:
        """Return the JSON shape of `esper collect`."""
        first, done = collection.first, len(self.digests)
        return {
            "task": first.task,
            "host": first.host,
            "policy": first.policy,
            "seed": first.seed,
            "epochs": first.epochs,
            "episodes": done,
            "failed": self.failed,
            "seconds": seconds,
            "episodes_per_second": done / seconds if seconds > 0 else 0.0,
            "accuracy": sum(self.accuracies.values()) / done if done else None,
            "seeds_grafted": self.seeds,
            "seeds_fossilized": self.fossilized,
            "digest": combined_digest([self.digests[index] for index in sorted(self.digests)]),
            "stacks": sorted(self.stacks, key=lambda stack: stack["first"]),
            "runs": [self.runs[index] for index in sorted(self.runs)],
        }


def combined_digest(digests: Sequence[str]) -> str:
    """Return the SHA-256 over state digests, one a line: what two collections are compared by."""
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


def collect_stack(
    fabric: Fabric,
    collection: Collection,
    runs: range,
    *,
    worker: str,
    runtime: BlueprintRuntime,
    stop: threading.Event,
    told: Told | None = None,
) -> Collected:
    """Ask for a stack of runs and train it in this process; return what came of them.

    `worker` is the name of a living member of the home: when it is gone, any worker ends these runs as failed.

    Raises:
        UsageError: the runs cannot be trained as a stack.
        RunInterrupted: `stop` was set; the runs are ended as cancelled.
        BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
    """
    from esper.tamiyo import StackDecider
    from esper.tolaria.stack import StackWiring, train_stack
    from esper.weatherlight._stack_grafting import stacked_controller

    began = SYSTEM_CLOCK.monotonic()
    requests = stack_requests(collection, runs, fabric.settings)
    stack_id = requests[0].stack.stack_id
    with (
        fabric.publisher("cli") as asker,
        fabric.publisher("tolaria") as publisher,
        fabric.publisher("kasmina") as seed_publisher,
        StackDecider(fabric, requests) as decider,
    ):

        def ask() -> None:
            for request in requests:
                asker.submit(request, key=request.run_id)
            asker.flush()

        wiring = StackWiring(
            fabric, worker, publisher, seed_publisher, lambda setup: stacked_controller(setup, runtime)
        )
        results = train_stack(
            wiring,
            requests,
            decider,
            ask=ask,
            stop=stop,
            on_epoch=None if told is None else lambda epoch: told(stack_id, epoch),
        )
    found = Collected(runs={index: request.run_id for index, request in zip(runs, requests, strict=True)})
    for index, result in zip(runs, results, strict=True):
        if result is None:
            found.failed += 1
            continue
        found.digests[index], found.accuracies[index] = result.digest, result.test.accuracy
        found.seeds += len(result.seeds)
        found.fossilized += sum(seed.stage == ly.SEED_STAGE_FOSSILIZED for seed in result.seeds)
    seconds = SYSTEM_CLOCK.monotonic() - began
    found.stacks.append({"stack_id": stack_id, "first": runs.start, "runs": len(runs), "seconds": seconds})
    return found


def stack_requests(collection: Collection, runs: range, settings: Settings) -> list[ly.TrainingRunRequested]:
    """Return the events that ask for a fresh stack."""
    stack_id = new_stack_id()
    requests = []
    for place, index in enumerate(runs):
        request = collection.request(index).message(member_run_id(stack_id, place), settings)
        request.stack.CopyFrom(ly.StackPlace(stack_id=stack_id, index=place, size=len(runs)))
        requests.append(request)
    return requests
