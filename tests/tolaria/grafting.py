"""Real seed managers for attempts in one process, and what such a run leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from esper.core.ports import BlueprintRuntime
from esper.kasmina import KasminaSeedManager, discover_slots
from esper.tolaria import Checkpoint, MemoryJournal, TrainingResult, TrainingSetup


def seed_manager(
    setup: TrainingSetup, runtime: BlueprintRuntime, *, slots: Sequence[str] | None = None, **options: Any
) -> KasminaSeedManager:
    """Return what grafts during an attempt, as a worker makes it, in the task's slots or those named.

    `options` are further ones of the manager.
    """
    names = [slot.module for slot in setup.slots] if slots is None else slots
    return KasminaSeedManager(
        setup.model,
        discover_slots(setup.model, setup.train.inputs[:2], names),
        runtime=runtime,
        run_id=setup.request.run_id,
        attempt=setup.attempt,
        seed=setup.request.seed,
        loss_fn=setup.loss,
        probe=[(setup.probe.inputs, setup.probe.targets)],
        optimizer=setup.optimizer,
        **options,
    )


@dataclass
class Kept:
    """Keeps the checkpoint of every epoch in memory, each once."""

    checkpoints: dict[int, Checkpoint] = field(default_factory=dict)

    def wants(self, epoch: int) -> bool:
        return True

    def keep(self, checkpoint: Checkpoint) -> None:
        assert checkpoint.epoch not in self.checkpoints
        self.checkpoints[checkpoint.epoch] = checkpoint


@dataclass(frozen=True)
class Lived:
    """A run that came to its end, with all that it said and kept."""

    result: TrainingResult
    journal: MemoryJournal
    checkpoints: dict[int, Checkpoint]
