"""Who tells the story of `story.py`: into a log in memory or through a real broker, run by run.

Times are milliseconds of the log in memory; a real broker has its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

from esper.core.ids import derive_id
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from tests.projection.log import Log
from tests.projection.system import System

BEGINNING_MS = 1_700_000_000_000
HEURISTIC, LEARNED = ("heuristic", "1", "a" * 64), ("learned", "v1", "b" * 64)


def named(name: str) -> str:
    """Return the id of the event that the story calls `name`."""
    return derive_id("story", name)


class Writer(Protocol):
    """Whoever appends what the story tells."""

    def tell(
        self, message: EventMessage, key: str, *, event_id: str | None = None, cause: str = "", after_ms: int = 0
    ) -> None:
        """Append an event, `after_ms` later than the one before."""


@dataclass
class InMemory:
    """Tells into a log in memory, whose clock stands still between events unless the story moves it."""

    log: Log = field(default_factory=Log)
    now_ms: int = BEGINNING_MS + 1_000

    def tell(
        self, message: EventMessage, key: str, *, event_id: str | None = None, cause: str = "", after_ms: int = 0
    ) -> None:
        """Append an event at this story's own time."""
        self.now_ms += after_ms
        message.meta.causation_id = cause
        self.log.append_raw(replace(self.log.sign(message, key=key, event_id=event_id), append_time_ms=self.now_ms))


@dataclass
class Published:
    """Publishes through a real broker, as the first source that may write each event."""

    system: System

    def tell(
        self, message: EventMessage, key: str, *, event_id: str | None = None, cause: str = "", after_ms: int = 0
    ) -> None:
        """Append an event now."""
        self.system.publish(message, key=key, event_id=event_id, causation_id=cause)


