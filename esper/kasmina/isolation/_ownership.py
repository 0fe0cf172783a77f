"""Who owns which tensor, and whether it was changed by anyone else.

A change is seen by the version that torch keeps of each tensor and raises at every write in place (the one by which
autograd finds saved tensors that were written over), so that a check reads numbers on the host and waits for no
device. Writes through `.data` and from outside torch raise no version; against these gate G1 compares contents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

import torch
from torch import Tensor

from esper.core.errors import IntegrityError


class OwnerKind(Enum):
    """What kinds of owners there are."""

    HOST = "host"
    SEED = "seed"
    #: A frozen network that a loss looks at: nobody may change it.
    TEACHER = "teacher"


@dataclass(frozen=True)
class Owner:
    """One owner; only seeds need a name."""

    kind: OwnerKind
    name: str = ""

    def __str__(self) -> str:
        """Return "seed 1.1", "host", "teacher"."""
        return f"{self.kind.value} {self.name}".strip()


HOST: Final = Owner(OwnerKind.HOST)
TEACHER: Final = Owner(OwnerKind.TEACHER)


def seed_owner(seed_id: str) -> Owner:
    """Return the owner of a seed's tensors."""
    return Owner(OwnerKind.SEED, seed_id)


class OwnershipRegistry:
    """Holds every tensor's owner, and the versions that the owner last left them at."""

    def __init__(self) -> None:
        self._tensors: dict[Owner, dict[str, Tensor]] = {}
        self._owners: dict[int, Owner] = {}
        self._versions: dict[Owner, list[int]] = {}

    def register(self, owner: Owner, tensors: Mapping[str, Tensor]) -> None:
        """Give `owner` these tensors, as they are now, beside those that it has.

        Raises:
            IntegrityError: one of them has another owner, or its name is taken by another tensor.
        """
        held = self._tensors.setdefault(owner, {})
        for name, tensor in tensors.items():
            if tensor.is_inference():  # It keeps no version, and no optimiser can update it.
                continue
            known = self._owners.get(id(tensor), owner)
            if known != owner or held.get(name, tensor) is not tensor:
                raise IntegrityError(
                    f"tensor {name!r} cannot be given to {owner}",
                    cause=f"it belongs to {known}" if known != owner else "another tensor of it has that name",
                    next_step="a kernel must share no parameter with the host or with another seed",
                )
            held[name] = tensor
            self._owners[id(tensor)] = owner
        self.accept(owner)

    def release(self, owner: Owner) -> None:
        """Forget the owner and its tensors; one that is not known is no error."""
        for tensor in self._tensors.pop(owner, {}).values():
            del self._owners[id(tensor)]
        self._versions.pop(owner, None)

    def drop(self, owner: Owner, tensors: Iterable[Tensor]) -> None:
        """Take these very tensors from their owner; the others are accepted as they are now."""
        gone = {id(tensor) for tensor in tensors}
        held = self._tensors.get(owner, {})
        for name in [name for name, tensor in held.items() if id(tensor) in gone]:
            del self._owners[id(held.pop(name))]
        self.accept(owner)

    def transfer(self, before: Owner, after: Owner) -> None:
        """Make everything of one owner another's: a fossilised seed is a part of the host."""
        tensors = self._tensors.get(before, {})
        self.release(before)
        self.register(after, {f"{before}:{name}": tensor for name, tensor in tensors.items()})

    def owner_of(self, tensor: Tensor) -> Owner | None:
        """Return who owns this very tensor; None where nobody was named."""
        return self._owners.get(id(tensor))

    def tensors_of(self, owner: Owner) -> Mapping[str, Tensor]:
        """Return the owner's tensors by name."""
        return self._tensors.get(owner, {})

    def versions(self, owner: Owner) -> list[int]:
        """Return the versions of the owner's tensors as they are now, in the order of `tensors_of`."""
        return _versions(self.tensors_of(owner).values())

    def accept(self, owner: Owner) -> None:
        """Take the owner's tensors as they are now for rightly so: what changed them was its own update."""
        self._versions[owner] = _versions(self._tensors.get(owner, {}).values())

    def changed(self, owner: Owner) -> list[str]:
        """Return the names of the owner's tensors that were written to since they were last accepted."""
        held = self._tensors.get(owner)
        if not held:
            return []
        now, before = _versions(held.values()), self._versions[owner]
        if now == before:
            return []
        return [name for name, new, old in zip(held, now, before, strict=True) if new != old]

    def foreign(self, owner: Owner, optimizer: torch.optim.Optimizer) -> list[str]:
        """Return "OWNER's NAME" of each parameter of `optimizer` that belongs to somebody other than `owner`."""
        strangers = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                found = self._owners.get(id(parameter), owner)
                if found != owner:
                    strangers.append(f"{found}'s {_name_in(self._tensors[found], parameter)}")
        return strangers


def _name_in(tensors: Mapping[str, Tensor], wanted: Tensor) -> str:
    return next(name for name, tensor in tensors.items() if tensor is wanted)


def version_of(tensor: Tensor) -> int:
    """Return how often torch wrote to the tensor in place."""
    return tensor._version  # noqa: SLF001 - torch gives its counter no public name


def _versions(tensors: Iterable[Tensor]) -> list[int]:
    return [tensor._version for tensor in tensors]  # noqa: SLF001 - torch gives its counter no public name
