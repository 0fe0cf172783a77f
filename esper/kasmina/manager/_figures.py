"""What the seed manager tells of its seeds: figures, states, tensors."""

from __future__ import annotations

from torch import Tensor, nn

from esper.kasmina.bed._report import seed_state
from esper.kasmina.grafting._seed import Role
from esper.kasmina.isolation._ownership import TEACHER
from esper.kasmina.lifecycle._lifecycle import ATTACHED_STAGES
from esper.kasmina.manager._state import ManagerState
from esper.leyline import messages as ly


class ManagerFigures(ManagerState):
    """Reads; changes nothing but the registry of owners."""

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of own work so far: shadow passes, seeds in the host's steps, probe passes."""
        return self._work.total(self._bed)

    def multiply_adds_per_sample(self) -> int:
        """Multiply-adds that one sample's forward now spends in seeds."""
        return sum(live.multiply_adds_per_sample for live in self._bed.live.values() if live.seed.heard)

    def parameters(self) -> int:
        """Parameters of the seeds that take part in the forward, from BLENDING on.

        These are submodules of the host: its own `parameters()` hold them as well.
        """
        return sum(live.parameters for live in self._bed.live.values() if live.seed.role is not Role.ISOLATED)

    def own_parameters(self) -> set[nn.Parameter]:
        """Return the parameters that the seeds' own optimisers train; the host's optimiser has none of them."""
        trainers = (live.trainer for live in self._bed.live.values())
        return {parameter for one in trainers if one.optimizer is not None for parameter in one.parameters}

    def slot_states(self) -> list[ly.SlotState]:
        """Return every slot with the seed that holds it; a culled seed holds its slot under embargo."""
        holders = {slot: self.lifecycle.holder(slot) for slot in self._slots}
        return [spec.state(record.seed_id if (record := holders[slot]) else "") for slot, spec in self._slots.items()]

    def seed_states(self) -> list[ly.SeedState]:
        """Return every seed that is on the host, oldest first; folded ones are in its weights. Waits for the device."""
        live = self._bed.live
        return [
            seed_state(
                record,
                self._slots[record.slot],
                live.get(record.seed_id),
                epoch=self._epoch,
                risk=self._risk(record.blueprint_id),
            )
            for record in self.lifecycle.in_stages(ATTACHED_STAGES)
        ]

    def _risk(self, blueprint_id: str) -> float:
        descriptor = self._descriptors.get(blueprint_id)
        return descriptor.risk if descriptor is not None else 0.0

    def figures(self) -> dict[str, float]:
        """Return what Kasmina counts, by the name of its metric."""
        monitor = self._bed.monitor
        return {
            "kasmina.isolation.violations": float(monitor.violations),
            "kasmina.isolation.breaker_open": float(not monitor.allows),
        }

    def growth(self) -> ly.GrowthState | None:
        """Return what holds growth back after the epoch that ended last; None where nothing does."""
        return self._growth.message(self._bed.monitor.state(), epoch=self._epoch)

    def watch_teacher(self, teacher: nn.Module) -> None:
        """Register a network that a loss distils from; whoever changes it commits a breach of the isolation.

        Raises:
            IntegrityError: it shares a tensor with the host or with a seed.
        """
        self._bed.registry.register(TEACHER, {**dict(teacher.named_parameters()), **dict(teacher.named_buffers())})

    def summaries(self) -> list[ly.SeedSummary]:
        """Return every seed of the run with its last stage, oldest first."""
        return [
            ly.SeedSummary(
                seed_id=record.seed_id, slot=record.slot, blueprint_id=record.blueprint_id, stage=record.stage
            )
            for record in self.lifecycle.seeds.values()
        ]

    def state(self) -> dict[str, Tensor]:
        """Return weights and buffers of the seeds that are not yet submodules of the host, as "SEED_ID:NAME".

        The tensors are the seeds' own, detached, not copies.
        """
        return {
            f"{seed_id}:{name}": tensor
            for seed_id, live in self._bed.live.items()
            if live.seed.role is Role.ISOLATED
            for name, tensor in live.seed.state_dict().items()
        }
