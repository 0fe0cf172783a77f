"""What the gate makes of a proposal: which command, with which reason, and that healthy runs never meet it."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.leyline import messages as ly
from esper.tamiyo import RunState, decide, fold, known_policies
from esper.tamiyo._due import command_to_send, packet_to_decide, reports_due
from esper.tamiyo.risk import Alarm, BlueprintFacts, Surroundings, judge
from tests.tamiyo.risk.cases import CALM, SPIKE, case, order, packets, seed
from tests.tamiyo.scripted_run import ScriptedRun, slot_state
from tests.tamiyo.strategies import RUN, packet_sequences

ALARMED = Surroundings(alarms=(Alarm("signal-1", "operator", "smoke"),))
MOVES = [ly.SEED_OP_GERMINATE, ly.SEED_OP_START_GRAFTING, ly.SEED_OP_STABILIZE, ly.SEED_OP_FOSSILIZE, None]

#: SHA-256 over the commands of three scripted runs, from the version before there was a gate.
BEFORE_THE_GATE = {
    "heuristic": "58d080e457e48e2ffddceb56eef55adde6791f1dd3a43b7b0c53e63472fed3a8",
    "fixed": "63a5f3a16899a60db25b3667da67868f38590c15de406b5bfe1f23c15dec0fda",
    "random": "068a6e276e0feab67371f73e5d5afcbb6afa1eb72487130c2203577fb4cc616b",
    "noop": "ac1d52cc789ed2bbcf0ce7d191f77ded53110016defbb63d7cfdfb3905c703a0",
}


@pytest.mark.parametrize("policy", BEFORE_THE_GATE)
def test_a_healthy_run_gets_the_commands_that_it_always_got(policy: str) -> None:
    """Play helpful, useless and harmful seeds; every command's bytes are those of the version without a gate."""
    digest = hashlib.sha256()
    for number, gain in enumerate((0.2, 0.05, -0.1), start=1):
        run = ScriptedRun(
            f"run-golden-{number}", epochs=40, policy=policy, seed=number, gain=gain,
            slots=[slot_state("a"), slot_state("b", placement="residual")],
        )  # fmt: skip
        state = fold(RunState(run.run_id), run.request())
        for _ in range(run.epochs):
            state = fold(state, run.next_packet())
            decision = decide(state, state.packets[run.epoch])
            assert not decision.made.overridden
            digest.update(decision.command.SerializeToString(deterministic=True))
            state = fold(fold(fold(state, decision.made), decision.command), run.apply(decision.command))
    assert digest.hexdigest() == BEFORE_THE_GATE[policy]


@pytest.mark.parametrize("operation", MOVES)
def test_a_spike_lets_seeds_stand_still(operation: ly.SeedOperation | None) -> None:
    """Whatever moves growth on gives way to a pause of two epochs, with the proposal's own ids and the reason."""
    proposed = order(operation)
    verdict = judge(case(proposed, packets(SPIKE, seeds=[seed()])))
    command = verdict.command
    assert command is not None
    assert command.command_type == ly.COMMAND_PAUSE
    assert (command.pause.epochs, command.pause.resume) == (2, False)
    assert command.pause.rationale == verdict.reason == "loss_spike: the validation loss rose by 50%"
    assert command.annotations["risk.rules"] == "loss_spike"
    assert (command.command_id, command.decision_id, command.epoch) == ("the-command", "the-decision", 7)
    assert not command.target_seed_id


@pytest.mark.parametrize("surroundings", [ALARMED, Surroundings()])
def test_what_takes_away_passes(surroundings: Surroundings) -> None:
    """A cull, an emergency, a return and a pause of the policy's own are better answers than the gate's."""
    history = packets(SPIKE, seeds=[seed()])
    away = [order(ly.SEED_OP_CULL), order(ly.SEED_OP_CANCEL)]
    for kind in (ly.COMMAND_EMERGENCY, ly.COMMAND_ROLLBACK, ly.COMMAND_STRUCTURAL_PRUNING, ly.COMMAND_PAUSE):
        away.append(order())
        away[-1].command_type = kind
    away.append(order())
    away[-1].command_type = ly.COMMAND_CIRCUIT_BREAKER
    away[-1].circuit_breaker.desired_state = ly.CIRCUIT_STATE_OPEN
    for proposed in away:
        assert judge(case(proposed, history, surroundings=surroundings)).command is None


