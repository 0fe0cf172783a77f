"""A run's whole state at the end of an epoch, as one file; what is trained on from it comes out bit for bit the same.

It is taken when the epoch's state packet is made, before the epoch's command is looked at: the weights are those that
the packet's digest names, and the command's effect follows again from the recorded outcome. The file holds the host's
parameters and buffers and the seeds' by name, the optimiser's moments, the random streams, the order generator, and
what Kasmina keeps. Nothing in it depends on the run's id or on a clock, so equal states give equal files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from esper.core.checkpoint import (
    Saved,
    copy_into,
    named,
    optimizer_state,
    read_checkpoint,
    refused,
    restore_optimizer,
    transient_buffers,
    write_checkpoint,
)
from esper.core.digest import module_state, state_digest
from esper.core.ids import Digest
from esper.core.ports import GraftController
from esper.tolaria._setup import TrainingSetup

_WEIGHTS: Final = "weights/"
_TRANSIENT: Final = "transient/"
_OPTIMIZER: Final = "optimizer/"
_CONTROLLER: Final = "controller/"
_ORDER: Final = "rng/order"
_CPU_STREAM: Final = "rng/cpu"
_CUDA_STREAM: Final = "rng/cuda"


@dataclass(frozen=True)
class RunState:
    """What a trainer consists of, as far as it changes from epoch to epoch."""

    setup: TrainingSetup
    controller: GraftController
    order: torch.Generator

    def weights(self) -> dict[str, Tensor]:
        """Return what the state digest covers: the host's state, and the seeds' that it does not hold itself."""
        host, seeds = module_state(self.setup.model), self.controller.state()
        assert host.keys().isdisjoint(seeds), "a seed's tensors carry names of their own"
        return {**host, **seeds}


@dataclass(frozen=True)
class Position:
    """Where a checkpoint was taken: at the end of `epoch`, after so many seed events of the run."""

    epoch: int
    seed_events: int


@dataclass(frozen=True)
class Checkpoint:
    """The file of one epoch, and the state digest of the weights in it."""

    epoch: int
    content: bytes
    weights_digest: str


class CheckpointKeeper(Protocol):
    """Says at the end of which epochs a checkpoint is taken, and is given it once the epoch's outcome is appended."""

    def wants(self, epoch: int) -> bool:
        """Return whether the state at the end of `epoch` is to be kept."""

    def keep(self, checkpoint: Checkpoint) -> None:
        """Keep it; may raise RunFenced, RunInterrupted, BrokerUnavailable or IntegrityError."""


def capture_run(state: RunState, position: Position) -> bytes:
    """Return the checkpoint of a run as it stands now.

    Raises:
        UsageError: the network or its optimiser keeps something that is no plain tensor.
    """
    setup = state.setup
    seeds = state.controller.checkpoint()
    tensors = {
        **named(_WEIGHTS, state.weights()),
        **named(_TRANSIENT, transient_buffers(setup.model)),
        **named(_OPTIMIZER, optimizer_state(setup.optimizer, _names(setup.model))),
        **named(_CONTROLLER, seeds.tensors),
        _ORDER: state.order.get_state(),
        _CPU_STREAM: torch.get_rng_state(),
    }
    if setup.config.device.type == "cuda":
        tensors[_CUDA_STREAM] = torch.cuda.get_rng_state(setup.config.device)
    facts = {
        "epoch": position.epoch,
        "seed_events": position.seed_events,
        "optimizer": type(setup.optimizer).__name__,
        "groups": _groups(setup.optimizer),
        "controller": dict(seeds.facts),
    }
    return write_checkpoint(Saved(facts, tensors))


def restore_run(content: bytes, state: RunState) -> Position:
    """Put a fresh run into the state of a checkpoint and return where that was.

    After an error the run is in no state to be trained; make a fresh one.

    Raises:
        IntegrityError: it is no checkpoint, or one of another network.
        KernelUnavailable: no store holds the kernel of one of its seeds.
    """
    saved = read_checkpoint(content)
    try:
        return _restore(saved, state)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise refused(f"its facts are not as this version writes them: {type(error).__name__}: {error}") from error


def weights_in(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint that the state digest covers, by the names that it takes them by.

    Raises:
        IntegrityError: it is no checkpoint.
    """
    return read_checkpoint(content).under(_WEIGHTS)


def digest_in(content: bytes) -> Digest:
    """Return the state digest of a checkpoint's weights; raise IntegrityError where it is none."""
    return state_digest(weights_in(content))


def _restore(saved: Saved, state: RunState) -> Position:
    setup, facts = state.setup, saved.facts
    if facts["optimizer"] != type(setup.optimizer).__name__:
        raise refused(f"it is of {facts['optimizer']}, the run's optimiser is {type(setup.optimizer).__name__}")
    # First the seeds: those that joined the host are parts of it, and of its optimiser when they are fossils.
    state.controller.restore(Saved(facts["controller"], saved.under(_CONTROLLER)))
    copy_into(state.weights(), saved.under(_WEIGHTS), what="weights")
    copy_into(transient_buffers(setup.model), saved.under(_TRANSIENT), what="buffers")
    restore_optimizer(setup.optimizer, _names(setup.model), saved.under(_OPTIMIZER))
    _restore_groups(setup.optimizer, facts["groups"])
    state.order.set_state(saved.tensors[_ORDER])
    torch.set_rng_state(saved.tensors[_CPU_STREAM])
    if setup.config.device.type == "cuda":
        torch.cuda.set_rng_state(saved.tensors[_CUDA_STREAM], setup.config.device)
    return Position(int(facts["epoch"]), int(facts["seed_events"]))


def _names(model: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the options of each parameter group."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def _restore_groups(optimizer: torch.optim.Optimizer, kept: list[Mapping[str, Any]]) -> None:
    for group, options in zip(optimizer.param_groups, kept, strict=True):
        # JSON knows no tuples, and Adam's betas are one.
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})
