"""The pure core: one legal, complete, repeatable decision for any packet."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.core.ids import derive_id
from esper.core.rng import stream_of
from esper.leyline import messages as ly
from esper.tamiyo import Observation, RunState, action_space, decide, fold, known_policies, make_policy
from esper.tamiyo._due import command_to_send, packet_to_decide, reports_due
from esper.tamiyo._policy import draws
from esper.tamiyo.risk import BlueprintFacts, Surroundings
from tests.tamiyo.scripted_run import ScriptedRun, play
from tests.tamiyo.strategies import RUN, packet_sequences


def decided(packets: list[ly.SystemStatePacket]) -> tuple[RunState, list[ly.DecisionMade]]:
    """Play `packets` as a worker would that only listens; return the state and every decision."""
    state, made = RunState(RUN), []
    for packet in packets:
        state = fold(state, packet)
        waiting = packet_to_decide(state)
        assert waiting is not None
        decision = decide(state, waiting)
        made.append(decision.made)
        state = fold(fold(state, decision.made), decision.command)
        assert packet_to_decide(state) is None, "a decided packet is not decided again"
        assert command_to_send(state) is None, "a command that was sent is not sent again"
    return state, made


@settings(max_examples=60, deadline=None)
@given(data=st.data(), policy=st.sampled_from([*known_policies(), "no-such-policy"]))
def test_any_packets_yield_exactly_one_legal_decision_each(data: st.DataObject, policy: str) -> None:
    """Odd packets (unknown stages, NaN, nameless slots, huge shapes) through every policy: never an exception."""
    packets = data.draw(packet_sequences(policy=policy))
    state, made = decided(packets)
    assert sorted(state.decisions) == [packet.current_epoch for packet in packets]
    for decision in made:
        assert_complete(decision)


def wants_to_germinate(growth: ly.GrowthState | None) -> ly.DecisionMade:
    """Return what `fixed` decides at the epoch at which it germinates, where growth stands like this."""
    run = ScriptedRun(RUN, epochs=1, policy="fixed")
    packet = run.next_packet()
    if growth is not None:
        packet.growth.CopyFrom(growth)
    _, [made] = decided([packet])
    assert_complete(made)
    return made


def test_a_free_run_germinates_where_the_held_ones_do_not() -> None:
    """Goal: the next test can fail. Method: the same packet, nothing held."""
    assert wants_to_germinate(None).proposed.seed_operation.operation == ly.SEED_OP_GERMINATE


@pytest.mark.parametrize(
    "growth",
    [
        ly.GrowthState(paused=True),
        ly.GrowthState(halted=True),
        ly.GrowthState(breaker_held=True, breaker=ly.CIRCUIT_STATE_OPEN),
        ly.GrowthState(breaker=ly.CIRCUIT_STATE_OPEN),
    ],
    ids=["paused", "halted", "breaker by order", "breaker"],
)
def test_nothing_germinates_while_growth_is_held(growth: ly.GrowthState) -> None:
    """Goal: no policy collects refusals that the packet announced. Method: a germination that is due, each hold."""
    made = wants_to_germinate(growth)
    assert made.proposed.command_type == ly.COMMAND_CONTINUE
    operations = made.heads[0]
    assert not operations.mask[list(operations.actions).index("germinate")]


def assert_complete(decision: ly.DecisionMade) -> None:
    """Assert what off-policy learning needs: finite observation, honoured masks, a proper distribution."""
    assert len(decision.observation) == len(decision.observation_names) == len(set(decision.observation_names))
    assert all(map(math.isfinite, decision.observation))
    assert [head.name for head in decision.heads][:3] == ["operation", "slot", "blueprint"]
    for head in decision.heads:
        assert len(head.actions) == len(head.mask) == len(head.probabilities)
        assert head.mask[head.chosen], "what was chosen was allowed"
        assert all(allowed or not p for allowed, p in zip(head.mask, head.probabilities, strict=True))
        assert sum(head.probabilities) == pytest.approx(1.0)
        assert head.log_probability == math.log(head.probabilities[head.chosen])
    assert decision.log_probability == sum(head.log_probability for head in decision.heads)
    assert decision.proposed.command_id == decision.command_id
    assert len(decision.policy_digest) == 64
    assert decision.reasons


@settings(max_examples=30, deadline=None)
@given(data=st.data(), policy=st.sampled_from(known_policies()))
def test_a_recorded_decision_can_be_asked_again(data: st.DataObject, policy: str) -> None:
    """The policy, given nothing but the recorded observation and stream, must choose what was recorded."""
    _, made = decided(data.draw(packet_sequences(policy=policy)))
    for decision in made:
        again = make_policy(decision.policy)
        observation = Observation(tuple(decision.observation_names), tuple(decision.observation))
        space = action_space(observation, again.options)
        if draws(again):
            proposal = again.draw(observation, space, stream_of(decision.rng_seed))
        else:
            proposal = again.propose(observation, space)
        assert again.digest == decision.policy_digest
        assert [head.chosen for head in proposal.heads] == [head.chosen for head in decision.heads]
        assert [list(head.mask) for head in proposal.heads] == [list(head.mask) for head in decision.heads]


def test_ids_are_derived_from_the_packet() -> None:
    """Two lives of Tamiyo must name the decision and the command of one packet alike."""
    run = ScriptedRun("run-ids", epochs=10)
    state = fold(RunState("run-ids"), run.next_packet())
    packet = state.packets[1]
    first, second = decide(state, packet), decide(state, packet)
    decision_id = derive_id("run-ids", "decision", packet.event_id)
    assert first.made.meta.event_id == decision_id
    assert first.command.decision_id == decision_id
    assert first.command.command_id == first.made.command_id == derive_id("run-ids", "command", decision_id)
    assert first.made.meta.causation_id == packet.event_id == first.made.state_event_id
    assert first == second


def test_commands_name_what_they_change() -> None:
    """GERMINATE names slot, blueprint and parameters; every later move names the seed; CONTINUE names nothing."""
    run = ScriptedRun("run-commands", epochs=40)
    state = play(run)
    commands = {epoch: ly.AdaptationCommand.FromString(made.executed) for epoch, made in state.decisions.items()}
    germinate = commands[4]
    assert germinate.command_type == ly.COMMAND_SEED
    assert germinate.target_seed_id == ""
    assert germinate.seed_operation == ly.CommandSeedOperation(
        operation=ly.SEED_OP_GERMINATE, blueprint_id="BP021", parameters={"hidden_multiple": 2.0}, slot="hidden"
    )
    graft = commands[6]
    assert graft.target_seed_id == "hidden.1"
    assert graft.seed_operation == ly.CommandSeedOperation(
        operation=ly.SEED_OP_START_GRAFTING, parameters={"blend_epochs": 2.0}
    )
    assert commands[1].command_type == ly.COMMAND_CONTINUE
    assert commands[1].WhichOneof("payload") is None
    assert {command.training_run_id for command in commands.values()} == {"run-commands"}
    assert all(command.epoch == epoch for epoch, command in commands.items())


def test_observations_hold_nothing_that_a_clock_made() -> None:
    """Packets that differ only in latencies, times, hardware and digests must give the same decision."""
    run = ScriptedRun("run-clock", epochs=10)
    packet = run.next_packet()
    slow = ly.SystemStatePacket()
    slow.CopyFrom(packet)
    slow.training_metrics["latency_ms"] = 9_999.0
    slow.hardware_context.utilization_percent = 99.0
    slow.weights_digest = "ab" * 32
    slow.meta.time.FromNanoseconds(123)
    decisions = []
    for seen in (packet, slow):
        state = fold(RunState("run-clock"), seen)
        decisions.append(decide(state, state.packets[1]))
    assert decisions[0] == decisions[1]


@pytest.mark.parametrize(
    ("policy", "parameters", "told"),
    [("no-such-policy", {}, "no-such-policy"), ("heuristic", {"patience": 1.0}, "patience")],
)
def test_a_policy_that_cannot_be_had_changes_nothing_and_says_why(
    policy: str, parameters: dict[str, float], told: str
) -> None:
    """A request that got past the command line must still be answered: CONTINUE, with the reason in the decision."""
    run = ScriptedRun("run-unknown", epochs=5, policy=policy, parameters=parameters)
    state = fold(fold(RunState("run-unknown"), run.request()), run.next_packet())
    decision = decide(state, state.packets[1])
    assert decision.command.command_type == ly.COMMAND_CONTINUE
    assert decision.made.policy == "noop"
    assert told in decision.made.reasons[0]


def test_parameters_of_the_request_reach_the_policy() -> None:
    """A fixed schedule given with the request must be the one that is followed."""
    parameters = {
        "germinate": 2.0,
        "graft": 5.0,
        "fossilize": 12.0,
        "blend": 3.0,
        "blueprint": 9.0,
        "parameter.depth": 2.0,
    }
    run = ScriptedRun("run-fixed", epochs=20, policy="fixed", parameters=parameters)
    state = play(run)
    moves = {epoch: made.operation for epoch, made in sorted(state.decisions.items()) if made.operation}
    assert moves == {
        2: ly.SEED_OP_GERMINATE,
        5: ly.SEED_OP_START_GRAFTING,
        8: ly.SEED_OP_STABILIZE,
        9: ly.SEED_OP_EVALUATE,
        12: ly.SEED_OP_FOSSILIZE,
    }
    assert state.decisions[2].blueprint_id == "BP009"


def test_the_fixed_schedule_looks_at_nothing_but_the_epoch() -> None:
    """A seed that harms is carried through all the same: the schedule is the control for watching."""
    run = ScriptedRun("run-blind", epochs=20, policy="fixed", gain=-0.5)
    play(run)
    assert run.stages() == ["FOSSILIZED"]
    culled = ScriptedRun("run-cull", epochs=20, policy="fixed", parameters={"cull": 6.0})
    play(culled)
    assert culled.stages() == ["EMBARGOED"]
    nowhere = ScriptedRun("run-nowhere", epochs=20, policy="fixed", parameters={"slot": 3.0})
    play(nowhere)
    assert nowhere.seeds == []


def test_noop_never_changes_anything() -> None:
    """The static control: forty packets, forty times CONTINUE, each with a report."""
    run = ScriptedRun("run-noop", epochs=40, policy="noop")
    state = play(run)
    assert {made.command_type for made in state.decisions.values()} == {ly.COMMAND_CONTINUE}
    assert len(state.reported) == 40
    assert reports_due(state) == ()


def refusing(*blueprint_ids: str) -> Surroundings:
    """Return surroundings in which nobody may graft these blueprints."""
    return Surroundings({name: BlueprintFacts(0.5, "withdrawn") for name in blueprint_ids})


def test_what_may_not_be_grafted_is_barred_by_every_mask() -> None:
    """A refused blueprint stays an option that no mask lets pass: the next one is taken; with all refused, none is."""
    run = ScriptedRun("run-refused", epochs=40)
    state = fold(RunState("run-refused"), run.request())
    for _ in range(4):
        state = fold(state, run.next_packet())
    packet = state.packets[4]

    def germinated(*refused: str) -> tuple[str, dict[str, bool]]:
        decision = decide(state, packet, surroundings=refusing(*refused))
        head = next(head for head in decision.made.heads if head.name == "blueprint")
        masks = dict(zip(head.actions, head.mask, strict=True))
        return decision.command.seed_operation.blueprint_id, masks

    assert germinated()[0] == "BP021"
    chosen, masks = germinated("BP021")
    assert chosen == "BP009"
    assert masks == {
        "none": False,
        "BP021(hidden_multiple=2)": False,
        "BP009(depth=1)": True,
        "BP009(depth=2)": True,
    }
    chosen, masks = germinated("BP021", "BP009")
    assert chosen == ""
    assert masks["none"]
    made = decide(state, packet, surroundings=refusing("BP021", "BP009")).made
    operation = next(head for head in made.heads if head.name == "operation")
    assert not dict(zip(operation.actions, operation.mask, strict=True))["germinate"]