def test_what_lets_growth_go_on_does_not_pass() -> None:
    """The end of a pause and a closed breaker move growth on, as an optimiser's setting moves the host."""
    resume, close, optimizer = order(), order(), order()
    resume.command_type, resume.pause.resume = ly.COMMAND_PAUSE, True
    close.command_type, close.circuit_breaker.desired_state = ly.COMMAND_CIRCUIT_BREAKER, ly.CIRCUIT_STATE_CLOSED
    optimizer.command_type = ly.COMMAND_OPTIMIZER
    for proposed in (resume, close, optimizer):
        command = judge(case(proposed, packets(CALM, seeds=[seed()]), surroundings=ALARMED)).command
        assert command is not None
        assert command.command_type == ly.COMMAND_PAUSE


def spiked(**changes: object) -> list[object]:
    history = packets(SPIKE, seeds=[seed()])
    return [*history[:-1], replace(history[-1], **changes)]  # type: ignore[arg-type]  # the test names real fields


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"held": True}, {}, "growth stands still already"),
        ({}, {"can_pause": False}, "a stack cannot pause its members"),
        ({"epochs_planned": 7}, {}, "the run ends"),
        ({}, {"limits": {"pause_epochs": 0.0}}, "the run allows no pause"),
    ],
)
def test_where_no_pause_is_possible_growth_waits(changes: dict, options: dict, said: str) -> None:  # type: ignore[type-arg]
    """The order gives way to "continue", which says why it is no pause; a proposed "continue" is left alone."""
    history = spiked(**changes)
    verdict = judge(case(order(ly.SEED_OP_FOSSILIZE), history, **options))  # type: ignore[arg-type]
    assert verdict.command is not None
    assert verdict.command.command_type == ly.COMMAND_CONTINUE
    assert not verdict.command.HasField("pause")
    assert verdict.reason.startswith("loss_spike: ")
    assert said in verdict.reason
    assert judge(case(order(), history, **options)).command is None  # type: ignore[arg-type]


def test_without_a_seed_on_its_way_nothing_is_paused() -> None:
    """There is nothing that could stand still: a germination waits, the run goes on."""
    for history, surroundings in ((packets(SPIKE), Surroundings()), (packets(CALM), ALARMED)):
        verdict = judge(case(order(ly.SEED_OP_GERMINATE), history, surroundings=surroundings))
        assert verdict.command is not None
        assert verdict.command.command_type == ly.COMMAND_CONTINUE
        assert judge(case(order(), history, surroundings=surroundings)).command is None


def test_a_dangerous_order_is_stopped_and_its_run_goes_on() -> None:
    """A quarantined blueprint is no fault of the seeds that train: the order alone is held back."""
    said = Surroundings({"BP045": BlueprintFacts(1.0, "quarantine_only")})
    proposed = order(ly.SEED_OP_GERMINATE, blueprint_id="BP045")
    verdict = judge(case(proposed, packets(CALM, seeds=[seed()]), surroundings=said))
    assert verdict.command is not None
    assert verdict.command.command_type == ly.COMMAND_CONTINUE
    assert verdict.reason == "blueprint_quarantine: BP045 runs in quarantine only"
    assert (verdict.blueprint_id, verdict.blueprint_risk) == ("BP045", 1.0)


def test_an_order_about_a_past_state_is_no_order() -> None:
    """Where the run has gone on even a cull is about a seed that may be another one by now."""
    told = Surroundings(superseded="the run has gone on to epoch 9")
    verdict = judge(case(order(ly.SEED_OP_CULL), packets(SPIKE, seeds=[seed()]), surroundings=told))
    assert verdict.command is not None
    assert verdict.command.command_type == ly.COMMAND_CONTINUE


