"""One member's seeds, as its state packet and its state digest show them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from esper.kasmina._config import KasminaConfig
from esper.kasmina.grafting._graft import anchor_of, submodule_name
from esper.kasmina.grafting._seed import Role
from esper.kasmina.grafting._slots import SlotSpec
from esper.kasmina.lifecycle._lifecycle import ATTACHED_STAGES, KasminaLifecycle
from esper.kasmina.stack._garden import Garden
from esper.kasmina.stack._seedling import Seedling, seed_state
from esper.leyline import messages as ly


class StackMember:
    """Implements `esper.core.stacking.MemberGrafts`; `lifecycle` is the fold of the member's seed events."""

    def __init__(
        self,
        index: int,
        garden: Garden,
        slots: Mapping[str, SlotSpec],
        descriptors: Mapping[str, ly.BlueprintDescriptor],
        config: KasminaConfig,
    ) -> None:
        self.lifecycle = KasminaLifecycle()
        self.epoch = 0
        self._index = index
        self._garden = garden
        self._slots = slots
        self._descriptors = descriptors
        self._config = config

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the seeds' own passes so far."""
        return self._garden.multiply_adds[self._index]

    def multiply_adds_per_sample(self) -> int:
        """Multiply-adds that one sample's forward now spends in seeds."""
        return sum(seed.multiply_adds_per_sample for seed in self._seeds() if seed.heard)

    def parameters(self) -> int:
        """Parameters of the seeds that take part in the forward, from BLENDING on."""
        return sum(seed.parameters for seed in self._seeds() if seed.joint)

    def slot_states(self) -> list[ly.SlotState]:
        """Return every slot with the seed that holds it."""
        holders = {slot: self.lifecycle.holder(slot) for slot in self._slots}
        return [spec.state(record.seed_id if (record := holders[slot]) else "") for slot, spec in self._slots.items()]

    def seed_states(self) -> list[ly.SeedState]:
        """Return every seed that is on the host, oldest first."""
        live = {seed.seed_id: seed for seed in self._seeds()}
        return [
            seed_state(
                record,
                live[record.seed_id],
                epoch=self.epoch,
                risk=self._risk(record.blueprint_id),
                config=self._config,
            )
            for record in self.lifecycle.in_stages(ATTACHED_STAGES)
        ]

    def growth(self) -> ly.GrowthState | None:
        """Return None: a stack refuses the commands that hold growth back."""
        return None

    def summaries(self) -> list[ly.SeedSummary]:
        """Return every seed of the run with its last stage, oldest first."""
        return [
            ly.SeedSummary(
                seed_id=record.seed_id, slot=record.slot, blueprint_id=record.blueprint_id, stage=record.stage
            )
            for record in self.lifecycle.seeds.values()
        ]

    def named(self, seed: Seedling, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a seed's tensors by the names that they have in a lone run's state."""
        prefix = self._prefix(seed)
        named = {f"{prefix}body.{name}": tensor for name, tensor in tensors.items()}
        if seed.role is not Role.FOSSIL:
            named[f"{prefix}blender.alpha"] = torch.tensor(seed.alpha, dtype=torch.float32)
        return named

    def names_of(self, seed_id: str) -> list[str]:
        """Return the prefixes under which tensors of a seed stand in this member's state now."""
        return [self._prefix(seed) for seed in self._seeds() if seed.seed_id == seed_id]

    def _prefix(self, seed: Seedling) -> str:
        if not seed.joint:
            return f"{seed.seed_id}:"
        template = self._garden.host.template
        slot = template.get_submodule(seed.spec.module)
        anchor = anchor_of(slot)
        below = next(name for name, module in slot.named_modules() if module is anchor)
        path = ".".join(part for part in (seed.spec.module, below, submodule_name(seed.seed_id)) if part)
        return f"{path}."

    def _seeds(self) -> list[Seedling]:
        return self._garden.seeds_of(self._index)

    def _risk(self, blueprint_id: str) -> float:
        descriptor = self._descriptors.get(blueprint_id)
        return descriptor.risk if descriptor is not None else 0.0