@dataclass
class Run:
    """One run as its worker and its controller tell it."""

    writer: Writer
    run_id: str
    task: str = "digits"
    policy: tuple[str, str, str] = HEURISTIC
    seed: int = 1
    attempt: int = 1

    def request(self, *, epochs: int = 3) -> None:
        """Ask for the run."""
        request = ly.TrainingRunRequested(
            run_id=self.run_id, task=self.task, host="mlp", policy=self.policy[0], epochs=epochs, seed=self.seed
        )
        self.writer.tell(request, self.run_id, after_ms=1_000)

    def take(self, *, resumed: int = 0) -> None:
        """Claim the attempt after two seconds and start it half a second later."""
        claim = ly.TrainingRunClaimed(run_id=self.run_id, attempt=self.attempt, worker="tolaria-0")
        self.writer.tell(claim, self.run_id, after_ms=2_000)
        start = ly.TrainingRunStarted(
            run_id=self.run_id, attempt=self.attempt, worker="tolaria-0", resumed_epochs=resumed
        )
        self.writer.tell(start, self.run_id, after_ms=500)

    def packet(
        self,
        epoch: int,
        val_loss: float,
        *,
        losses: tuple[float, float] | None = None,
        growth: ly.GrowthState | None = None,
    ) -> None:
        """Finish an epoch after a second; `losses` are the held-out ones without and with the seed."""
        packet = ly.SystemStatePacket(
            training_run_id=self.run_id, attempt=self.attempt, current_epoch=epoch, training_loss=val_loss,
            validation_loss=val_loss, validation_accuracy=1 - val_loss / 2, task=self.task, host="mlp",
            policy=self.policy[0], seed=self.seed, parameters=100, multiply_adds=1_000 * epoch,
            growth=growth,
        )  # fmt: skip
        if losses is not None:
            metrics = {"loss_seed_off": losses[0], "loss_seed_on": losses[1]}
            packet.seed_states.add(seed_id="hidden.1", slot="hidden", stage=ly.SEED_STAGE_TRAINING, metrics=metrics)
        self.writer.tell(packet, self.run_id, event_id=self._id("state", epoch), after_ms=1_000)

    def decide(
        self, epoch: int, operation: ly.SeedOperation = ly.SEED_OP_UNKNOWN, blueprint: str = "", *, decided_ms: int = 4
    ) -> None:
        """Decide, and order it a millisecond later; no operation: go on."""
        command = ly.AdaptationCommand(
            command_id=self._id("command", epoch), training_run_id=self.run_id, epoch=epoch,
            command_type=ly.COMMAND_SEED if operation else ly.COMMAND_CONTINUE, target_seed_id="hidden.1",
            decision_id=self._id("decision", epoch),
            seed_operation=ly.CommandSeedOperation(operation=operation, blueprint_id=blueprint, slot="hidden"),
        )  # fmt: skip
        name, version, digest = self.policy
        decision = ly.DecisionMade(
            run_id=self.run_id, attempt=self.attempt, epoch=epoch, state_event_id=self._id("state", epoch), policy=name,
            policy_version=version, policy_digest=digest, proposed=command, command_id=command.command_id,
            log_probability=-0.5,
        )  # fmt: skip
        self.writer.tell(decision, self.run_id, event_id=self._id("decision", epoch), after_ms=decided_ms)
        self.writer.tell(command, self.run_id, event_id=command.command_id, after_ms=1)

    def settle(
        self,
        epoch: int,
        operation: ly.SeedOperation = ly.SEED_OP_UNKNOWN,
        *,
        refused: str = "",
        late: int | None = None,
    ) -> None:
        """Say five milliseconds later what became of the command; `late`: the epoch of one that came too late."""
        outcome = ly.CommandOutcome(
            run_id=self.run_id, attempt=self.attempt, epoch=epoch, state_event_id=self._id("state", epoch),
            result=ly.COMMAND_RESULT_REJECTED if refused else ly.COMMAND_RESULT_APPLIED, reason=refused,
            command_id=self._id("command", epoch), decision_id=self._id("decision", epoch), latency_ms=9.5,
            command_type=ly.COMMAND_SEED if operation else ly.COMMAND_CONTINUE, seed_operation=operation,
            seed_id="hidden.1" if operation else "",
        )  # fmt: skip
        if late is not None:
            outcome.late_commands.add(command_id=self._id("command", late), epoch=late, reason="outcome_exists")
        self.writer.tell(outcome, self.run_id, event_id=self._id("outcome", epoch), after_ms=5)

    def unanswered(self, epoch: int) -> None:
        """Give the wait for a command up after ten seconds."""
        outcome = ly.CommandOutcome(
            run_id=self.run_id, attempt=self.attempt, epoch=epoch, state_event_id=self._id("state", epoch),
            result=ly.COMMAND_RESULT_NONE, reason="timeout",
        )  # fmt: skip
        self.writer.tell(outcome, self.run_id, event_id=self._id("outcome", epoch), after_ms=10_000)

    def epoch(self, epoch: int, val_loss: float, operation: ly.SeedOperation, blueprint: str = "") -> None:
        """Finish, decide and settle an epoch."""
        self.packet(epoch, val_loss)
        self.decide(epoch, operation, blueprint)
        self.settle(epoch, operation)

    def move(
        self,
        epoch: int,
        stage: str,
        blueprint: str,
        *,
        came_from: str,
        losses: tuple[float, float] | None = None,
        reason: str = "command",
    ) -> None:
        """Move the seed."""
        moved = ly.SeedStageChanged(
            run_id=self.run_id, attempt=self.attempt, epoch=epoch, seed_id="hidden.1", slot="hidden",
            blueprint_id=blueprint, from_stage=ly.SeedLifecycleStage.Value(f"SEED_STAGE_{came_from}"),
            to_stage=ly.SeedLifecycleStage.Value(f"SEED_STAGE_{stage}"), reason=reason,
            command_id=self._id("command", epoch), gates_not_measured=[ly.SEED_GATE_G1_GRADIENT_HEALTH],
        )  # fmt: skip
        if losses is not None:
            moved.metrics.update({"loss_seed_off": losses[0], "loss_seed_on": losses[1]})
        self.writer.tell(moved, self.run_id)

    def gate(self, epoch: int, gate: ly.SeedLifecycleGate, gain: float) -> None:
        """Measure a gate that asks for a gain of 0.01."""
        check = ly.GateCheck(name="loss_gain", value=gain, bound=0.01, comparison=">=", passed=gain >= 0.01)
        sound = ly.GateCheck(name="losses_not_finite", value=0, bound=0, comparison="==", passed=True)
        measured = ly.GateEvaluated(
            run_id=self.run_id, attempt=self.attempt, epoch=epoch, seed_id="hidden.1", gate=gate, passed=check.passed,
            checks=[sound, check],
        )  # fmt: skip
        self.writer.tell(measured, self.run_id)

    def report(self, epoch: int, outcome: str, *, gain: float | None = None, reward: float = 0.0) -> None:
        """Close the decision of an epoch."""
        report = ly.FieldReport(
            report_id=self._id("report", epoch), decision_id=self._id("decision", epoch), training_run_id=self.run_id,
            episode_id=self.run_id, epoch=epoch, seed_id="hidden.1", blueprint_id="BP003",
            outcome=ly.FieldReportOutcome.Value(f"FIELD_REPORT_OUTCOME_{outcome}"),
            command_result=ly.COMMAND_RESULT_APPLIED, command_type=ly.COMMAND_SEED,
            seed_operation=ly.SEED_OP_START_GRAFTING, tamiyo_policy_version=self.policy[1],
            reward_parts={"validation_gain": reward + 0.25, "parameter_rent": -0.25},
        )  # fmt: skip
        if gain is not None:
            report.counterfactual_gain = gain
        self.writer.tell(report, self.run_id)

    def finish(self, *, accuracy: float, loss: float, epochs: int = 3, kept: str = "") -> None:
        """End well, a second after the last epoch."""
        finished = ly.TrainingRunFinished(
            run_id=self.run_id, attempt=self.attempt, epochs=epochs, accuracy=accuracy, loss=loss, parameters=120,
            multiply_adds=9_000, multiply_adds_per_sample=30, digest="f" * 64,
        )  # fmt: skip
        if kept:
            finished.seeds.add(seed_id="hidden.1", slot="hidden", blueprint_id=kept, stage=ly.SEED_STAGE_FOSSILIZED)
        self.writer.tell(finished, self.run_id, after_ms=1_000)

    def _id(self, what: str, epoch: int) -> str:
        return derive_id(self.run_id, what, epoch)
