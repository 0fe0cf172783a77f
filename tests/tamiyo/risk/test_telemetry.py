"""What Tamiyo tells of the gate: metrics by the names of the brief, and an event for each thing that it did."""

from __future__ import annotations

from esper.leyline import messages as ly
from esper.tamiyo import Decision, RunState, decide, fold
from esper.tamiyo._telemetry import decision_telemetry
from esper.tamiyo.risk import Alarm, BlueprintFacts, Surroundings, judge
from tests.tamiyo.risk.cases import case, order, packets
from tests.tamiyo.scripted_run import ScriptedRun


def germinating(surroundings: Surroundings) -> ly.TelemetryPacket:
    """Return what is told of a decision that germinates BP021 by a schedule."""
    run = ScriptedRun("run-told", policy="fixed", parameters={"germinate": 1.0})
    state = fold(fold(RunState(run.run_id), run.request()), run.next_packet())
    decision = decide(state, state.packets[1], surroundings=surroundings)
    return decision_telemetry(state, 1, decision, inference_ms=1.0)


def metrics(packet: ly.TelemetryPacket) -> dict[str, float]:
    """Return values by name."""
    return {metric.name: metric.value for metric in packet.metrics}


def test_the_risk_of_what_is_to_be_grafted_is_a_metric() -> None:
    """Where the catalogue has the blueprint its risk is told, where nobody registered it nothing is made up."""
    known = germinating(Surroundings({"BP021": BlueprintFacts(0.5)}))
    assert metrics(known)["tamiyo.blueprint.risk"] == 0.5
    assert {
        metric.attributes["blueprint_id"] for metric in known.metrics if metric.name == "tamiyo.blueprint.risk"
    } == {"BP021"}
    assert not known.events
    assert known.level == ly.TELEMETRY_LEVEL_INFO
    assert "tamiyo.blueprint.risk" not in metrics(germinating(Surroundings()))


def test_a_risky_blueprint_is_an_event() -> None:
    """An order that gave way is told once, with its rules and its blueprint, as a warning."""
    packet = germinating(Surroundings({"BP021": BlueprintFacts(0.9)}))
    (event,) = packet.events
    assert packet.level == event.level == ly.TELEMETRY_LEVEL_WARNING
    assert event.description == "blueprint_risk: BP021 has risk 0.9, below 0.8 allowed"
    assert event.attributes["kind"] == "override"
    assert event.attributes["rules"] == "blueprint_risk"
    assert event.attributes["blueprint_id"] == "BP021"
    assert germinating(Surroundings({"BP021": BlueprintFacts(0.9)})) == packet, "told again it is the same event"


def test_a_quarantined_blueprint_is_an_event_of_its_own() -> None:
    """A policy that looks at no mask wants what never leaves quarantine: the gate says what it did, and of what."""
    run = ScriptedRun("run-told", policy="noop")
    state = fold(fold(RunState(run.run_id), run.request()), run.next_packet())
    proposed = order(ly.SEED_OP_GERMINATE, blueprint_id="BP045")
    said = Surroundings({"BP045": BlueprintFacts(1.0, "quarantine_only")})
    verdict = judge(case(proposed, packets([1.0]), surroundings=said))
    assert verdict.command is not None
    made = ly.DecisionMade(run_id=run.run_id, state_event_id="state-1", override_reason=verdict.reason)
    packet = decision_telemetry(state, 1, Decision(made, verdict.command, verdict), inference_ms=1.0)
    assert [event.attributes["kind"] for event in packet.events] == ["override", "blueprint_quarantine"]
    assert len({event.event_id for event in packet.events}) == 2
    assert metrics(packet)["tamiyo.blueprint.risk"] == 1.0


def test_conservative_mode_is_a_metric_of_each_decision() -> None:
    """0 and 1, whether or not anything had to give way for it."""
    assert metrics(germinating(Surroundings()))["tamiyo.conservative_mode"] == 0.0
    alarmed = germinating(Surroundings(alarms=(Alarm("signal-1", "operator", "smoke"),)))
    assert metrics(alarmed)["tamiyo.conservative_mode"] == 1.0
