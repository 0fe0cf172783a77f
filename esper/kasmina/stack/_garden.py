"""The seeds of all members of a stack, in groups that are computed together; trains them and moves them about."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esper.core.flops import count_multiply_adds
from esper.core.stacking import AdamMoments, StackedHost, StepClock, cross_entropies, fetched
from esper.kasmina._config import KasminaConfig
from esper.kasmina.isolation._monitor import Leaks
from esper.kasmina.stack._group import GroupKey, SeedGroup, StackedKernel
from esper.kasmina.stack._seedling import Seedling
from esper.kasmina.stack._taps import QuietTap, TrainingTap

# Legend: N members of the stack, M of them that are meant, B samples of a batch, G seeds of a group.

#: Forward and backward of a trained module against its forward: the usual count (forward + 2x backward).
_TRAINING_FACTOR = 3
#: Costs are kept per kernel and slot; a stack that grafts ever new kernels must not fill the memory.
_COSTS_MAX = 1024


@dataclass
class _Watch:
    """What is noted at the one step of an epoch at which isolation is looked at, by isolated group."""

    #: The seeds before the hosts' step.
    seeds: list[Tensor] = field(default_factory=list)
    #: How many numbers of each seed that step wrote to, and how many of each host its seed's step, [G].
    writes: list[Tensor] = field(default_factory=list)
    leaks: list[Tensor] = field(default_factory=list)


class Garden:
    """Holds every group of a stack's seeds; makes no decision and knows no event."""

    def __init__(self, host: StackedHost, *, config: KasminaConfig) -> None:
        self.host = host
        self.config = config
        self.groups: list[SeedGroup] = []
        self.multiply_adds = [0] * len(host)
        self._costs: dict[Hashable, int] = {}
        self._kernels: dict[tuple[str, str], StackedKernel] = {}
        self._tap: TrainingTap | None = None
        self._shadows: list[tuple[SeedGroup, QuietTap]] = []
        self._structure = self._tapped = 0
        self._batches: Sequence[int] = ()
        self._clock = StepClock(host.device)
        self._watch = _Watch()
        self._one_sample: Tensor | None = None
        self._by_member: dict[int, list[Seedling]] = {}

    # -- steps ----------------------------------------------------------------------------------------------

    @property
    def joint(self) -> list[SeedGroup]:
        """Groups whose hosts hear them."""
        return [group for group in self.groups if group.key.joint]

    @property
    def isolated(self) -> list[SeedGroup]:
        """Groups that train in shadows."""
        return [group for group in self.groups if not group.key.joint]

    def begin_epoch(self, rates_SN: NDArray[np.float64], batches: Sequence[int], clock: StepClock) -> None:
        """Make every group ready for the steps of an epoch."""
        self._batches, self._clock = batches, clock
        for group in self.groups:
            group.begin_epoch(rates_SN, self.config)
        if self._structure != self._tapped:
            joint = self.joint
            self._tap = TrainingTap(joint, clock) if joint else None
            self._shadows = [(group, self.shadow_tap(group)) for group in self.isolated]
            self._tapped = self._structure

    @property
    def structure(self) -> int:
        """Changes with the groups: as long as it does not, every step is of the same operations on the same tensors."""
        return self._structure

    def tap(self) -> TrainingTap | None:
        """Return the tap of the step that begins."""
        if self._is_watched():
            self._watch = _Watch([group.parameters.flat_NP.clone() for group in self.isolated])
        return self._tap

    def quiet_tap(self) -> QuietTap | None:
        """Return the tap of all members for a forward outside of training."""
        joint = self.joint
        return QuietTap(joint, range(len(self.host)), device=self.host.device) if joint else None

    def shadow_tap(self, group: SeedGroup) -> QuietTap:
        """Return the tap of a pass over a group's members in which its seeds are heard in full."""
        return QuietTap(self.joint, group.members, device=self.host.device, shadowed=group)

    def leaves(self) -> list[Tensor]:
        """Return the parameters of the joint groups, group by group."""
        return [leaf for group in self.joint for leaf in group.parameters.leaves()]

    def after_step(self, x_NB: Tensor, y_NB: Tensor, gradients: Sequence[Tensor]) -> None:
        """Apply the gradients of the hosts' own backward to the joint seeds, and train the others in shadow."""
        watched = self._is_watched()
        if watched:
            pairs = zip(self._watch.seeds, self.isolated, strict=True)
            self._watch.writes = [_changes(before, group.parameters.flat_NP) for before, group in pairs]
        at = 0
        for group in self.joint:
            count = len(group.kernel.shapes)
            group.learn(gradients[at : at + count], self._clock)
            at += count
        for group, tap in self._shadows:
            before = self.host_print() if watched else None
            losses_G = self.shadow_losses(
                group, tap, x_NB.index_select(0, group.rows_G), y_NB.index_select(0, group.rows_G)
            )
            found = torch.autograd.grad(losses_G.sum(), group.parameters.leaves())
            group.learn(found, self._clock, losses_G.detach())
            if before is not None:
                self._watch.leaks.append(self._changed_since(before, group))

    def shadow_losses(self, group: SeedGroup, tap: QuietTap, x_GB: Tensor, y_GB: Tensor) -> Tensor:
        """Return the loss of every seed's host in which that seed is heard in full, [G]."""
        outputs = self.host.forward_apart(x_GB, group.rows_G, tap)
        return cross_entropies(outputs, y_GB)

    def end_epoch(self) -> None:
        """Close the figures of every group and count what its steps cost; waits for the device once."""
        samples, watch = sum(self._batches), self._watch
        figures = [figure for group in self.groups for figure in group.figures()]
        found = iter(fetched([*figures, *watch.writes, *watch.leaks]))
        for group in self.groups:
            heard_SG = group.steps_heard()
            for place, seed in enumerate(group.seeds):
                if group.key.joint:
                    trained = int(np.dot(heard_SG[:, place], self._batches))
                    self.multiply_adds[seed.member] += _TRAINING_FACTOR * seed.multiply_adds_per_sample * trained
                else:
                    self.multiply_adds[seed.member] += self.shadow_cost(group, seed.member) * samples
            group.end_epoch(next(found), next(found), next(found))
        left = list(found)
        writes, leaks = left[: len(watch.writes)], left[len(watch.writes) :]
        for group, writes_G, leaks_G in zip(self.isolated, writes, leaks, strict=True):
            for seed, written, leaked in zip(group.seeds, writes_G, leaks_G, strict=True):
                seed.leaks = Leaks(int(leaked), int(written))
        self._watch = _Watch()

    # -- isolation ------------------------------------------------------------------------------------------

    def _is_watched(self) -> bool:
        """Whether this step is the one of its epoch at which isolation is looked at: the last."""
        return self._clock.step == len(self._batches) - 1

    def host_print(self) -> tuple[Tensor, Tensor]:
        """Return copies of what a pass of seeds must leave as it is: the hosts' parameters, and random streams."""
        streams = [torch.default_generator.get_state()]
        if self.host.device.type == "cuda":
            streams.append(torch.cuda.get_rng_state(self.host.device))
        return self.host.parameters.flat_NP.clone(), torch.cat(streams)

    def changes_since(self, before: tuple[Tensor, Tensor], group: SeedGroup) -> list[int]:
        """Return, for each seed of a group, how many numbers of its host and random streams are other bits now."""
        return [int(count) for count in self._changed_since(before, group).tolist()]

    def _changed_since(self, before: tuple[Tensor, Tensor], group: SeedGroup) -> Tensor:
        now = self.host_print()
        drawn = int(not torch.equal(before[1], now[1]))
        return _changes(*(tensor.index_select(0, group.rows_G) for tensor in (before[0], now[0]))) + drawn

    # -- what passes cost -----------------------------------------------------------------------------------

    def heard_cost(self, member: int) -> int:
        """Return the multiply-adds of one sample's forward in a member's network as it is."""
        return self.host.multiply_adds_per_sample + sum(
            seed.multiply_adds_per_sample for seed in self.seeds_of(member) if seed.heard
        )

    def shadow_cost(self, group: SeedGroup, member: int) -> int:
        """Return the multiply-adds of one sample's shadow pass, forward and backward, of a seed of this group."""
        key = (group.key.slot, group.key.kernel_digest)
        if key not in self._costs:
            if len(self._costs) >= _COSTS_MAX:
                self._costs.clear()
            self._costs[key] = self._counted(group)
        others = sum(seed.multiply_adds_per_sample for seed in self.seeds_of(member) if seed.heard)
        return self._costs[key] + others

    def _counted(self, group: SeedGroup) -> int:
        """Run a group's shadow pass once more on made-up samples, hosts alone, and count."""
        inputs = self.sample(len(group.seeds))
        tap = QuietTap((), group.members, device=self.host.device, shadowed=group)

        def work() -> None:
            outputs = self.host.forward_apart(inputs, group.rows_G, tap)
            torch.autograd.grad(outputs.sum(), group.parameters.leaves())

        return self.count(work) // (len(group.seeds) * inputs.shape[1])

    def count(self, work: Callable[[], None]) -> int:
        """Return the multiply-adds of `work`."""
        with torch.enable_grad():
            return count_multiply_adds(work)

    def sample(self, members: int) -> Tensor:
        """Return two samples of zeros for so many members."""
        assert self._one_sample is not None, "the garden was shown a sample"
        return self._one_sample.expand(members, 2, *self._one_sample.shape).contiguous()

    def show(self, sample: Tensor) -> None:
        """Show what one sample of the hosts' input looks like."""
        self._one_sample = torch.zeros_like(sample)

    # -- moves ----------------------------------------------------------------------------------------------

    def seeds_of(self, member: int) -> list[Seedling]:
        """Return the seeds on a member's host."""
        return self._by_member.get(member, [])

    def compose(self, seeds: Sequence[Seedling], fresh: Mapping[int, StackedKernel]) -> None:
        """Make groups of exactly these seeds; each keeps its tensors, and one that is `fresh` (by id) gets its first.

        Groups and their rows come in one order whatever happened before, so that a stack can be computed again.
        """
        self._kernels.update(
            {(seed.spec.slot, fresh[id(seed)].digest): fresh[id(seed)] for seed in seeds if id(seed) in fresh}
        )
        wanted: dict[GroupKey, list[Seedling]] = {}
        for seed in sorted(seeds, key=lambda each: (each.member, each.seed_id)):
            wanted.setdefault(GroupKey(seed.spec.slot, seed.kernel_digest, seed.joint), []).append(seed)
        places = {id(seed): (group, place) for group in self.groups for place, seed in enumerate(group.seeds)}
        present = {group.key: group for group in self.groups}
        groups = []
        for key in sorted(wanted):
            old = present.get(key)
            if old is not None and [id(seed) for seed in old.seeds] == [id(seed) for seed in wanted[key]]:
                old.note_roles()
                groups.append(old)
            else:
                groups.append(self._gathered(key, wanted[key], places))
        if [id(group) for group in groups] != [id(group) for group in self.groups]:
            self._structure += 1
            self._tap, self._shadows = None, []
        self.groups, self._watch = groups, _Watch()
        self._by_member = {}
        for seed in seeds:
            self._by_member.setdefault(seed.member, []).append(seed)

    def _gathered(
        self, key: GroupKey, seeds: Sequence[Seedling], places: Mapping[int, tuple[SeedGroup, int]]
    ) -> SeedGroup:
        kernel = self._kernels[key.slot, key.kernel_digest]
        sources: dict[int, tuple[SeedGroup | None, list[int], list[int]]] = {}
        for position, seed in enumerate(seeds):
            group, place = places.get(id(seed), (None, 0))
            _, rows, positions = sources.setdefault(id(group), (group, [], []))
            rows.append(place)
            positions.append(position)
        order = [position for _, _, positions in sources.values() for position in positions]
        back = torch.tensor(np.argsort(order), device=self.host.device)
        parts = [self._rows_of(group, rows, kernel) for group, rows, _ in sources.values()]
        flat, first, second = (torch.cat(column).index_select(0, back) for column in zip(*parts, strict=True))
        return SeedGroup(key, kernel, seeds, flat, AdamMoments(first, second))

    def _rows_of(self, group: SeedGroup | None, rows: Sequence[int], kernel: StackedKernel) -> tuple[Tensor, ...]:
        if group is None:
            values = kernel.values_P.expand(len(rows), -1)
            return values, torch.zeros_like(values), torch.zeros_like(values)
        chosen = torch.tensor(rows, device=self.host.device)
        held = (group.parameters.flat_NP, group.moments.first_NP, group.moments.second_NP)
        return tuple(tensor.detach().index_select(0, chosen) for tensor in held)


def _changes(before_GP: Tensor, after_GP: Tensor) -> Tensor:
    """Return how many numbers of each row are other bits than before, [G]."""
    return (before_GP.view(torch.int32) != after_GP.view(torch.int32)).sum(dim=1)
