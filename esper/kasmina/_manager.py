"""The seed manager: what a trainer calls. It measures, asks for the pure verdict, and folds acknowledged events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from esper.core.errors import IntegrityError
from esper.core.ports import BlueprintRuntime, EdgeDecision
from esper.kasmina._bed import PreparedSeed, Probe, SeedBed
from esper.kasmina._config import KasminaConfig
from esper.kasmina._decide import (
    Edge,
    check_against_record,
    cull_for_fault,
    decide_order,
    no_command,
    recorded_without_measuring,
    refuse,
)
from esper.kasmina._examiner import Examiner
from esper.kasmina._graft import Role
from esper.kasmina._lifecycle import ATTACHED_STAGES, GROWING_STAGES, KasminaLifecycle
from esper.kasmina._orders import BLEND_STEPS, Refusal, read_command
from esper.kasmina._passes import Isolation
from esper.kasmina._report import seed_state
from esper.kasmina._seed_training import LossFunction
from esper.kasmina._slots import SlotSpec
from esper.leyline import messages as ly
from esper.leyline.registry import EventMessage


class KasminaSeedManager:
    """Grafts seeds onto one host during one run; implements `esper.core.ports.GraftController`.

    State changes only in `fold`, and only by the events that `decide` and `end_epoch` returned, in their order:
    append first, then fold. Given the same host, batches, seed and folded events, everything here is
    repeatable bit for bit; nothing reads a clock. Not safe to share between threads.

    `loss_fn(outputs, targets)` returns the mean loss as a 0-d tensor. `probe` is a list of held-out (inputs,
    targets) batches on the host's device. Without a loss seeds do not train in shadow; without a loss or a probe G2
    and G4 cannot be measured, and moves that they guard are rejected as "gate_unavailable:G2" or
    "gate_unavailable:G4".
    Without `optimizer` (the host's) a fossilised seed stays with its own.

    Seeds are submodules of the host from BLENDING on: a loop that clips gradients clips those of its optimiser's
    groups, not those of `model.parameters()`, which would count the seeds' as well. Losses scaled for mixed
    precision are not unscaled here.
    """

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
        )
        self._examiner = Examiner(
            self._bed,
            run_id=run_id,
            runtime=runtime,
            slots=self._slots,
            descriptors=self._descriptors,
            config=config,
            seed=seed,
        )
        self._step = 0
        self._epoch_steps = 0
        self._steps_per_epoch = 1
        self._epoch = 0
        self._decided_epoch = -1
        #: Ids of the events that were handed out and must be folded next, in this order.
        self._owed: list[str] = []
        self._prepared: dict[str, PreparedSeed] = {}

    # -- figures --------------------------------------------------------------------------------------------

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of own work so far: shadow passes, seeds in the host's steps, probe passes."""
        return self._bed.multiply_adds

    def multiply_adds_per_sample(self) -> int:
        """Multiply-adds that one sample's forward now spends in seeds."""
        return sum(live.multiply_adds_per_sample for live in self._bed.live.values() if live.seed.heard)

    def parameters(self) -> int:
        """Parameters of the seeds that take part in the forward, from BLENDING on.

        These are submodules of the host: its own `parameters()` hold them as well.
        """
        return sum(live.parameters for live in self._bed.live.values() if live.seed.role is not Role.ISOLATED)

    def slot_states(self) -> list[ly.SlotState]:
        """Return every slot with the seed that holds it; a culled seed holds its slot under embargo."""
        holders = {slot: self.lifecycle.holder(slot) for slot in self._slots}
        return [spec.state(record.seed_id if (record := holders[slot]) else "") for slot, spec in self._slots.items()]

    def seed_states(self) -> list[ly.SeedState]:
        """Return every seed that is on the host, oldest first. Waits for the device."""
        return [
            seed_state(record, self._bed.live[record.seed_id], epoch=self._epoch, risk=self._risk(record.blueprint_id))
            for record in self.lifecycle.in_stages(ATTACHED_STAGES)
        ]

    def _risk(self, blueprint_id: str) -> float:
        descriptor = self._descriptors.get(blueprint_id)
        return descriptor.risk if descriptor is not None else 0.0

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

    # -- steps ----------------------------------------------------------------------------------------------

    def before_step(self) -> None:
        """Clear what the seeds' gradients hold; call it before the host's backward."""
        self._bed.zero_grad()

    def after_step(self, inputs: Tensor, targets: Tensor) -> None:
        """Train every seed on this batch and let alpha rise; call it after the host's optimiser step."""
        self._step += 1
        self._epoch_steps += 1
        self._bed.last_batch = inputs, targets
        for record in self.lifecycle.in_stages(ATTACHED_STAGES):
            if record.stage == ly.SEED_STAGE_TRAINING:
                if self._step % self._config.shadow_every == 0:
                    self._bed.train_in_shadow(record.seed_id, inputs, targets, step=self._step)
            else:
                rising = record.stage == ly.SEED_STAGE_BLENDING
                self._bed.train_jointly(record.seed_id, batch=len(inputs), rising=rising)

    # -- edges ----------------------------------------------------------------------------------------------

    def end_epoch(self, epoch: int) -> list[EventMessage]:
        """Close the epoch's figures, measure held-out losses, and return the moves that faults force.

        A seed whose loss, gradient or values are not finite is culled; the host has heard none of it.

        Raises:
            IntegrityError: events of the last edge were not folded.
        """
        self._expect_nothing_owed()
        self._epoch = epoch
        self._steps_per_epoch, self._epoch_steps = self._epoch_steps or self._steps_per_epoch, 0
        growing = self.lifecycle.in_stages(GROWING_STAGES)
        for record in growing:
            self._bed.live[record.seed_id].trainer.close_epoch()
        faults = [(record, fault) for record in growing if (fault := self._bed.faults(record.seed_id))]
        faulty = {record.seed_id for record, _ in faults}
        self._bed.measure([record.seed_id for record in growing if record.seed_id not in faulty], epoch=epoch)
        alphas = [self._bed.live[record.seed_id].seed.alpha for record, _ in faults]
        culled = [(record, fault, alpha) for (record, fault), alpha in zip(faults, alphas, strict=True)]
        return self._owing(cull_for_fault(self._edge(epoch), culled))

    def decide(
        self, command: ly.AdaptationCommand | None, *, epoch: int, recorded: ly.CommandOutcome | None = None
    ) -> EdgeDecision:
        """Judge `command` at the edge after `epoch`, once; nothing changes before its events are folded.

        With `recorded` (re-execution) the recorded command and kernel are taken.

        Raises:
            IntegrityError: the edge was decided before, events are still to be folded, or a re-executed
                verdict differs from the recorded one.
        """
        self._expect_nothing_owed()
        if epoch <= self._decided_epoch:
            raise IntegrityError(
                f"the edge after epoch {epoch} was decided before",
                cause=f"the last decided edge is that of epoch {self._decided_epoch}; an edge has one outcome",
                next_step="append the decision that was returned",
            )
        decision = self._judged(command, epoch=epoch, recorded=recorded)
        if recorded is not None:
            check_against_record(decision, recorded)
        self._decided_epoch = epoch
        self._owing(decision.events)
        return decision

    def _judged(
        self, command: ly.AdaptationCommand | None, *, epoch: int, recorded: ly.CommandOutcome | None
    ) -> EdgeDecision:
        if recorded is not None:
            bound = recorded_without_measuring(recorded)
            if bound is not None:
                return bound
            command = recorded.command if recorded.HasField("command") else command
        if command is None:
            return no_command()
        if command.command_type == ly.COMMAND_CONTINUE:
            return EdgeDecision(result=ly.COMMAND_RESULT_APPLIED)
        order = read_command(command, self.lifecycle)
        if isinstance(order, Refusal):
            return refuse(self._edge(epoch), order)
        examination = self._examiner.examine(
            order, self.lifecycle, epoch=epoch, steps_per_epoch=self._steps_per_epoch, recorded=recorded
        )
        if examination.prepared is not None:
            self._prepared = {order.seed_id: examination.prepared}
        return decide_order(self._edge(epoch), order, examination.findings)

    def handle_command(
        self,
        command: ly.AdaptationCommand | None,
        *,
        epoch: int,
        append: Callable[[EventMessage], object],
    ) -> EdgeDecision:
        """Decide, append every event by `append`, and only then fold them; for loops that own their log."""
        decision = self.decide(command, epoch=epoch)
        for event in decision.events:
            append(event)
        for event in decision.events:
            self.fold(event)
        return decision

    def fold(self, event: EventMessage) -> None:
        """Let an acknowledged event change the model.

        Raises:
            IntegrityError: it is not the event that must come next.
        """
        if not self._owed or event.meta.event_id != self._owed[0]:
            raise IntegrityError(
                f"the event {event.meta.event_id!r} cannot be folded now",
                cause=f"the next one is {self._owed[0]!r}" if self._owed else "no event is waited for",
                next_step="fold what decide and end_epoch returned, in their order, once each",
            )
        self.lifecycle = self.lifecycle.fold(event)
        del self._owed[0]
        if isinstance(event, ly.SeedStageChanged):
            self._apply(event)

    def _apply(self, event: ly.SeedStageChanged) -> None:
        if event.to_stage == ly.SEED_STAGE_GERMINATED:
            self._bed.plant(event.seed_id, self._slots[event.slot], self._prepared.pop(event.seed_id))
        elif event.to_stage == ly.SEED_STAGE_BLENDING:
            self._bed.blend(event.seed_id, steps=round(event.metrics[BLEND_STEPS]))
        elif event.to_stage == ly.SEED_STAGE_FOSSILIZED:
            self._bed.fossilize(event.seed_id)
        elif event.to_stage == ly.SEED_STAGE_CULLED:
            self._bed.uproot(event.seed_id)

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