def test_all_reasons_are_told() -> None:
    """Several rules at once: one command, every rule in its annotation and its reason."""
    said = replace(ALARMED, blueprints={"BP021": BlueprintFacts(0.9)})
    verdict = judge(case(order(ly.SEED_OP_GERMINATE), packets(SPIKE, seeds=[seed()]), surroundings=said))
    assert verdict.command is not None
    assert verdict.command.annotations["risk.rules"] == "conservative_mode,loss_spike,blueprint_risk"
    assert [part.split(":")[0] for part in verdict.reason.split("; ")] == [
        "conservative_mode", "loss_spike", "blueprint_risk",
    ]  # fmt: skip
    assert verdict.conservative


def test_what_is_learned_from_is_the_proposal() -> None:
    """An overridden germination: heads, probabilities and proposal as without the gate; the report is about it."""
    run = ScriptedRun("run-over", epochs=40, policy="fixed", parameters={"germinate": 4.0})
    state = fold(RunState(run.run_id), run.request())
    for _ in range(4):
        state = fold(state, run.next_packet())
    free = decide(state, state.packets[4])
    held = decide(state, state.packets[4], surroundings=ALARMED)
    assert free.made.proposed.seed_operation.operation == ly.SEED_OP_GERMINATE
    assert held.command.command_type == ly.COMMAND_CONTINUE
    for name in ("heads", "log_probability", "proposed", "observation", "command_id", "rng_seed", "reasons"):
        assert getattr(held.made, name) == getattr(free.made, name), name
    assert held.made.overridden
    assert held.made.executed == held.command
    assert held.made.override_reason == "conservative_mode: emergency by operator: smoke"
    state = fold(state, held.made)
    assert (unsent := command_to_send(state)) is not None
    assert ly.AdaptationCommand.FromString(unsent.executed) == held.command, "a restart sends what the gate chose"
    state = fold(fold(fold(state, held.command), run.apply(held.command)), run.next_packet())
    (report,) = reports_due(state)
    assert report.seed_operation == ly.SEED_OP_GERMINATE
    assert (report.blueprint_id, report.seed_id) == (free.made.proposed.seed_operation.blueprint_id, "")
    assert report.command_result == ly.COMMAND_RESULT_APPLIED
    assert report.outcome == ly.FIELD_REPORT_OUTCOME_ABORTED
    assert report.notes == "overridden: conservative_mode: emergency by operator: smoke"
    assert set(report.reward_parts) == {"validation_gain", "parameter_rent", "compute", "stability"}
    assert report.observation_window_epochs == 1


@settings(max_examples=60, deadline=None)
@given(data=st.data(), policy=st.sampled_from(known_policies()))
def test_any_run_gets_a_sound_command_and_the_same_one_again(data: st.DataObject, policy: str) -> None:
    """Odd packets under an alarm and tight limits: decided again with all that followed in the state, all is equal."""
    limits = {"risk.loss_rise_max": 0.01, "risk.parameters_ratio_max": 1.0, "risk.multiply_adds_ratio_max": 1.0}
    request = ly.TrainingRunRequested(
        meta=ly.EventMeta(subject=RUN), run_id=RUN, policy=policy, policy_parameters=limits
    )
    surroundings = data.draw(st.sampled_from([Surroundings(), ALARMED, Surroundings(catalogue_known=False)]))
    state, decisions = fold(RunState(RUN), request), []
    for packet in data.draw(packet_sequences()):
        state = fold(state, packet)
        due = packet_to_decide(state)
        if due is None:
            continue
        decision = decide(state, due, surroundings=surroundings)
        decisions.append((due, decision))
        state = fold(state, decision.made)
        made, command = decision.made, decision.command
        assert made.overridden == made.HasField("executed") == bool(made.override_reason)
        assert command == (made.executed if made.overridden else made.proposed)
        assert command.command_id == made.command_id
        if made.overridden:
            assert command != made.proposed
            assert command.command_type in (ly.COMMAND_PAUSE, ly.COMMAND_CONTINUE)
    for due, decision in decisions:
        again = decide(state, due, surroundings=surroundings)
        assert (again.made, again.command) == (decision.made, decision.command)
