"""The seed manager: what a trainer calls. It measures, asks for the pure verdict, and folds acknowledged events."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from esper.core.checkpoint import Saved
from esper.core.errors import IntegrityError
from esper.core.ports import BlueprintRuntime, EdgeDecision
from esper.kasmina._bed import SeedBed
from esper.kasmina._bench import PreparedSeed, Probe
from esper.kasmina._checkpoint import Counts, capture, rebuild
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
from esper.kasmina._gate_reset import reset_gate
from esper.kasmina._graft import Role
from esper.kasmina._lifecycle import ATTACHED_STAGES, GROWING_STAGES, KasminaLifecycle, SeedRecord
from esper.kasmina._orders import BLEND_STEPS, Refusal, read_command
from esper.kasmina._ownership import TEACHER
from esper.kasmina._passes import Isolation
from esper.kasmina._report import seed_state
from esper.kasmina._resets import recorded_resets, with_resets
from esper.kasmina._seed_training import LossFunction
from esper.kasmina._slots import SlotSpec
from esper.leyline import messages as ly
from esper.leyline.registry import EventMessage

logger = logging.getLogger("esper.kasmina")


class KasminaSeedManager:
    """Grafts seeds onto one host during one run; implements `esper.core.ports.GraftController`.

    State changes only in `fold`, and only by the events that `decide` and `end_epoch` returned, in their order:
    append first, then fold. Given the same host, batches, seed and folded events, everything here is
    repeatable bit for bit; nothing reads a clock. Not safe to share between threads.

    `loss_fn(outputs, targets)` returns the mean loss as a 0-d tensor. `probe` is a list of held-out (inputs,
    targets) batches on the host's device. Without a loss no seed can train in shadow and none germinates
    ("gate_unavailable:G1"); without a probe G2 and G4 cannot be measured, and moves that they guard are rejected as
    "gate_unavailable:G2" or "gate_unavailable:G4".
    Without `optimizer` (the host's) a fossilised seed stays with its own.

    Seeds are submodules of the host from BLENDING on: a loop that clips gradients clips those of its optimiser's
    groups, not those of `model.parameters()`, which would count the seeds' as well. Losses scaled for mixed
    precision are unscaled by `scale_gradients`.
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
        #: Digest of the kernel of every seed that was examined, by the seed's id.
        self._kernels: dict[str, str] = {}

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

    def own_parameters(self) -> set[nn.Parameter]:
        """Return the parameters that the seeds' own optimisers train; the host's optimiser has none of them."""
        trainers = (live.trainer for live in self._bed.live.values())
        return {parameter for one in trainers if one.optimizer is not None for parameter in one.parameters}

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

    def figures(self) -> dict[str, float]:
        """Return what Kasmina counts, by the name of its metric."""
        monitor = self._bed.monitor
        return {
            "kasmina.isolation.violations": float(monitor.violations),
            "kasmina.isolation.breaker_open": float(not monitor.allows),
        }

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

    # -- steps ----------------------------------------------------------------------------------------------

    def before_step(self) -> None:
        """Clear what the seeds' gradients hold; call it before the host's backward."""
        self._bed.zero_grad()

    def scale_gradients(self, factor: float) -> None:
        """Multiply what the host's backward left in the gradients of seeds that have an optimiser of their own."""
        for live in self._bed.live.values():
            live.trainer.scale_gradients(factor)

    def follow_rate(self, share: float) -> None:
        """Let the seeds learn with this share of their own learning rate, in 0..1."""
        for live in self._bed.live.values():
            live.trainer.rate_share = share

    def after_step(self, inputs: Tensor, targets: Tensor) -> None:
        """Train every seed on this batch and let alpha rise; call it after the host's optimiser step."""
        self._step += 1
        self._epoch_steps += 1
        self._bed.last_batch = inputs, targets
        self._bed.host_stepped()
        if not self._bed.monitor.allows:
            return  # No seed takes a step while the breaker is open.
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

        A seed whose loss, gradient or values are not finite is culled; the host has heard none of it. So is one that
        was not isolated, once the breaker of the isolation monitor is open.

        Raises:
            IntegrityError: events of the last edge were not folded.
        """
        self._expect_nothing_owed()
        self._epoch = epoch
        self._steps_per_epoch, self._epoch_steps = self._epoch_steps or self._steps_per_epoch, 0
        growing = self.lifecycle.in_stages(GROWING_STAGES)
        for record in growing:
            self._bed.live[record.seed_id].trainer.close_epoch()
        self._bed.close_isolation(epoch)
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

        With `recorded` (re-execution) the recorded command and kernel are taken, and the recorded resets. Without,
        culled seeds whose embargo is over are reset at the same edge, whatever was commanded.

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
        decision = with_resets(self._edge(epoch), decision, self._resets(epoch, recorded))
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
            self._kernels[order.seed_id] = examination.findings.kernel_digest
        return decide_order(self._edge(epoch), order, examination.findings)

    def _resets(self, epoch: int, recorded: ly.CommandOutcome | None) -> list[tuple[SeedRecord, ly.GateEvaluated]]:
        """Return each seed that is to be reset at this edge, with G5's verdict on it; the recorded one binds."""
        if recorded is None:
            due = self.lifecycle.due_for_reset(epoch, embargo_epochs=self._config.embargo_epochs)
            return [(record, reset_gate(self._bed.reset_evidence(record.seed_id))) for record in due]
        resets = []
        for seed_id, passed in recorded_resets(recorded, self.lifecycle).items():
            gate = reset_gate(self._bed.reset_evidence(seed_id))
            if gate.passed != passed:
                logger.warning("seed %s: G5 is %s now and %s in the log, which binds", seed_id, gate.passed, passed)
                gate.passed = passed
            resets.append((self.lifecycle.seeds[seed_id], gate))
        return resets

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
        elif event.to_stage == ly.SEED_STAGE_DORMANT:
            self._bed.forget(event.seed_id)

    # -- checkpoints ----------------------------------------------------------------------------------------

    def checkpoint(self) -> Saved:
        """Return what `restore` needs besides the tensors of the host and of `state`; between end_epoch and decide.

        Raises:
            IntegrityError: events of the last edge were not folded.
        """
        self._expect_nothing_owed()
        counts = Counts(self._step, self._steps_per_epoch, self._epoch, self._decided_epoch, self._kernels)
        return capture(self.lifecycle, self._bed, counts)

    def restore(self, saved: Saved) -> None:
        """Put the seeds of a checkpoint on this manager's host; it must be a fresh one.

        Raises:
            IntegrityError: the content does not fit this host.
            KernelUnavailable: no store holds the kernel of one of its seeds.
        """
        self.lifecycle, counts = rebuild(saved, self._bed, self._slots, self._examiner.body_of)
        self._step, self._steps_per_epoch = counts.step, counts.steps_per_epoch
        self._epoch, self._decided_epoch = counts.epoch, counts.decided_epoch
        self._kernels = dict(counts.kernels)

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
