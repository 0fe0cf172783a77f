"""What the seed manager does at an epoch's edge: judge, hand out events, and let the acknowledged ones act."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from esper.core.errors import IntegrityError
from esper.core.ports import EdgeDecision
from esper.kasmina.bed._ranks import meet
from esper.kasmina.gates._reset import reset_gate
from esper.kasmina.grafting._alpha import CURVE_NAMES
from esper.kasmina.lifecycle._decide import (
    UNSUPPORTED,
    check_against_record,
    cull_in_emergency,
    decide_order,
    forced_off,
    no_command,
    recorded_without_measuring,
    refuse,
)
from esper.kasmina.lifecycle._growth import problem_of
from esper.kasmina.lifecycle._lifecycle import FALL_STEPS, FALLING_STAGES, GROWING_STAGES, SeedRecord
from esper.kasmina.lifecycle._orders import BLEND_STEPS, Refusal, read_command, read_pruning
from esper.kasmina.lifecycle._resets import recorded_resets, with_resets
from esper.kasmina.manager._steps import ManagerSteps
from esper.leyline import messages as ly
from esper.leyline.registry import EventMessage

logger = logging.getLogger("esper.kasmina")

#: Why a culled seed is taken off: the host does not hear it any more.
FADED: Final = "faded_out"

#: Judges commands of one type at the edge after an epoch. The outcome is the recorded one of a re-execution.
Judge = Callable[[ly.AdaptationCommand, int, ly.CommandOutcome | None], EdgeDecision]


class ManagerEdges(ManagerSteps):
    """Decides once for each edge; every type of command has its judge in `_judges`."""

    def end_epoch(self, epoch: int) -> list[EventMessage]:
        """Close the epoch's figures, measure held-out losses, and return the moves that faults force.

        A seed whose loss, gradient or values are not finite is culled; the host has heard none of it. So is one that
        was not isolated, once the breaker of the isolation monitor is open. A culled seed whose alpha came to 0 is
        taken off, and its embargo begins.

        Raises:
            IntegrityError: events of the last edge were not folded.
        """
        self._expect_nothing_owed()
        self._epoch = epoch
        self._steps_per_epoch, self._epoch_steps = self._epoch_steps or self._steps_per_epoch, 0
        growing = self.lifecycle.in_stages(GROWING_STAGES)
        if not self._growth.held(epoch):  # Who stood still keeps the figures of the epoch in which it last learned.
            for record in growing:
                self._bed.live[record.seed_id].trainer.close_epoch()
        heard = self.lifecycle.in_stages(GROWING_STAGES | FALLING_STAGES)
        meet(self._bed, [record.seed_id for record in heard], own=self._bed.own())
        self._bed.close_isolation(epoch)
        faults = {record.seed_id: fault for record in growing if (fault := self._bed.faults(record.seed_id))}
        self._bed.measure([record.seed_id for record in growing if record.seed_id not in faults], epoch=epoch)
        self._work.meet(self._bed)
        self._end_tunings(growing, epoch)
        reasons = {seed_id: f"fault:{fault}" for seed_id, fault in faults.items()} | self._fallen()
        culled = [
            (record, reasons[record.seed_id], self._bed.live[record.seed_id].seed.alpha)
            for record in self.lifecycle.in_stages(GROWING_STAGES | FALLING_STAGES)
            if record.seed_id in reasons
        ]
        return self._owing(forced_off(self._edge(epoch), culled))

    def _fallen(self) -> dict[str, str]:
        """Return the culled seeds that are to be taken off now, with the reason: alpha came to 0, or a fault."""
        reasons = {}
        for record in self.lifecycle.in_stages(FALLING_STAGES):
            fault = self._bed.faults(record.seed_id)
            if fault or self._bed.live[record.seed_id].seed.alpha == 0.0:
                reasons[record.seed_id] = f"fault:{fault}" if fault else FADED
        return reasons

    def _end_tunings(self, growing: Sequence[SeedRecord], epoch: int) -> None:
        """Give the seeds whose fine-tuning ends with this epoch their own rate back."""
        for record in growing:
            if record.tuned_until <= epoch:
                self._bed.live[record.seed_id].trainer.rate_factor = 1.0

    def decide(
        self,
        command: ly.AdaptationCommand | None,
        *,
        epoch: int,
        recorded: ly.CommandOutcome | None = None,
        ruled: EdgeDecision | None = None,
    ) -> EdgeDecision:
        """Judge `command` at the edge after `epoch`, once; nothing changes before its events are folded.

        With `ruled` the trainer has judged the command: it concerned its optimiser, say.

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
        decision = ruled or self._judged(command, epoch=epoch, recorded=recorded)
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
        judge = self._judges().get(command.command_type)
        if judge is None:
            return refuse(self._edge(epoch), Refusal(UNSUPPORTED))
        return judge(command, epoch, recorded)

    def _judges(self) -> Mapping[ly.CommandType, Judge]:
        """Return who judges a command, by its type; what is not here is refused as "unsupported_command"."""
        return {
            ly.COMMAND_CONTINUE: _train_on,
            ly.COMMAND_SEED: self._judge_seed_command,
            ly.COMMAND_PAUSE: self._judge_growth_command,
            ly.COMMAND_CIRCUIT_BREAKER: self._judge_growth_command,
            ly.COMMAND_EMERGENCY: self._judge_growth_command,
            ly.COMMAND_STRUCTURAL_PRUNING: self._judge_pruning,
        }

    def _judge_growth_command(
        self, command: ly.AdaptationCommand, epoch: int, _recorded: ly.CommandOutcome | None
    ) -> EdgeDecision:
        problem = problem_of(command, self._growth, epoch=epoch)
        if problem:
            return refuse(self._edge(epoch), Refusal(problem))
        if command.command_type != ly.COMMAND_EMERGENCY:
            return EdgeDecision(result=ly.COMMAND_RESULT_APPLIED)
        growing = self.lifecycle.in_stages(GROWING_STAGES | FALLING_STAGES)
        alphas = [(record, self._bed.live[record.seed_id].seed.alpha) for record in growing]
        events = cull_in_emergency(self._edge(epoch), alphas, command_id=command.command_id)
        return EdgeDecision(result=ly.COMMAND_RESULT_APPLIED, events=events)

    def _judge_seed_command(
        self, command: ly.AdaptationCommand, epoch: int, recorded: ly.CommandOutcome | None
    ) -> EdgeDecision:
        order = read_command(command, self.lifecycle, epoch=epoch, recorded=recorded)
        if isinstance(order, Refusal):
            return refuse(self._edge(epoch), order)
        held = self._growth.refusal(order.operation, epoch=epoch)
        if held:
            return refuse(self._edge(epoch), Refusal(held, order))
        examination = self._examiner.examine(
            order, self.lifecycle, epoch=epoch, steps_per_epoch=self._steps_per_epoch, recorded=recorded
        )
        if examination.prepared is not None:
            self._prepared = {order.seed_id: examination.prepared}
            self._kernels[order.seed_id] = examination.findings.kernel_digest
        return decide_order(self._edge(epoch), order, examination.findings)

    def _judge_pruning(
        self, command: ly.AdaptationCommand, epoch: int, _recorded: ly.CommandOutcome | None
    ) -> EdgeDecision:
        order = read_pruning(command, self.lifecycle)
        if isinstance(order, Refusal):
            return refuse(self._edge(epoch), order)
        wanted = command.structural_pruning
        rise_max = wanted.loss_rise_max if wanted.HasField("loss_rise_max") else None
        return decide_order(self._edge(epoch), order, self._examiner.pruning(order, epoch, rise_max=rise_max))

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
        if command is not None:
            self.settle(
                ly.CommandOutcome(
                    epoch=epoch, result=decision.result, command_type=command.command_type, command=command
                )
            )
        return decision

    def settle(self, outcome: ly.CommandOutcome) -> None:
        """Let an acknowledged outcome change how growth is held; call it once the edge's events are folded."""
        self._growth = self._growth.fold(outcome)
        closes = outcome.command.circuit_breaker.desired_state == ly.CIRCUIT_STATE_CLOSED
        if closes and outcome.result == ly.COMMAND_RESULT_APPLIED:
            self._bed.monitor.close_breaker()

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
        elif isinstance(event, ly.SeedTuned):
            self._bed.live[event.seed_id].trainer.rate_factor = event.rate_factor if event.epochs else 1.0

    def _apply(self, event: ly.SeedStageChanged) -> None:
        seed_id, to_stage = event.seed_id, event.to_stage
        if to_stage == ly.SEED_STAGE_GERMINATED:
            self._bed.plant(seed_id, self._slots[event.slot], self._prepared.pop(seed_id))
        elif to_stage == ly.SEED_STAGE_BLENDING:
            self._bed.blend(
                seed_id,
                steps=round(event.metrics[BLEND_STEPS]),
                mode=event.blend_mode or ly.BLEND_MODE_RESIDUAL,
                curve=CURVE_NAMES.get(event.alpha_curve),
            )
        elif to_stage == ly.SEED_STAGE_FOSSILIZED:
            act = self._bed.fold if self.lifecycle.seeds[seed_id].folded else self._bed.fossilize
            act(seed_id)
        elif to_stage == ly.SEED_STAGE_TERMINATED:
            self._bed.prune(seed_id)
        elif to_stage == ly.SEED_STAGE_CULLED and event.metrics.get(FALL_STEPS):
            self._bed.fall(seed_id, steps=round(event.metrics[FALL_STEPS]))
        elif to_stage in (ly.SEED_STAGE_CULLED, ly.SEED_STAGE_EMBARGOED) and seed_id in self._bed.live:
            self._bed.uproot(seed_id)
        elif to_stage == ly.SEED_STAGE_DORMANT:
            self._bed.forget(seed_id)
        if seed_id in self._bed.live:  # A fine-tuning is of one stage.
            self._bed.live[seed_id].trainer.rate_factor = 1.0


def _train_on(_command: ly.AdaptationCommand, _epoch: int, _recorded: ly.CommandOutcome | None) -> EdgeDecision:
    return EdgeDecision(result=ly.COMMAND_RESULT_APPLIED)
