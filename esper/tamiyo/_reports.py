"""How a decision turned out: the FieldReport that closes it, as a pure function of the run's state.

Window. A GERMINATE that was applied is observed until its seed is fossilised, culled or gone; everything else for
one epoch, to the next packet. The end of the run cuts a window short (`truncated`); `terminated` says that the run
finished all its epochs, so that nothing comes after.

Outcome. ABORTED: the order was not carried out, which the risk gate may have seen to, or the run failed inside the
window. Otherwise the gain decides,
relative to the loss without it: SUCCESS above +NEUTRAL_BAND, REGRESSION below -NEUTRAL_BAND, else NEUTRAL. The gain
is the counterfactual one (held-out loss with the seed off minus on, same data, same weights; for a seed still in
TRAINING "on" is the shadow forward) where the decision concerns a seed and it was measured, because that credits the
seed alone; else the fall of the validation loss in the window.

A report is about what the policy proposed, also where the run was sent another command: `command_type`,
`seed_operation` and the seed are the proposal's, `command_result` is what became of the command that was sent, and
the reward is what the run made of it. That is what the proposal led to in this environment, of which the gate is part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from esper.core.ids import derive_id
from esper.leyline import messages as ly
from esper.tamiyo._facts import SETTLED_STAGES, DecisionFacts, OutcomeFacts, PacketFacts
from esper.tamiyo._state import RunState

REPORT_VERSION = 1
#: One per cent of the loss: less than that is within the epoch-to-epoch noise of a validation set of a few hundred.
NEUTRAL_BAND = 0.01


@dataclass(frozen=True)
class Window:
    """What a decision is judged by; `end` is None when no packet came after the decision."""

    begin: PacketFacts
    end: PacketFacts | None
    truncated: bool

    @property
    def epochs(self) -> int:
        """Epochs observed."""
        return 0 if self.end is None else self.end.epoch - self.begin.epoch


def report_of(state: RunState, decision: DecisionFacts) -> ly.FieldReport | None:
    """Return the report that closes `decision`, or None while its window or its outcome is still open."""
    outcome = state.outcomes.get(decision.epoch)
    begin = state.packets.get(decision.epoch)
    if begin is None or (outcome is None and not state.ended):
        return None
    seed_id = outcome.seed_id if outcome is not None and outcome.seed_id else decision.seed_id
    window = _window(state, decision, begin, seed_id if _is_long(decision, outcome) else "")
    return None if window is None else _report(state, decision, window, outcome, seed_id)


def _is_long(decision: DecisionFacts, outcome: OutcomeFacts | None) -> bool:
    applied = outcome is not None and outcome.result == ly.COMMAND_RESULT_APPLIED
    return applied and decision.operation == ly.SEED_OP_GERMINATE and not decision.overridden


def _window(state: RunState, decision: DecisionFacts, begin: PacketFacts, long_seed: str) -> Window | None:
    end = _settling_packet(state, decision.epoch, long_seed) if long_seed else state.next_packet(decision.epoch)
    if end is not None:
        return Window(begin, end, truncated=False)
    if not state.ended:
        return None
    last = state.latest
    return Window(begin, last if last is not None and last.epoch > begin.epoch else None, truncated=True)


def _settling_packet(state: RunState, epoch: int, seed_id: str) -> PacketFacts | None:
    """Return the first packet after `epoch` in which the seed is fossilised, culled or, once seen, gone."""
    seen = False
    for later in sorted(later for later in state.packets if later > epoch):
        seed = state.packets[later].seed(seed_id)
        if (seed is None and seen) or (seed is not None and seed.stage in SETTLED_STAGES):
            return state.packets[later]
        seen = seen or seed is not None
    return None


@dataclass(frozen=True)
class Effect:
    """The last counterfactual measurement of a seed inside a window: held-out losses without and with it."""

    loss_seed_off: float
    loss_seed_on: float

    @property
    def gain(self) -> float:
        """Loss that the seed saves; positive where it helps."""
        return self.loss_seed_off - self.loss_seed_on


def _report(
    state: RunState, decision: DecisionFacts, window: Window, outcome: OutcomeFacts | None, seed_id: str
) -> ly.FieldReport:
    result = outcome.result if outcome is not None else ly.COMMAND_RESULT_NONE
    finished = state.end is not None and state.end.finished
    applied = result == ly.COMMAND_RESULT_APPLIED and not decision.overridden
    carried_out = applied and (finished or not window.truncated)
    effect = _effect(state, window, seed_id)
    report = ly.FieldReport(
        version=REPORT_VERSION,
        report_id=derive_id(state.run_id, "report", decision.decision_id),
        decision_id=decision.decision_id,
        command_id=decision.command_id,
        training_run_id=state.run_id,
        episode_id=state.run_id,
        epoch=decision.epoch,
        seed_id=seed_id,
        blueprint_id=decision.blueprint_id or _blueprint_of(window, seed_id),
        outcome=_verdict(window, effect) if carried_out else ly.FIELD_REPORT_OUTCOME_ABORTED,
        command_result=result,
        command_type=decision.command_type,
        seed_operation=decision.operation,
        metrics=_metrics(window, effect),
        reward_parts=_reward_parts(state, window),
        observation_window_begin_epoch=window.begin.epoch,
        observation_window_epochs=window.epochs,
        tamiyo_policy_version=decision.policy_version,
        notes=_notes(decision, outcome, window, finished=finished),
        next_state_event_id="" if window.end is None else window.end.event_id,
        terminated=window.truncated and finished,
        truncated=window.truncated,
        policy_digest=decision.policy_digest,
        policy_event_id=decision.policy_event_id,
    )
    report.meta.event_id = report.report_id
    report.meta.causation_id = decision.decision_id
    if effect is not None:
        report.counterfactual_gain = effect.gain
    return report


def _blueprint_of(window: Window, seed_id: str) -> str:
    seed = window.begin.seed(seed_id)
    return "" if seed is None else seed.blueprint_id


def _effect(state: RunState, window: Window, seed_id: str) -> Effect | None:
    """Return the window's last measurement of the seed; the packet of the decision itself lies before the window."""
    if window.end is None or not seed_id:
        return None
    for packet in reversed(state.history(window.end.epoch)):
        if packet.epoch <= window.begin.epoch:
            return None
        seed = packet.seed(seed_id)
        off, on = (seed.metric("loss_seed_off"), seed.metric("loss_seed_on")) if seed is not None else (None, None)
        if off is not None and on is not None:
            return Effect(off, on)
    return None


