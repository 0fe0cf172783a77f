"""Everything that one attempt at a run starts from, made the same way live and in re-execution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from esper.core.errors import EsperError, UsageError
from esper.core.numerics import deterministic
from esper.core.ports import GraftController
from esper.core.rng import derive_seed
from esper.leyline import messages as ly
from esper.tolaria._config import TrainingLoopConfig
from esper.tolaria.tasks._built_in import with_built_in
from esper.tolaria.tasks._evaluation import multiply_adds_per_sample
from esper.tolaria.tasks._registry import load_task, with_host
from esper.tolaria.tasks._tasks import Host, Loss, SlotSpec, Split, Task


@dataclass(frozen=True)
class TrainingSetup:
    """What a trainer and the controller beside it work on; model, data and optimiser lie on `config.device`."""

    request: ly.TrainingRunRequested
    attempt: int
    config: TrainingLoopConfig
    task: Task
    model: nn.Module
    slots: tuple[SlotSpec, ...]
    optimizer: torch.optim.Optimizer
    train: Split
    #: Held-out part that gates measure on; the test part is kept from everyone until the end.
    probe: Split
    #: Of the host alone, before anything is grafted.
    multiply_adds_per_sample: int

    @property
    def loss(self) -> Loss:
        """What is minimised: (outputs, targets) -> mean over the batch."""
        return self.task.loss

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return self.config.steps_per_epoch(len(self.train))


#: Makes the controller of one attempt; weatherlight passes one that builds Kasmina.
ControllerFactory: TypeAlias = Callable[[TrainingSetup], GraftController]


@contextmanager
def prepared(
    request: ly.TrainingRunRequested,
    *,
    attempt: int = 1,
    decision_wait_seconds: float = 10.0,
    kernel_wait_seconds: float = 10.0,
) -> Iterator[TrainingSetup]:
    """Yield the set-up of `request`; inside the block torch is deterministic and seeded for this run.

    Raises:
        UsageError: the request cannot be trained: unknown task, host, slot, hyperparameter or device, or a
            host that cannot be made or does not take the task's samples.
    """
    task = with_host(load_task(request.task), request.host)
    config = TrainingLoopConfig.of(
        request, task, decision_wait_seconds=decision_wait_seconds, kernel_wait_seconds=kernel_wait_seconds
    )
    with deterministic(seed=request.seed, threads=config.threads):
        host = requested_host(task, request)
        model = host.module.to(config.device)
        train = task.train.to(config.device)
        yield TrainingSetup(
            request=request,
            attempt=attempt,
            config=config,
            task=task,
            model=model,
            slots=chosen_slots(host, request.slots),
            optimizer=_optimizer(model, config),
            train=train,
            probe=task.validation.to(config.device),
            multiply_adds_per_sample=_cost(model, train, host=request.host, task=task),
        )


def chosen_slots(host: Host, wanted: Sequence[str]) -> tuple[SlotSpec, ...]:
    """Return the host's own slots, or those that `wanted` names by module.

    A wanted module that the host made a slot of keeps that slot's placement; any other becomes a branch.

    Raises:
        UsageError: the host has no such module.
    """
    if not wanted:
        return host.slots
    own = {spec.module: spec for spec in host.slots}
    return Host(host.module, tuple(own.get(name, SlotSpec(name)) for name in wanted)).slots


def check_slots(task_name: str, host_name: str, wanted: Sequence[str]) -> None:
    """Raise when the host has no module for a wanted slot; makes the task and the host to see.

    Raises:
        UsageError: it has none; the message names those that there are.
    """
    with torch.random.fork_rng(devices=[]):
        chosen_slots(fresh_host(with_host(load_task(task_name), host_name), host_name, seed=0), wanted)


def requested_host(task: Task, request: ly.TrainingRunRequested) -> Host:
    """Return the host that a request asks for, kernels built in where it names any; as `fresh_host`.

    Raises:
        UsageError: also where a kernel cannot be built in.
    """
    host = fresh_host(task, request.host, seed=request.seed)
    if not request.built_in:
        return host
    return with_built_in(host, request.built_in, chosen_slots(host, request.slots), seed=request.seed)


def fresh_host(task: Task, name: str, *, seed: int) -> Host:
    """Return the host of a run with this seed, as its factory makes it; sets torch's global random stream.

    Raises:
        UsageError: the task has no such host, or its factory fails.
    """
    torch.manual_seed(derive_seed(seed, "host"))
    try:
        host = task.host(name)
    except EsperError:
        raise
    except Exception as error:  # a user's host factory may raise anything
        raise UsageError(
            f"the host {name!r} of {task.name!r} cannot be made",
            cause=f"its factory failed with {type(error).__name__}: {error}",
            next_step="Correct the factory",
        ) from error
    if not isinstance(host, Host):
        raise UsageError(
            f"the host {name!r} of {task.name!r} cannot be made",
            cause=f"its factory returned a {type(host).__name__}",
            next_step="Return an esper.tolaria.Host",
        )
    return host


def _cost(model: nn.Module, train: Split, *, host: str, task: Task) -> int:
    """Return the multiply-adds of one sample's forward, which is also the proof that the host takes one."""
    try:
        return multiply_adds_per_sample(model, train.inputs[:2])
    except Exception as error:  # a user's forward may raise anything
        raise UsageError(
            f"the host {host!r} does not take the samples of {task.name!r}",
            cause=f"{type(error).__name__}: {error}",
            next_step=f"Make it accept a batch of shape (B, {', '.join(map(str, train.inputs.shape[1:]))})",
        ) from error


def _optimizer(model: nn.Module, config: TrainingLoopConfig) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise UsageError("the host has nothing to train", next_step="Leave at least one parameter with requires_grad")
    # Fused Adam halves the cost of a small step on CPU; on CUDA its state must lie on the device,
    # which parameters that are moved in from another optimiser do not promise.
    return torch.optim.Adam(parameters, lr=config.learning_rate, fused=config.device.type == "cpu")
