"""The seed manager of a stack: the lifecycle, gates and events of lone runs, on hosts that are computed together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from esper.core.errors import IntegrityError
from esper.core.ports import BlueprintRuntime, EdgeDecision
from esper.core.stacking import StackedHost, StepClock
from esper.kasmina._config import KasminaConfig
from esper.kasmina.gates._reset import reset_gate
from esper.kasmina.grafting._alpha import CURVE_NAMES, AlphaSchedule
from esper.kasmina.grafting._seed import Role
from esper.kasmina.grafting._slots import SlotSpec
from esper.kasmina.lifecycle._decide import (
    Edge,
    check_against_record,
    decide_order,
    forced_off,
    no_command,
    recorded_without_measuring,
    refuse,
)
from esper.kasmina.lifecycle._lifecycle import (
    FALL_STEPS,
    FALLING_STAGES,
    GROWING_STAGES,
    PATHS,
    KasminaLifecycle,
    SeedRecord,
)
from esper.kasmina.lifecycle._orders import BLEND_STEPS, Order, Refusal, read_command
from esper.kasmina.lifecycle._resets import recorded_resets, with_resets
from esper.kasmina.manager._edges import FADED
from esper.kasmina.stack._examiner import Asked, StackExaminer
from esper.kasmina.stack._garden import Garden
from esper.kasmina.stack._group import StackedKernel
from esper.kasmina.stack._kernels import StackKernels
from esper.kasmina.stack._member import StackMember
from esper.kasmina.stack._remains import StackRemains
from esper.kasmina.stack._seedling import Seedling
from esper.kasmina.stack._sensors import StackSensors
from esper.kasmina.stack._taps import QuietTap, TrainingTap
from esper.leyline import messages as ly
from esper.leyline.registry import EventMessage

#: The operations on seeds that a stack carries out.
_OPERATIONS: Final = frozenset(
    {
        ly.SEED_OP_GERMINATE,
        ly.SEED_OP_START_GRAFTING,
        ly.SEED_OP_STABILIZE,
        ly.SEED_OP_EVALUATE,
        ly.SEED_OP_FOSSILIZE,
        ly.SEED_OP_CULL,
    }
)
_MODES: Final = frozenset({ly.BLEND_MODE_UNSPECIFIED, ly.BLEND_MODE_RESIDUAL})
#: Why a command that a lone run knows is refused here.
UNSUPPORTED: Final = "unsupported_in_stack"


class StackedSeedManager:
    """Grafts seeds onto the hosts of a stack; implements `esper.core.stacking.StackGrafts`.

    What a member's seeds are judged by, and what becomes of them, is decided by the functions that decide for lone
    runs. Only measuring and training are done together. What a stack cannot do is refused: other commands
    ("unsupported_in_stack"), kernels that keep buffers or draw random numbers ("kernel_unavailable:not_stackable"),
    and trials in quarantine, instead of which the refusal stands alone.
    """

    def __init__(
        self,
        host: StackedHost,
        slots: Sequence[SlotSpec],
        *,
        runtime: BlueprintRuntime,
        run_ids: Sequence[str],
        probe: tuple[Tensor, Tensor],
        descriptors: Mapping[str, ly.BlueprintDescriptor] | None = None,
        config: KasminaConfig | None = None,
    ) -> None:
        self._config = config or KasminaConfig()
        self._run_ids = list(run_ids)
        self._slots = {spec.slot: spec for spec in slots}
        descriptors = descriptors or {}
        self.garden = Garden(host, config=self._config)
        self.garden.show(probe[0][0])
        self._sensors = StackSensors(self.garden, *probe)
        kernels = StackKernels(
            runtime, device=host.device, descriptors=descriptors, wait_seconds=self._config.kernel_wait_seconds
        )
        self._examiner = StackExaminer(
            self.garden, self._sensors, kernels, slots=self._slots, descriptors=descriptors, config=self._config
        )
        self._members = [
            StackMember(index, self.garden, self._slots, descriptors, self._config) for index in range(len(host))
        ]
        self._steps_per_epoch = 1
        self._owed: dict[int, list[str]] = {}
        self._prepared: dict[int, StackedKernel] = {}
        self._fresh: dict[int, StackedKernel] = {}
        self._changed = False
        self._seeds: dict[tuple[int, str], Seedling] = {}
        self._remains: dict[tuple[int, str], StackRemains] = {}

    # -- steps ----------------------------------------------------------------------------------------------

    def members(self) -> Sequence[StackMember]:
        """Return each member's seeds."""
        return self._members

    def begin_epoch(
        self, epoch: int, *, rates_SN: NDArray[np.float64], batches: Sequence[int], clock: StepClock
    ) -> None:
        """Make ready for the steps of an epoch."""
        self._steps_per_epoch = len(batches)
        self.garden.begin_epoch(rates_SN, batches, clock)

    def structure(self) -> int:
        """Return what changes whenever seeds come, go, or change groups."""
        return self.garden.structure

    def tap(self) -> TrainingTap | None:
        """Return what lets the hosts hear their seeds in training."""
        return self.garden.tap()

    def quiet_tap(self) -> QuietTap | None:
        """Return the same for evaluation."""
        return self.garden.quiet_tap()

    def leaves(self) -> list[Tensor]:
        """Return the parameters of the seeds that take part."""
        return self.garden.leaves()

    def after_step(self, x_NB: Tensor, y_NB: Tensor, gradients: Sequence[Tensor]) -> None:
        """Let the seeds learn."""
        self.garden.after_step(x_NB, y_NB, gradients)

    # -- edges ----------------------------------------------------------------------------------------------

    def close_epoch(self) -> None:
        """Close the figures of the epoch's steps."""
        self.garden.end_epoch()

    def end_epoch(self, epoch: int, held_out: Sequence[float]) -> list[list[EventMessage]]:
        """Measure; return the moves that faults force, by member.

        A seed whose loss, gradient or values are not finite is culled, and so is one that was not isolated at the step
        of the epoch at which that is looked at.
        """
        self._expect_nothing_owed()
        events: list[list[EventMessage]] = []
        sound: set[int] = set()
        for index, member in enumerate(self._members):
            member.epoch = epoch
            forced = []
            for record in member.lifecycle.in_stages(GROWING_STAGES | FALLING_STAGES):
                seed = self._seeds[index, record.seed_id]
                reason = _reason_to_go(seed)
                if reason:
                    forced.append((record, reason, seed.alpha))
                elif not seed.falling:
                    sound.add(id(seed))
            events.append(self._owing(index, forced_off(self._edge(index, epoch), forced)))
        self._sensors.held_out(sound, held_out, epoch=epoch)
        return events

    def decide(
        self,
        commands: Sequence[ly.AdaptationCommand | None],
        *,
        epoch: int,
        live: Sequence[bool],
        recorded: Sequence[ly.CommandOutcome | None],
    ) -> list[EdgeDecision | None]:
        """Judge every live member's command; nothing changes before the events are folded.

        Raises:
            IntegrityError: events of the last edge were not folded, or a re-executed verdict differs from the recorded.
        """
        self._expect_nothing_owed()
        self._prepared = {}
        judged: dict[int, EdgeDecision] = {}
        asked: list[Asked] = []
        for index, goes_on in enumerate(live):
            if not goes_on:
                continue
            read = self._read(index, commands[index], epoch, recorded[index])
            if isinstance(read, EdgeDecision):
                judged[index] = read
            else:
                lifecycle = self._members[index].lifecycle
                asked.append(Asked(index, self._run_ids[index], read, lifecycle, recorded[index]))
        found = self._examiner.examine(asked, steps_per_epoch=self._steps_per_epoch)
        for one in asked:
            examination = found[one.member]
            if examination.kernel is not None:
                self._prepared[one.member] = examination.kernel
            judged[one.member] = decide_order(self._edge(one.member, epoch), one.order, examination.findings)
        decisions: list[EdgeDecision | None] = [None] * len(live)
        for index, decision in judged.items():
            was = recorded[index]
            whole = with_resets(self._edge(index, epoch), decision, self._resets(index, epoch, was))
            if was is not None:
                check_against_record(whole, was)
            self._owing(index, whole.events)
            decisions[index] = whole
        return decisions

    def _read(
        self, index: int, command: ly.AdaptationCommand | None, epoch: int, recorded: ly.CommandOutcome | None
    ) -> Order | EdgeDecision:
        """Return the order of a command, or the verdict where nothing needs to be measured for it."""
        if recorded is not None:
            bound = recorded_without_measuring(recorded)
            if bound is not None:
                return bound
        if command is None:
            return no_command()
        if command.command_type == ly.COMMAND_CONTINUE:
            return EdgeDecision(result=ly.COMMAND_RESULT_APPLIED)
        operation = command.seed_operation.operation
        known = command.command_type == ly.COMMAND_SEED and (operation in _OPERATIONS or operation not in PATHS)
        if not known:
            return refuse(self._edge(index, epoch), Refusal(UNSUPPORTED))
        order = read_command(command, self._members[index].lifecycle, epoch=epoch, recorded=recorded)
        if isinstance(order, Refusal):
            return refuse(self._edge(index, epoch), order)
        if command.seed_operation.hold or order.blend_mode not in _MODES:
            return refuse(self._edge(index, epoch), Refusal(UNSUPPORTED, order))
        return order

    def _resets(
        self, index: int, epoch: int, recorded: ly.CommandOutcome | None
    ) -> list[tuple[SeedRecord, ly.GateEvaluated]]:
        """Return each seed of a member that is to be reset at this edge, with G5's verdict; the recorded one binds."""
        lifecycle = self._members[index].lifecycle
        if recorded is None:
            due = lifecycle.due_for_reset(epoch, embargo_epochs=self._config.embargo_epochs)
            return [(record, self._reset_gate(index, record.seed_id)) for record in due]
        resets = []
        for seed_id, passed in recorded_resets(recorded, lifecycle).items():
            gate = self._reset_gate(index, seed_id)
            gate.passed = passed
            resets.append((lifecycle.seeds[seed_id], gate))
        return resets

    def _reset_gate(self, index: int, seed_id: str) -> ly.GateEvaluated:
        remains = self._remains.get((index, seed_id))
        if remains is None:
            return reset_gate(None)
        return reset_gate(remains.evidence(self.garden.groups, self._members[index].names_of(seed_id)))

    # -- folding --------------------------------------------------------------------------------------------

    def fold(self, member: int, event: EventMessage) -> None:
        """Take note of an acknowledged event; the networks change at the next `commit`.

        Raises:
            IntegrityError: it is not the member's event that must come next.
        """
        owed = self._owed.get(member, [])
        if not owed or event.meta.event_id != owed[0]:
            raise IntegrityError(
                f"the event {event.meta.event_id!r} cannot be folded now",
                cause=f"the next one is {owed[0]!r}" if owed else "no event is waited for",
                next_step="fold what decide and end_epoch returned, in their order, once each",
            )
        del owed[0]
        self._members[member].lifecycle = self._members[member].lifecycle.fold(event)
        if isinstance(event, ly.SeedStageChanged):
            self._apply(member, event)

    def _apply(self, member: int, event: ly.SeedStageChanged) -> None:
        key = (member, event.seed_id)
        if event.to_stage == ly.SEED_STAGE_GERMINATED:
            kernel = self._prepared.pop(member)
            seed = Seedling(
                member,
                event.seed_id,
                self._slots[event.slot],
                kernel.digest,
                kernel.parameters,
                kernel.multiply_adds_per_sample,
            )
            self._seeds[key], self._fresh[id(seed)], self._changed = seed, kernel, True
        elif event.to_stage == ly.SEED_STAGE_BLENDING:
            seed, self._changed = self._seeds[key], True
            seed.role = Role.BLENDED
            curve = CURVE_NAMES.get(event.alpha_curve) or self._config.alpha_curve
            seed.schedule = AlphaSchedule(curve, round(event.metrics[BLEND_STEPS]))
        elif event.to_stage == ly.SEED_STAGE_FOSSILIZED:
            self._seeds[key].role, self._changed = Role.FOSSIL, True
        elif event.to_stage == ly.SEED_STAGE_CULLED and event.metrics.get(FALL_STEPS):
            self._changed = True
            self._seeds[key].fall(self._config.alpha_curve, steps=round(event.metrics[FALL_STEPS]))
        elif event.to_stage in (ly.SEED_STAGE_CULLED, ly.SEED_STAGE_EMBARGOED) and key in self._seeds:
            seed, self._changed = self._seeds.pop(key), True
            group = next(one for one in self.garden.groups if any(each is seed for each in one.seeds))
            self._remains[key] = StackRemains.of(seed, group)
        elif event.to_stage == ly.SEED_STAGE_DORMANT:
            self._remains.pop(key, None)

    def commit(self) -> None:
        """Let all that was folded since the last time change the networks."""
        if self._changed:
            self.garden.compose(list(self._seeds.values()), self._fresh)
        self._fresh, self._prepared, self._changed = {}, {}, False

    def weights(self) -> list[Mapping[str, Tensor]]:
        """Return each member's seed tensors on the CPU, named as in a lone run's state."""
        named: list[dict[str, Tensor]] = [{} for _ in self._members]
        for group in self.garden.groups:
            for seed, tensors in zip(group.seeds, group.weights(), strict=True):
                named[seed.member].update(self._members[seed.member].named(seed, tensors))
        return list(named)

    # -- small parts ----------------------------------------------------------------------------------------

    def _edge(self, index: int, epoch: int) -> Edge:
        return Edge(self._run_ids[index], 1, epoch, self._members[index].lifecycle.events)

    def _owing(self, index: int, events: Sequence[EventMessage]) -> list[EventMessage]:
        self._owed[index] = [event.meta.event_id for event in events]
        return list(events)

    def _expect_nothing_owed(self) -> None:
        left = sum(len(owed) for owed in self._owed.values())
        if left:
            raise IntegrityError(
                "the last edge is not finished",
                cause=f"{left} of its events were not folded",
                next_step="fold every event that decide and end_epoch returned",
            )

    def lifecycles(self) -> Iterator[KasminaLifecycle]:
        """Return every member's lifecycle, in order."""
        return (member.lifecycle for member in self._members)


def _reason_to_go(seed: Seedling) -> str:
    """Return why a seed is to be taken off now: a fault, or its alpha fell to 0; nothing where it may stay."""
    if not seed.sound:
        return "fault:non_finite"
    if seed.leaks.total:
        return "fault:isolation"
    return FADED if seed.falling and seed.alpha == 0.0 else ""
