"""Orders about a run as a whole that are the trainer's to carry out: ROLLBACK and OPTIMIZER; and returns after faults.

Everything here is a function of the run's own packets, outcomes and checkpoints. A recorded return binds: a repeat goes
where the record went, and is held against it. What is restored is captured once more and must be the very bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from esper.core.checkpoint import Saved, read_checkpoint, refused
from esper.core.digest import state_digest
from esper.core.errors import IntegrityError
from esper.core.ids import derive_id, sha256_hex
from esper.core.kernel import BlobMissing
from esper.core.ports import EdgeDecision, KernelUnavailable
from esper.leyline import messages as ly
from esper.tolaria.loop._faults import LOSS_SPIKE, LossHistory
from esper.tolaria.loop._optimizer_orders import RATE_FACTOR, adjust, adjustment_problem, set_rate_factor
from esper.tolaria.loop._return_rules import Return, ReturnLimits, Ruling, Unavailable, diverged, wanted_epoch
from esper.tolaria.record._checkpoint import RunState, capture_run, digest_in, position_in, restore_run
from esper.tolaria.record._journal import Answer
from esper.tolaria.record._keepers import CheckpointUnusable
from esper.tolaria.record._points import ReturnPoints
from esper.tolaria.record._recording import Difference, NotRepeated

_log = logging.getLogger("esper.tolaria.returns")

#: What a repeat of a return must give again.
_COMPARED_FIELDS: Final = ("to_epoch", "checkpoint_digest", "digest_before", "digest_after", "rate_factor", "faults")


class RunOrders:
    """Judges and carries out the orders of one attempt at one run. `state` is the run itself."""

    def __init__(
        self, run_id: str, attempt: int, state: RunState, points: ReturnPoints, limits: ReturnLimits | None
    ) -> None:
        self._run_id = run_id
        self._attempt = attempt
        self._state = state
        self._points = points
        #: None: a fault is nobody's business here.
        self._limits = limits
        self._history = LossHistory()
        self._fault = ""
        self._due: Return | None = None
        self._halted_at = 0
        #: Returns that faults forced so far.
        self.faults = 0

    # -- what was -------------------------------------------------------------------------------------------

    def recall(self, packets: Iterable[ly.SystemStatePacket], outcomes: Iterable[ly.CommandOutcome]) -> None:
        """Take note of earlier epochs of the run, in their order."""
        for packet in packets:
            self._history = self._history.fold(packet)
        for outcome in outcomes:
            self._note(outcome)

    def _note(self, outcome: ly.CommandOutcome) -> None:
        self._history = self._history.fold(outcome)
        if outcome.HasField("rolled_back"):
            self.faults = int(outcome.rolled_back.faults)
        if outcome.result != ly.COMMAND_RESULT_APPLIED:
            return
        if outcome.command_type == ly.COMMAND_EMERGENCY:
            self._halted_at = outcome.epoch
        elif outcome.command_type == ly.COMMAND_PAUSE and outcome.command.pause.resume:
            self._halted_at = 0

    # -- an edge --------------------------------------------------------------------------------------------

    def see(self, packet: ly.SystemStatePacket) -> str:
        """Look at an epoch before its packet is appended; return its fault, "" if there is none to act on.

        The packet is told where it follows on, if the run had returned: whoever reads packets alone, as Tamiyo does,
        then knows which epochs lead to it.

        Raises:
            TrainingDiverged: there is one, and nothing to return to, or the run returned often enough.
        """
        self._history = self._history.fold(packet)
        self._fault, self._due = "", None
        limits, epoch = self._limits, packet.current_epoch
        before = self._history.before(epoch)
        if before != epoch - 1:
            packet.follows_epoch = before
        if limits is None or epoch <= self._points.repeated_epochs:
            return ""  # What came of it stands in the record.
        fault = self._history.fault(packet, spike_factor=limits.spike_factor)
        if not fault or not self._worth_it(fault, packet, limits):
            return ""
        self._fault = fault
        return fault

    def _worth_it(self, fault: str, packet: ly.SystemStatePacket, limits: ReturnLimits) -> bool:
        """Find where to return to; a spike in a run that keeps nothing to return to is let be."""
        if self.faults < limits.rollbacks_max:
            self._due = self._latest(packet, fault)
            if self._due is not None:
                return True
        if self.faults or fault != LOSS_SPIKE:
            raise diverged(self._run_id, packet, fault, returned=self.faults)
        return False

    def rule(self, packet: ly.SystemStatePacket, answer: Answer) -> Ruling | None:
        """Return what becomes of the edge of `packet`; None where it is the controller's alone to judge.

        Raises:
            NotRepeated: in re-execution, a return comes out otherwise than recorded.
            CheckpointUnusable: in re-execution, what the record returns to is not at hand.
        """
        command, recorded = answer.command, answer.recorded
        if recorded is not None and recorded.HasField("rolled_back"):
            return self._again(packet, recorded)
        kind = ly.COMMAND_UNKNOWN if command is None else command.command_type
        refusal = ""
        if recorded is not None and recorded.reason == "unsupported_command":
            return None  # It was recorded before anybody knew how to carry it out.
        if kind == ly.COMMAND_ROLLBACK and command is not None:
            if recorded is not None:
                return Ruling(EdgeDecision(result=recorded.result, reason=recorded.reason))
            try:
                back = self._ordered(packet, command)
                return _going_back(ly.COMMAND_RESULT_APPLIED, "", back)
            except Unavailable as error:
                refusal = error.reason
        if self._due is not None and recorded is None:
            result = ly.COMMAND_RESULT_NONE if command is None else ly.COMMAND_RESULT_REJECTED
            return _going_back(result, self._fault, self._due)
        if kind == ly.COMMAND_OPTIMIZER and command is not None:
            refusal = adjustment_problem(command, self._state.optimizer)
            return Ruling(_decision(ly.COMMAND_RESULT_REJECTED if refusal else ly.COMMAND_RESULT_APPLIED, refusal))
        return Ruling(_decision(ly.COMMAND_RESULT_REJECTED, refusal)) if refusal else None

    def settle(self, outcome: ly.CommandOutcome, back: Return | None) -> None:
        """Carry out what an acknowledged outcome says: return to the checkpoint, or set the optimiser.

        Raises:
            IntegrityError: what was restored is not byte for byte what the checkpoint holds.
        """
        self._note(outcome)
        if back is not None:
            self._stand_again(back)
            return
        applied = outcome.result == ly.COMMAND_RESULT_APPLIED
        if applied and outcome.command_type == ly.COMMAND_OPTIMIZER and self._state.optimizer is not None:
            adjust(self._state.optimizer, outcome.command.optimizer_adjustment)

    # -- returns --------------------------------------------------------------------------------------------

    def _stand_again(self, back: Return) -> None:
        state, event = self._state, back.event
        position = restore_run(back.content, state, again=True)
        if capture_run(state, position) != back.content:
            raise refused(f"what stands now is not the checkpoint of epoch {event.to_epoch}, byte for byte")
        state.controller.go_on(to_epoch=event.to_epoch)
        if state.optimizer is not None:
            set_rate_factor(state.optimizer, event.rate_factor)
            state.optimizer.zero_grad()
        _log.warning(
            "run %s: %s at the edge of epoch %d; it stands as at the end of epoch %d, byte for byte",
            self._run_id, event.reason, event.from_epoch, event.to_epoch,
        )  # fmt: skip

    def _latest(self, packet: ly.SystemStatePacket, fault: str) -> Return | None:
        """Return the return to the newest checkpoint of the run's own line that verifies; None without any."""
        for epoch in self._candidates(packet.current_epoch):
            try:
                return self._to(packet, epoch, reason=fault, faults=self.faults + 1)
            except Unavailable as error:
                _log.warning("run %s cannot return to epoch %d: %s", self._run_id, epoch, error.reason)
        return None

    def _candidates(self, epoch: int) -> list[int]:
        line = set(self._history.line(epoch))
        return [earlier for earlier in self._points.epochs() if earlier in line and earlier > self._halted_at]

    def _ordered(self, packet: ly.SystemStatePacket, command: ly.AdaptationCommand) -> Return:
        wanted = wanted_epoch(command)
        if wanted is None:
            back = self._latest(packet, "command")
            if back is None:
                raise Unavailable("no_checkpoint")
            event = back.event
            event.faults, event.rate_factor = self.faults, self._rate_factor(back.content, self.faults)
        elif wanted >= packet.current_epoch:
            raise Unavailable("not_in_the_past")
        elif wanted <= self._halted_at:
            raise Unavailable("before_emergency")
        else:
            back = self._to(packet, wanted, reason="command", faults=self.faults)
        back.event.command_id = command.command_id
        return back

    def _again(self, packet: ly.SystemStatePacket, recorded: ly.CommandOutcome) -> Ruling:
        """Return as the record says, held against it."""
        then = recorded.rolled_back
        try:
            back = self._to(
                packet, then.to_epoch, reason=then.reason, faults=then.faults, digest=then.checkpoint_digest
            )
        except Unavailable as error:
            raise CheckpointUnusable(
                f"run {self._run_id} cannot return to epoch {then.to_epoch} as recorded", cause=error.reason
            ) from error
        back.event.command_id = then.command_id
        for name in _COMPARED_FIELDS:
            expected, found = getattr(then, name), getattr(back.event, name)
            if repr(expected) != repr(found):
                difference = Difference(packet.current_epoch, f"rolled_back.{name}", repr(expected), repr(found))
                raise NotRepeated(self._run_id, difference)
        return _going_back(recorded.result, recorded.reason, back)

    def _to(self, packet: ly.SystemStatePacket, epoch: int, *, reason: str, faults: int, digest: str = "") -> Return:
        try:
            content = self._points.content(epoch, digest=digest)
            weights = digest_in(content)
            event = ly.RunRolledBack(
                run_id=self._run_id,
                attempt=self._attempt,
                from_epoch=packet.current_epoch,
                to_epoch=epoch,
                checkpoint_digest=sha256_hex(content),
                reason=reason,
                digest_before=packet.weights_digest or state_digest(self._state.weights()),
                digest_after=weights,
                rate_factor=self._rate_factor(content, faults),
                faults=faults,
            )
            event.meta.event_id = derive_id(self._run_id, "rolled-back", packet.current_epoch)
            saved = Saved(read_checkpoint(content).facts["controller"])
            moves = self._state.controller.prepare_return(saved, epoch=packet.current_epoch, to_epoch=epoch)
        except BlobMissing as error:
            raise Unavailable("no_checkpoint") from error
        except KernelUnavailable as error:
            raise Unavailable(f"kernel:{error.reason}") from error
        except (IntegrityError, KeyError, TypeError, ValueError) as error:
            raise Unavailable("damaged") from error
        return Return(content, event, tuple(moves))

    def _rate_factor(self, content: bytes, faults: int) -> float:
        """Return the checkpoint's own share of the rate, made less for each fault since it was taken."""
        facts = read_checkpoint(content).facts
        groups = facts["groups"]
        kept = float(groups[0].get(RATE_FACTOR, 1.0)) if groups else 1.0
        since = faults - position_in(facts).faults
        return kept * (self._limits.rate_factor**since if self._limits is not None else 1.0)


def _going_back(result: ly.CommandResult, reason: str, back: Return) -> Ruling:
    return Ruling(EdgeDecision(result=result, reason=reason, events=back.moves), back)


def _decision(result: ly.CommandResult, reason: str = "") -> EdgeDecision:
    return EdgeDecision(result=result, reason=reason)