def _verdict(window: Window, effect: Effect | None) -> ly.FieldReportOutcome:
    if effect is not None:
        return _judge(effect.loss_seed_off, effect.loss_seed_on)
    if window.end is None:
        return ly.FIELD_REPORT_OUTCOME_NEUTRAL  # nothing came after it that could speak for or against it
    return _judge(window.begin.validation_loss, window.end.validation_loss)


def _judge(before: float, after: float) -> ly.FieldReportOutcome:
    if not math.isfinite(after):
        return ly.FIELD_REPORT_OUTCOME_REGRESSION
    if not math.isfinite(before):
        return ly.FIELD_REPORT_OUTCOME_SUCCESS
    if before - after > NEUTRAL_BAND * abs(before):
        return ly.FIELD_REPORT_OUTCOME_SUCCESS
    if after - before > NEUTRAL_BAND * abs(before):
        return ly.FIELD_REPORT_OUTCOME_REGRESSION
    return ly.FIELD_REPORT_OUTCOME_NEUTRAL


def _metrics(window: Window, effect: Effect | None) -> dict[str, float]:
    """Return the finite raw figures at both ends of the window; what is absent was not measured."""
    figures = _packet_metrics(window.begin, "begin")
    if window.end is not None:
        figures |= _packet_metrics(window.end, "end")
    if effect is not None:
        figures |= {"loss_seed_off": effect.loss_seed_off, "loss_seed_on": effect.loss_seed_on}
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _packet_metrics(packet: PacketFacts, suffix: str) -> dict[str, float]:
    return {
        f"training_loss_{suffix}": packet.training_loss,
        f"validation_loss_{suffix}": packet.validation_loss,
        f"validation_accuracy_{suffix}": packet.validation_accuracy,
        f"parameters_{suffix}": float(packet.parameters),
        f"multiply_adds_{suffix}": float(packet.multiply_adds),
    }


def _reward_parts(state: RunState, window: Window) -> dict[str, float]:
    """Return the unweighted parts of the reward, costs negative; whoever learns chooses the weights.

    validation_gain: fall of the validation loss in the window.
    parameter_rent: extra parameters at its end, as a share of the run's first, for the share of the run it lasted.
    compute: multiply-adds spent in it, as a share of what the run would cost at the price of its first packet.
    stability: minus the largest share by which the validation loss rose from one packet of it to the next; absent
        where it became no number, which `notes` say.
    """
    if window.end is None:
        return {}
    first = state.packets[min(state.packets)]
    planned = max(1, window.begin.epochs_planned, window.end.epoch)
    extra = window.end.parameters / max(1, first.parameters) - 1.0
    spent = (window.end.multiply_adds - window.begin.multiply_adds) * first.epoch
    parts = {
        "validation_gain": window.begin.validation_loss - window.end.validation_loss,
        "parameter_rent": -extra * window.epochs / planned,
        "compute": -spent / (max(1, first.multiply_adds) * planned),
        "stability": -_largest_rise(state, window.begin, window.end),
    }
    return {name: value for name, value in parts.items() if math.isfinite(value)}


def _largest_rise(state: RunState, begin: PacketFacts, end: PacketFacts) -> float:
    """Return the largest relative rise of the validation loss between packets that follow each other; 0.0 without."""
    line = [packet for packet in state.history(end.epoch) if begin.epoch <= packet.epoch]
    rises = [
        (after.validation_loss - before.validation_loss) / abs(before.validation_loss)
        for before, after in pairwise(line)
        if before.validation_loss
    ]
    return max((0.0, *rises)) if all(map(math.isfinite, rises)) else math.inf


def _notes(decision: DecisionFacts, outcome: OutcomeFacts | None, window: Window, *, finished: bool) -> str:
    notes = [f"overridden: {decision.override_reason}"] if decision.overridden else []
    if outcome is None:
        notes.append("the run ended before the command had an outcome")
    elif outcome.reason:
        notes.append(outcome.reason)
    if window.truncated:
        notes.append("the run finished inside the window" if finished else "the run failed inside the window")
    if window.end is not None and not math.isfinite(window.end.validation_loss):
        notes.append("the validation loss is not finite")
    return "; ".join(notes)
