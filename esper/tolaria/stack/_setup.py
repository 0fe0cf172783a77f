"""From the requests of a stack to what its trainer works on: one program, one copy of the data, and N hosts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import torch

from esper.core.errors import UsageError
from esper.core.rng import derive_seed
from esper.core.stacking import StackedHost, StackedParameters, program_of
from esper.core.stacks import is_stacked
from esper.leyline import messages as ly
from esper.tolaria._environment import Environment
from esper.tolaria._setup import TrainingSetup, prepared, requested_host
from esper.tolaria.tasks._tasks import cross_entropy

#: What all requests of a stack say alike; besides these they may differ.
_ALIKE: Final = (
    "task",
    "host",
    "epochs",
    "device",
    "slots",
    "built_in",
    "re_executable",
    "digest_every_epochs",
    "kernel_wait_seconds",
)
#: Hyperparameters that each member may set for itself.
_OWN: Final = frozenset({"learning_rate"})
#: Those that only change how a lone run is computed, or are measured for it alone.
_UNSUPPORTED: Final = ("bfloat16", "clip_norm", "epoch_budget_seconds", "gradient_accumulation")


@dataclass(frozen=True)
class StackSetup:
    """What a stack's trainer works on: everything on `device`, a row a member."""

    members: tuple[TrainingSetup, ...]
    host: StackedHost
    #: Data orders, one stream a member, as a lone run with its seed would draw them.
    orders: tuple[torch.Generator, ...]

    @property
    def first(self) -> TrainingSetup:
        """The first member's set-up: what all have alike is read from it."""
        return self.members[0]

    @property
    def device(self) -> torch.device:
        """Where the stack is trained."""
        return self.first.config.device

    def environment(self) -> Environment:
        """Return what the computation depends on here; to be called inside the `prepared_stack` block."""
        here = Environment.here(self.first)
        here.numerics.stack_size = len(self.members)
        return here


@contextmanager
def prepared_stack(
    requests: Sequence[ly.TrainingRunRequested], *, kernel_wait_seconds: float = 10.0
) -> Iterator[StackSetup]:
    """Yield the set-up of a stack; inside the block torch is deterministic.

    Every member's host begins with the very bits of a lone run of its seed, and reads its data in that run's order.

    Raises:
        UsageError: the requests cannot be trained, or not as one stack; the message names what differs.
    """
    check_alike(requests)
    with prepared(requests[0], kernel_wait_seconds=kernel_wait_seconds) as first:
        if first.task.loss is not cross_entropy:
            raise _unstackable(requests[0], "its task has a loss of its own, which no stack can tell apart by member")
        members = tuple(_member(first, request) for request in requests)
        yield StackSetup(members, _stacked(first, requests), tuple(map(_order, requests)))


def check_alike(requests: Sequence[ly.TrainingRunRequested]) -> None:
    """Raise where requests cannot be trained as one stack.

    Raises:
        UsageError: they differ in what a stack has once, or ask for what a stack cannot do.
    """
    first = requests[0]
    for index, request in enumerate(requests):
        if not is_stacked(request) or request.stack.index != index or request.stack.size != len(requests):
            raise _unstackable(request, "its request does not say its place in this stack")
        for name in _ALIKE:
            if getattr(request, name) != getattr(first, name):
                raise _unstackable(request, f"its {name} is not that of {first.run_id}")
        for name in sorted(set(request.hyperparameters) | set(first.hyperparameters)):
            if name in _UNSUPPORTED:
                raise _unstackable(request, f"a stack has no {name}")
            if name not in _OWN and request.hyperparameters.get(name) != first.hyperparameters.get(name):
                raise _unstackable(request, f"its {name} is not that of {first.run_id}")
        if request.forked_from:
            raise _unstackable(request, "it is a fork")
        if request.learning_rates:
            raise _unstackable(request, "a stack has one learning rate a member, from its beginning on")


def _unstackable(request: ly.TrainingRunRequested, cause: str) -> UsageError:
    return UsageError(f"run {request.run_id} cannot be trained in a stack", cause=cause, next_step="Train it by itself")


def _member(first: TrainingSetup, request: ly.TrainingRunRequested) -> TrainingSetup:
    rate = request.hyperparameters.get("learning_rate", first.task.learning_rate)
    return replace(first, request=request, config=replace(first.config, seed=request.seed, learning_rate=rate))


def _order(request: ly.TrainingRunRequested) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(request.seed, "order"))


def _stacked(first: TrainingSetup, requests: Sequence[ly.TrainingRunRequested]) -> StackedHost:
    what = f"the host {first.request.host!r} of {first.task.name!r}"
    template = first.model
    named = dict(template.named_parameters(remove_duplicate=False))
    if len(named) != len(list(template.parameters())) or not all(each.requires_grad for each in named.values()):
        raise UsageError(
            f"{what} cannot be stacked",
            cause="it has parameters that are shared or frozen",
            next_step="Train such runs one at a time",
        )
    if len({each.dtype for each in named.values()}) > 1:
        raise UsageError(
            f"{what} cannot be stacked",
            cause="its parameters have several dtypes",
            next_step="Train such runs one at a time",
        )
    program = program_of(template, what=what)
    missing = [slot.module for slot in first.slots if slot.module not in program.modules()]
    if missing:
        raise UsageError(
            f"{what} cannot be stacked with a slot at {missing[0]!r}",
            cause="it lies in a module whose forward is its own code",
            next_step="Name other slots, or train such runs one at a time",
        )
    states = [_state(first, request) for request in requests]
    return StackedHost(
        template, program, StackedParameters.of(states, first.config.device), first.multiply_adds_per_sample
    )


def _state(first: TrainingSetup, request: ly.TrainingRunRequested) -> dict[str, torch.Tensor]:
    host = requested_host(first.task, request)
    return {name: each.detach() for name, each in host.module.named_parameters()}
