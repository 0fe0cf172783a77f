"""What every room of the seed manager shares: the bed, the lifecycle, the counts, and what is still to be folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import IntegrityError
from esper.core.ports import BlueprintRuntime
from esper.core.ranks import ALONE, Ranks
from esper.kasmina._config import KasminaConfig
from esper.kasmina.bed._bed import SeedBed
from esper.kasmina.bed._bench import PreparedSeed, Probe
from esper.kasmina.bed._ranks import SharedWork
from esper.kasmina.bed._seed_training import LossFunction
from esper.kasmina.grafting._passes import Isolation
from esper.kasmina.grafting._slots import SlotSpec
from esper.kasmina.household._governor import Cache, MemorySensor
from esper.kasmina.household._household import Household
from esper.kasmina.lifecycle._decide import Edge
from esper.kasmina.lifecycle._growth import Growth
from esper.kasmina.lifecycle._lifecycle import KasminaLifecycle
from esper.kasmina.manager._examiner import Examiner
from esper.leyline import messages as ly
from esper.leyline.registry import EventMessage


class ManagerState:
    """The state that figures, steps, edges and checkpoints work on."""

    def __init__(
        self,
        model: nn.Module,
        slots: Sequence[SlotSpec],
        *,
        runtime: BlueprintRuntime,
        run_id: str,
        seed: int,
        attempt: int = 1,
        loss_fn: LossFunction | None = None,
        probe: Probe | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        descriptors: Mapping[str, ly.BlueprintDescriptor] | None = None,
        config: KasminaConfig | None = None,
        isolation: Isolation | None = None,
        ranks: Ranks = ALONE,
        memory: MemorySensor | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        config = config or KasminaConfig()
        self.lifecycle = KasminaLifecycle()
        self._run_id = run_id
        self._attempt = attempt
        self._slots = {spec.slot: spec for spec in slots}
        self._descriptors = descriptors or {}
        self._config = config
        self._bed = SeedBed(
            model,
            seed=seed,
            loss_fn=loss_fn,
            probe=probe,
            optimizer=optimizer,
            config=config,
            isolation=isolation or Isolation(),
            ranks=ranks,
        )
        self._house = Household(
            runtime=runtime,
            run_id=run_id,
            device=self._bed.device,
            config=config,
            caches=[runtime] if isinstance(runtime, Cache) else [],
            sensor=memory,
            clock=clock,
        )
        self._examiner = Examiner(
            self._bed,
            runtime=runtime,
            house=self._house,
            slots=self._slots,
            descriptors=self._descriptors,
            config=config,
            seed=seed,
        )
        self._work = SharedWork()
        #: Whether the breaker stood open when the epoch began; ranks may not part in the middle of one.
        self._barred = False
        self._step = 0
        self._epoch_steps = 0
        self._steps_per_epoch = 1
        self._epoch = 0
        self._decided_epoch = -1
        #: Ids of the events that were handed out and must be folded next, in this order.
        self._owed: list[str] = []
        self._prepared: dict[str, PreparedSeed] = {}
        #: Digest of the kernel of every seed that was examined, by the seed's id.
        self._kernels: dict[str, str] = {}
        self._growth = Growth()
        #: What a return to a checkpoint carries over, while one is under way.
        self._return: object | None = None

    def _edge(self, epoch: int) -> Edge:
        return Edge(self._run_id, self._attempt, epoch, self.lifecycle.events)

    def _owing(self, events: Sequence[EventMessage]) -> list[EventMessage]:
        self._owed = [event.meta.event_id for event in events]
        if not events:
            self._prepared = {}
        return list(events)

    def _expect_nothing_owed(self) -> None:
        if self._owed:
            raise IntegrityError(
                "the last edge is not finished",
                cause=f"{len(self._owed)} of its events were not folded",
                next_step="fold every event that decide and end_epoch returned",
            )
