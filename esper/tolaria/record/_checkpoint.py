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


class LoopState(Protocol):
    """State of a loop beside its model and optimiser, as JSON can hold it."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""


@dataclass(frozen=True)
class RunState:
    """What a trainer consists of, as far as it changes from epoch to epoch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    device: torch.device
    controller: GraftController
    #: Draws the order of the samples; None where that is the loop's own business.
    order: torch.Generator | None = None
    #: What else a loop keeps of itself: its loss scale.
    loop: LoopState | None = None

    @classmethod
    def of(cls, setup: TrainingSetup, controller: GraftController, order: torch.Generator) -> RunState:
        """Return the state of a run that this trainer trains."""
        return cls(setup.model, setup.optimizer, setup.config.device, controller, order)

    def weights(self) -> dict[str, Tensor]:
        """Return what the state digest covers: the host's state, and the seeds' that it does not hold itself."""
        host, seeds = module_state(self.model), self.controller.state()
        assert host.keys().isdisjoint(seeds), "a seed's tensors carry names of their own"
        return {**host, **seeds}


@dataclass(frozen=True)
class Position:
    """Where a checkpoint was taken: at the end of `epoch`, after so many seed events of the run."""

    epoch: int
    seed_events: int
    #: Returns to a checkpoint that faults had forced by then.
    faults: int = 0


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
    seeds, optimizer = state.controller.checkpoint(), state.optimizer
    tensors = {
        **named(_WEIGHTS, state.weights()),
        **named(_TRANSIENT, transient_buffers(state.model)),
        **named(_CONTROLLER, seeds.tensors),
        _CPU_STREAM: torch.get_rng_state(),
    }
    if optimizer is not None:
        tensors |= named(_OPTIMIZER, optimizer_state(optimizer, _names(state.model)))
    if state.order is not None:
        tensors[_ORDER] = state.order.get_state()
    if state.device.type == "cuda":
        tensors[_CUDA_STREAM] = torch.cuda.get_rng_state(state.device)
    facts = {
        "epoch": position.epoch,
        "seed_events": position.seed_events,
        "optimizer": type(optimizer).__name__,
        "groups": [] if optimizer is None else _groups(optimizer),
        "controller": dict(seeds.facts),
    }
    if state.loop is not None:
        facts["loop"] = state.loop.state_dict()
    if position.faults:
        facts["faults"] = position.faults
    return write_checkpoint(Saved(facts, tensors))


def position_in(facts: Mapping[str, Any]) -> Position:
    """Return where a checkpoint with these facts was taken."""
    return Position(int(facts["epoch"]), int(facts["seed_events"]), int(facts.get("faults", 0)))


def restore_run(content: bytes, state: RunState, *, again: bool = False) -> Position:
    """Put a fresh run into the state of a checkpoint and return where that was.

    With `again` it is the run that took it, on whatever seeds it now has: its controller has prepared the return.

    After an error the run is in no state to be trained; make a fresh one.

    Raises:
        IntegrityError: it is no checkpoint, or one of another network.
        KernelUnavailable: no store holds the kernel of one of its seeds.
    """
    saved = read_checkpoint(content)
    try:
        return _restore(saved, state, again=again)
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


def _restore(saved: Saved, state: RunState, *, again: bool) -> Position:
    optimizer, facts = state.optimizer, saved.facts
    if facts["optimizer"] != type(optimizer).__name__:
        raise refused(f"it is of {facts['optimizer']}, the run's optimiser is {type(optimizer).__name__}")
    # First the seeds: those that joined the host are parts of it, and of its optimiser when they are fossils.
    plant = state.controller.rewind if again else state.controller.restore
    plant(Saved(facts["controller"], saved.under(_CONTROLLER)))
    copy_into(state.weights(), saved.under(_WEIGHTS), what="weights")
    copy_into(transient_buffers(state.model), saved.under(_TRANSIENT), what="buffers")
    if optimizer is not None:
        restore_optimizer(optimizer, _names(state.model), saved.under(_OPTIMIZER))
        _restore_groups(optimizer, facts["groups"])
    if state.loop is not None:
        state.loop.load_state_dict(facts["loop"])
    if state.order is not None:
        state.order.set_state(saved.tensors[_ORDER])
    torch.set_rng_state(saved.tensors[_CPU_STREAM])
    if state.device.type == "cuda":
        torch.cuda.set_rng_state(saved.tensors[_CUDA_STREAM], state.device)
    return position_in(facts)


def _names(model: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the options of each parameter group."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def _restore_groups(optimizer: torch.optim.Optimizer, kept: list[Mapping[str, Any]]) -> None:
    for group, options in zip(optimizer.param_groups, kept, strict=True):
        for key in group.keys() - options.keys() - {"params"}:
            del group[key]  # What was set since.
        # JSON knows no tuples, and Adam's betas are one.
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})
