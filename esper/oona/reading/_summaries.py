"""One line for an event: what it says, for people who follow a chain of events. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import Message

from esper.leyline import messages as ly

#: Enough of a digest to tell two apart by eye.
_DIGEST_SHOWN: Final = 12


def summary_of(message: Message) -> str:
    """Return what an event says in one line; nothing for types that chains do not meet."""
    summarise = _SUMMARIES.get(type(message))
    return "" if summarise is None else summarise(message)


def _requested(message: ly.TrainingRunRequested) -> str:
    what = f"{message.task} on {message.host}, policy {message.policy}"
    return f"{what}, {message.epochs} epochs, seed {message.seed}"


def _state(message: ly.SystemStatePacket) -> str:
    measured = f"validation loss {message.validation_loss:.4f}, accuracy {message.validation_accuracy:.4f}"
    seeds = ", ".join(f"{seed.seed_id} {_word(ly.SeedLifecycleStage, seed.stage)}" for seed in message.seed_states)
    return f"epoch {message.current_epoch}: {measured}" + (f", seeds {seeds}" if seeds else "")


def _decision(message: ly.DecisionMade) -> str:
    words = ["policy", message.policy, message.policy_version, message.policy_digest[:_DIGEST_SHOWN]]
    text = f"{' '.join(word for word in words if word)}: {_order(message.proposed)}"
    if message.overridden:
        text += f", overridden: {message.override_reason}"
    return text + (f" ({'; '.join(message.reasons)})" if message.reasons else "")


def _command(message: ly.AdaptationCommand) -> str:
    return f"{_order(message)} by {message.issued_by or message.meta.source}"


def _order(command: ly.AdaptationCommand) -> str:
    """Return what a command orders, without who does."""
    words = [_word(ly.CommandType, command.command_type)]
    if command.HasField("seed_operation"):
        order = command.seed_operation
        words += [_word(ly.SeedOperation, order.operation), order.blueprint_id, command.target_seed_id]
        words += [f"in {order.slot}"] if order.slot else []
    return " ".join(word for word in words if word)


def _gate(message: ly.GateEvaluated) -> str:
    verdict = "passed" if message.passed else "failed"
    checks = "; ".join(
        f"{check.name} {check.value:.4g} {check.comparison} {check.bound:.4g}" + ("" if check.passed else " fails")
        for check in message.checks
    )
    gate = _word(ly.SeedLifecycleGate, message.gate)
    return f"{gate} of {message.seed_id} {verdict}" + (f": {checks}" if checks else "")


def _moved(message: ly.SeedStageChanged) -> str:
    move = _move(message.from_stage, message.to_stage)
    return f"{message.seed_id} {move}" + (f" ({message.reason})" if message.reason else "")


def _refused(message: ly.SeedMoveRejected) -> str:
    return f"{message.seed_id} {_move(message.from_stage, message.to_stage)} refused: {message.reason}"


def _tuned(message: ly.SeedTuned) -> str:
    return f"{message.seed_id} learns at {message.rate_factor:g} of its rate for {message.epochs} epochs"


def _quarantined(message: ly.KernelQuarantined) -> str:
    verdict = _word(ly.QuarantineVerdict, message.verdict)
    return f"{message.blueprint_id} in quarantine for {message.slot}: {verdict} ({message.detail})"


def _move(before: ly.SeedLifecycleStage, after: ly.SeedLifecycleStage) -> str:
    return f"{_word(ly.SeedLifecycleStage, before)} -> {_word(ly.SeedLifecycleStage, after)}"


def _outcome(message: ly.CommandOutcome) -> str:
    result = _word(ly.CommandResult, message.result).lower()
    late = f", {len(message.late_commands)} late" if message.late_commands else ""
    return f"epoch {message.epoch}: {result}" + (f": {message.reason}" if message.reason else "") + late


def _report(message: ly.FieldReport) -> str:
    parts = ", ".join(f"{name} {value:.4g}" for name, value in sorted(message.reward_parts.items()))
    gain = f", counterfactual gain {message.counterfactual_gain:.4g}" if message.HasField("counterfactual_gain") else ""
    return _word(ly.FieldReportOutcome, message.outcome).lower() + (f": {parts}" if parts else "") + gain


def _claimed(message: ly.TrainingRunClaimed) -> str:
    return f"attempt {message.attempt} by {message.worker}"


def _finished(message: ly.TrainingRunFinished) -> str:
    return f"{message.epochs} epochs, accuracy {message.accuracy:.4f}, loss {message.loss:.4f}"


def _failed(message: ly.TrainingRunFailed) -> str:
    return f"{message.reason}: {message.detail}" if message.detail else message.reason


def _kernel(message: ly.KernelCatalogUpdate) -> str:
    return f"{message.blueprint_id} as {message.artifact_ref[:_DIGEST_SHOWN]}"


def _word(enum: Any, number: int) -> str:  # noqa: ANN401 - any enum of the contract
    """Return an enum value's name without the prefix that all names of the enum share."""
    if number not in enum.values():
        return str(number)
    name = str(enum.Name(number))
    return next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)


#: Longer ones first, where one begins with another.
_PREFIXES: Final = (
    "COMMAND_RESULT_",
    "COMMAND_",
    "SEED_STAGE_",
    "SEED_GATE_",
    "SEED_OP_",
    "FIELD_REPORT_OUTCOME_",
    "QUARANTINE_VERDICT_",
)

_SUMMARIES: Final[dict[type[Message], Callable[[Any], str]]] = {
    ly.AdaptationCommand: _command,
    ly.CommandOutcome: _outcome,
    ly.DecisionMade: _decision,
    ly.FieldReport: _report,
    ly.GateEvaluated: _gate,
    ly.KernelCatalogUpdate: _kernel,
    ly.KernelQuarantined: _quarantined,
    ly.SeedMoveRejected: _refused,
    ly.SeedTuned: _tuned,
    ly.SeedStageChanged: _moved,
    ly.SystemStatePacket: _state,
    ly.TrainingRunClaimed: _claimed,
    ly.TrainingRunFailed: _failed,
    ly.TrainingRunFinished: _finished,
    ly.TrainingRunRequested: _requested,
}
