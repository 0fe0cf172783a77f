"""Trains the runs that an evaluation's arms ask for: in stacks where the host can be stacked, by workers otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Final, Self

from esper.core.errors import IntegrityError, OperationFailed, UsageError
from esper.core.settings import load_settings
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.weatherlight._collect import KERNEL_MAKERS, collect
from esper.weatherlight._collecting import Collection, stack_requests
from esper.weatherlight._fleet import fleet_members, train_fleet
from esper.weatherlight._fork_runs import ForkRequest
from esper.weatherlight._supervisor import Supervisor
from esper.weatherlight._training import Requested, TrainingRequest, members_for_a_while

if TYPE_CHECKING:
    from esper.simic.trials import Plan, TrialRun, Wanted
    from esper.weatherlight._trial_log import EvaluationLog

#: Weights are hashed so often, and at the end; losses are compared at every epoch when a run is computed again.
_DIGEST_EVERY: Final = 10
#: Seeds that take part in the forward at a run's end: what its final shape consists of.
_HEARD: Final = frozenset(
    {ly.SEED_STAGE_BLENDING, ly.SEED_STAGE_SHADOWING, ly.SEED_STAGE_PROBATIONARY, ly.SEED_STAGE_FOSSILIZED}
)

#: Told what is trained next, in words.
Tell = Callable[[str], None]
#: Told how many runs and epochs of a batch are over: (done, total).
Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class ListedStacks(Collection):
    """A collection whose runs are listed one by one, cut into stacks of runs that can be computed together."""

    requests: tuple[TrainingRequest, ...] = ()
    cuts: tuple[range, ...] = ()

    def request(self, index: int) -> TrainingRequest:
        """Return the request of run `index`, from 0."""
        return self.requests[index]

    def stacks(self) -> list[range]:
        """Return the runs of each stack."""
        return list(self.cuts)

    @classmethod
    def of(cls, requests: Iterable[TrainingRequest], *, stack: int) -> ListedStacks:
        """Return requests in stacks of at most `stack` that are alike in all that a stack has once."""
        ordered = sorted(requests, key=lambda each: (_group(each), each.seed, each.experiment))
        cuts, begin = [], 0
        for at in range(1, len(ordered) + 1):
            full = at - begin == stack
            if at == len(ordered) or full or _group(ordered[at]) != _group(ordered[begin]):
                cuts.append(range(begin, at))
                begin = at
        return cls(ordered[0], runs=len(ordered), stack=stack, requests=tuple(ordered), cuts=tuple(cuts))


def _group(request: TrainingRequest) -> tuple[object, ...]:
    return (request.task, request.host, request.epochs, request.device, request.built_in)


@dataclass
class TrialTrainer:
    """Has the members that training takes, started when they are first needed; to be used as a context."""

    fabric: Fabric
    plan: Plan
    stack: int = 64
    workers: int = 1
    tell: Tell = lambda _words: None
    advance: Advance = lambda _done, _total: None
    _members: ExitStack = field(default_factory=ExitStack)
    _makers: bool = False
    _supervisor: Supervisor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._members.close()

    def train(self, wanted: Sequence[Wanted], log: EvaluationLog) -> None:
        """Train runs and return when all are over; what became of each stands in the log.

        Raises:
            UsageError: a run cannot be asked for.
            OperationFailed, NotReadyError: they could not be trained to their ends.
        """
        asked = [(each, self._request(each, log)) for each in wanted]
        stacked = [one for each, one in asked if isinstance(one, TrainingRequest) and not _must_fork(self.plan, each)]
        stacked = [one for one in stacked if stackable(one)]
        chosen = {id(one) for one in stacked}
        alone = [one for _, one in asked if id(one) not in chosen]
        if stacked:
            self._in_stacks(stacked)
        if alone:
            self._by_workers(alone)

    def _in_stacks(self, requests: Sequence[TrainingRequest]) -> None:
        listed = ListedStacks.of(requests, stack=self.stack)
        self.tell(f"{listed.runs} runs in {len(listed.cuts)} stacks")
        if not self._makers:
            self._members.enter_context(members_for_a_while(self.fabric.settings, wanted=KERNEL_MAKERS))
            self._makers = True
        total, done = sum(request.epochs for request in requests), 0

        def progress(episodes: int) -> None:
            nonlocal done
            done += episodes
            self.advance(done, total)

        stop = threading.Event()
        workers = min(self.workers, len(listed.cuts))
        collect(self.fabric, listed, workers=workers, stop=stop, progress=progress)

    def _by_workers(self, requests: Sequence[Requested]) -> None:
        self.tell(f"{len(requests)} runs by {self.workers} workers")
        if self._supervisor is None:
            members = fleet_members(self.fabric.settings, workers=self.workers)
            self._supervisor = self._members.enter_context(members)
        train_fleet(
            self.fabric,
            requests,
            self._supervisor,
            progress=lambda counts: self.advance(counts["finished"] + counts["failed"], len(requests)),
        )

    def _request(self, wanted: Wanted, log: EvaluationLog) -> Requested:
        label = wanted.place.label(self.plan.digest)
        if wanted.fork_of:
            assert wanted.learning_rate is not None, "a fork goes on with a rate"
            origin = log.run(wanted.fork_of).request
            return ForkRequest(origin, wanted.fork_epochs, learning_rate=wanted.learning_rate, experiment=label)
        rate = {} if wanted.learning_rate is None else {"learning_rate": wanted.learning_rate}
        return TrainingRequest(
            task=wanted.place.task,
            host=wanted.host,
            policy=wanted.policy,
            epochs=wanted.epochs,
            seed=wanted.place.seed,
            device=self.plan.device,
            experiment=label,
            hyperparameters=rate,
            policy_parameters=dict(wanted.policy_parameters),
            digest_every_epochs=_DIGEST_EVERY,
            built_in=tuple(final_shape(self.fabric, log.run(wanted.shape_of))) if wanted.shape_of else (),
        )


def _must_fork(plan: Plan, wanted: Wanted) -> bool:
    """Return whether a run may be forked later, which no member of a stack can be."""
    from esper.simic.trials import POPULATION

    return wanted.place.arm == POPULATION and plan.arms.pbt is not None


def final_shape(fabric: Fabric, run: TrialRun) -> Iterator[tuple[str, bytes]]:
    """Yield slot and canonical spec of every seed that a finished run ended with.

    Raises:
        OperationFailed: the log names no kernel for one of them, or no store holds it.
    """
    from esper.core.kernel import BlobMissing, DirectoryBlobStore, get_artifact

    store = DirectoryBlobStore(fabric.home.blobs)
    for seed in run.end.seeds:
        if seed.stage not in _HEARD:
            continue
        try:
            yield seed.slot, get_artifact(store, run.kernels[seed.seed_id]).spec
        except (KeyError, BlobMissing, IntegrityError) as error:
            raise OperationFailed(
                f"the final shape of run {run.run_id} cannot be had",
                cause=f"the kernel of seed {seed.seed_id}: {error}",
                next_step="Evaluate in the home whose runs these are",
            ) from error


def stackable(request: TrainingRequest) -> bool:
    """Return whether a run's host can be computed in a stack."""
    return _stackable(request.task, request.host, request.built_in, request.device)


@cache
def _stackable(task: str, host: str, built_in: tuple[tuple[str, bytes], ...], device: str) -> bool:
    from esper.tolaria.stack import prepared_stack

    lone = TrainingRequest(task=task, host=host, policy="noop", epochs=1, device=device, built_in=built_in)
    collection = Collection(lone, runs=1, stack=1)
    try:
        with prepared_stack(stack_requests(collection, range(1), load_settings())):
            return True
    except UsageError:
        return False
