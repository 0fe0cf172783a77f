"""What is left of a seed that was taken off a stack's host: the sensor of gate G5.

A seed of a stack is an object, a row of its group's tensors, and names in its member's state. Its row is gone when the
tensors that held it are freed, which is watched by weak references to their storages.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from esper.kasmina.bed._remains import Memory
from esper.kasmina.gates._reset import ResetEvidence
from esper.kasmina.stack._group import SeedGroup
from esper.kasmina.stack._seedling import Seedling


@dataclass(frozen=True)
class StackRemains:
    """Weak references to all of one seed; they keep none of it alive."""

    member: int
    seed_id: str
    seed: weakref.ref[Seedling]
    memory: tuple[Memory, ...]
    #: Seeds that shared the memory.
    sharers: int

    @classmethod
    def of(cls, seed: Seedling, group: SeedGroup) -> StackRemains:
        """Return the references to a seed that is still in its group."""
        held = (group.parameters.flat_NP, group.moments.first_NP, group.moments.second_NP)
        return cls(
            seed.member, seed.seed_id, weakref.ref(seed), tuple(Memory(tensor) for tensor in held), len(group.seeds)
        )

    def evidence(self, groups: Sequence[SeedGroup], names: Sequence[str]) -> ResetEvidence:
        """Return what is left now; `names` are those of the member's seed tensors, their seed's id or name in them."""
        if self.seed() is not None or not all(each.freed for each in self.memory):
            gc.collect()
        listed = sum(
            seed.member == self.member and seed.seed_id == self.seed_id for group in groups for seed in group.seeds
        )
        surplus = sum(len(group.parameters) != len(group.seeds) for group in groups)
        moments = sum(len(group.moments.first_NP) != len(group.seeds) for group in groups)
        return ResetEvidence(
            objects_alive=int(self.seed() is not None),
            bytes_alive=sum(each.size // self.sharers for each in self.memory if not each.freed),
            hooks_left=listed,
            submodules_left=len(names),
            optimizer_entries=moments,
            owned_tensors=surplus,
        )
