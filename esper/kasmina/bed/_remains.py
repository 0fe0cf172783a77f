"""What is left of a seed that was taken off its host: the sensor of gate G5.

Objects are watched by weak references, memory by weak references to torch's storages: a storage may outlive every
tensor that Python knows, in an autograd graph for one.
"""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from esper.kasmina.gates._reset import ResetEvidence
from esper.kasmina.grafting._graft import Graft
from esper.kasmina.grafting._seed import GraftedSeed
from esper.kasmina.grafting._sockets import hook_ids
from esper.kasmina.isolation._ownership import OwnershipRegistry, seed_owner


class Memory:
    """One tensor's storage, watched without being kept."""

    def __init__(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.size: int = storage.nbytes()
        self._storage = StorageWeakRef(storage)  # type: ignore[no-untyped-call]  # unannotated in torch

    @property
    def freed(self) -> bool:
        """Whether nobody holds the storage any more."""
        return bool(self._storage.expired())  # type: ignore[no-untyped-call]  # unannotated in torch

    @property
    def address(self) -> int:
        """What tells storages apart; it is not used again while this object lives."""
        return int(self._storage.cdata)


def _state_tensors(optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    if optimizer is None:
        return []
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


@dataclass(frozen=True)
class Remains:
    """Weak references to all of one seed. Made before the seed goes; it keeps none of it alive.

    `elsewhere` makes those of a seed that was culled in another life of the run: it never was in this process.
    """

    seed_id: str
    #: Of the host; `hook_id` is None where the seed never was in this process.
    slot_module: nn.Module
    anchor: nn.Module
    name: str
    hook_id: int | None = None
    objects: list[weakref.ref[object]] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)

    @classmethod
    def of(cls, seed_id: str, graft: Graft, optimizer: torch.optim.Optimizer | None) -> Remains:
        """Return the references to a seed that is still on its host, and to its own optimiser."""
        seed: GraftedSeed = graft.seed
        tensors = [*seed.parameters(), *seed.buffers(), *_state_tensors(optimizer)]
        things: list[object] = [seed, seed.body, *seed.parameters()]
        if optimizer is not None:
            things.append(optimizer)
        return cls(
            seed_id,
            graft.slot_module,
            graft.anchor,
            graft.name,
            graft.hook_id,
            [weakref.ref(thing) for thing in things],
            [Memory(tensor) for tensor in tensors],
        )

    @classmethod
    def elsewhere(cls, seed_id: str, slot_module: nn.Module, anchor: nn.Module, name: str) -> Remains:
        """Return what can be looked for of a seed that this process never had."""
        return cls(seed_id, slot_module, anchor, name)

    def evidence(self, registry: OwnershipRegistry, host: torch.optim.Optimizer | None) -> ResetEvidence:
        """Return what is left now; what only reference cycles keep is collected first."""
        if self._alive():
            gc.collect()
        return ResetEvidence(
            objects_alive=sum(thing() is not None for thing in self.objects),
            bytes_alive=sum(each.size for each in self.memory if not each.freed),
            hooks_left=int(self.hook_id in hook_ids(self.slot_module)),
            submodules_left=int(self.name in dict(self.anchor.named_children())),
            optimizer_entries=self._entries(host),
            owned_tensors=len(registry.tensors_of(seed_owner(self.seed_id))),
        )

    def _alive(self) -> bool:
        return any(thing() is not None for thing in self.objects) or any(not each.freed for each in self.memory)

    def _entries(self, host: torch.optim.Optimizer | None) -> int:
        """Return how many of the host optimiser's parameters lie in memory of the seed."""
        if host is None:
            return 0
        mine = {each.address for each in self.memory}
        return sum(Memory(parameter).address in mine for group in host.param_groups for parameter in group["params"])
