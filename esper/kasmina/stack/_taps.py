"""How hosts hear their seeds: what is put in at each slot, in training, in evaluation, and in the passes of seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.core.stacking import StepClock, add_rows, take_rows
from esper.kasmina.stack._group import SeedGroup

# Legend: N members of the stack, G seeds of a group, M members that a pass is about.


class TrainingTap:
    """What the hosts hear in a training step; autograd sees hosts and seeds."""

    def __init__(self, groups: Sequence[SeedGroup], clock: StepClock) -> None:
        self._groups = groups
        self._clock = clock
        self._modules = frozenset(group.module for group in groups)

    @property
    def modules(self) -> frozenset[str]:
        return self._modules

    def at(self, module: str, source_NB: Tensor, output_NB: Tensor) -> Tensor:
        """Add what every group in this slot says to its members' rows."""
        own = output_NB
        for group in self._groups:
            if group.module == module:
                read = source_NB if group.reads_input else own
                output_NB = add_rows(output_NB, group.rows_G, group.heard(read, self._clock))
        return output_NB


@dataclass(frozen=True)
class _Hearing:
    """A group that some members of a pass hear: their rows in the pass, and their seeds' places in the group."""

    group: SeedGroup
    rows_M: Tensor
    places_M: Tensor


class QuietTap:
    """What some members (all: None) hear outside of training: every joint seed at its alpha, but for those muted.

    The seeds of `shadowed`, whose members the pass is then about, one by one, are heard in full, on detached
    activations; gradients flow to them alone.
    """

    def __init__(
        self,
        joint: Iterable[SeedGroup],
        members: Sequence[int],
        *,
        device: torch.device,
        muted: SeedGroup | None = None,
        shadowed: SeedGroup | None = None,
    ) -> None:
        self._shadowed = shadowed
        self._hearing = [found for group in joint if group is not muted and (found := _hearing(group, members, device))]
        modules = {each.group.module for each in self._hearing}
        self._modules = frozenset(modules | ({shadowed.module} if shadowed is not None else set()))

    @property
    def modules(self) -> frozenset[str]:
        return self._modules

    def at(self, module: str, source_MB: Tensor, output_MB: Tensor) -> Tensor:
        """Add what is heard at this slot."""
        own = output_MB
        for each in self._hearing:
            group = each.group
            if group.module == module:
                read = take_rows(source_MB if group.reads_input else own, each.rows_M)
                given = group.body_of(read, each.places_M)
                alpha_M = group.alpha_now_G.index_select(0, each.places_M)
                trusted_M = group.trusted_G.index_select(0, each.places_M)
                output_MB = add_rows(output_MB, each.rows_M, group.blended(given, alpha_M, trusted_M)[0])
        seed = self._shadowed
        if seed is not None and seed.module == module:
            read = source_MB if seed.reads_input else own
            return output_MB.detach() + seed.body(read.detach())
        return output_MB


def _hearing(group: SeedGroup, members: Sequence[int], device: torch.device) -> _Hearing | None:
    place_of = {member: place for place, member in enumerate(group.members)}
    found = [(row, place_of[member]) for row, member in enumerate(members) if member in place_of]
    if not found:
        return None
    rows, places = zip(*found, strict=True)
    return _Hearing(group, torch.tensor(rows, device=device), torch.tensor(places, device=device))


class SeamTap(QuietTap):
    """Watches how the seeds of a muted group would fit their slot: what the hosts give there, and the seeds."""

    def __init__(
        self, joint: Iterable[SeedGroup], members: Sequence[int], *, device: torch.device, muted: SeedGroup
    ) -> None:
        super().__init__(joint, members, device=device, muted=muted)
        self._watched = muted
        self._places_M = torch.tensor([muted.members.index(member) for member in members], device=device)
        #: Of the one call: the hosts' output, and the seeds'.
        self.seam: tuple[Tensor, Tensor] | None = None

    @property
    def modules(self) -> frozenset[str]:
        return self._modules | {self._watched.module}

    def at(self, module: str, source_MB: Tensor, output_MB: Tensor) -> Tensor:
        """Let the hosts go on as they are; keep what the seeds would have added."""
        heard = super().at(module, source_MB, output_MB)
        if module == self._watched.module:
            read = source_MB if self._watched.reads_input else output_MB
            self.seam = (output_MB, self._watched.body_of(read, self._places_M))
        return heard
