"""A loop that ends at an edge and goes on from its checkpoint in what could be another process."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from esper.core.checkpoint import optimizer_state, read_checkpoint, restore_optimizer, write_checkpoint
from esper.kasmina import KasminaConfig
from esper.kasmina.testing import InMemoryRuntime
from tests.kasmina.support import Loop


def reborn(loop: Loop, factory: Callable[[], nn.Module], *, config: KasminaConfig, runtime: InMemoryRuntime) -> Loop:
    """Return a new loop that stands where `loop` stands, between its end_epoch and its decision; through bytes."""
    names = {parameter: name for name, parameter in loop.model.named_parameters()}
    moments = optimizer_state(loop.optimizer, names)
    weights = {name: tensor.clone() for name, tensor in loop.model.state_dict().items()}
    isolated = {name: tensor.clone() for name, tensor in loop.manager.state().items()}
    content = write_checkpoint(loop.manager.checkpoint())
    again = Loop(factory(), [slot.slot for slot in loop.manager.slot_states()], config=config, runtime=runtime)
    again.manager.restore(read_checkpoint(content))
    again.model.load_state_dict(weights)
    _fill(again.manager.state(), isolated)
    restore_optimizer(again.optimizer, {each: name for name, each in again.model.named_parameters()}, moments)
    again.log, again.outcomes = loop.log, loop.outcomes
    again.steps, again.epoch, again.losses = loop.steps, loop.epoch, loop.losses
    assert write_checkpoint(again.manager.checkpoint()) == content, "what is restored is kept alike"
    return again


def _fill(targets: dict[str, Tensor], kept: dict[str, Tensor]) -> None:
    assert targets.keys() == kept.keys()
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(kept[name])
