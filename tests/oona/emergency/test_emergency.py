"""Emergencies: published at once, heard before everything else, and over by themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.core.clock import Deadline
from esper.core.errors import BrokerUnavailable
from esper.core.ids import derive_id, new_run_id
from esper.leyline import Record
from esper.leyline import messages as ly
from esper.oona import Event, Fabric
from esper.oona.emergency._follower import EMERGENCY
from esper.oona.emergency._state import EmergencyState, emergency_signal
from tests.conftest import RunningBroker, running_broker
from tests.oona.log import append, fresh_group, packet, poll_until, read_run

LEVELS = [
    ly.EMERGENCY_LEVEL_NOTICE,
    ly.EMERGENCY_LEVEL_ELEVATED,
    ly.EMERGENCY_LEVEL_CONSERVATIVE,
    ly.EMERGENCY_LEVEL_HALT,
]
HOLD = 60.0


def signal(level: ly.EmergencyLevel, origin: str = "tolaria-0") -> ly.EmergencySignal:
    """Return a signal of an origin."""
    return emergency_signal(level, "test", origin=origin)


def until(condition: Callable[[], bool], *, seconds: float = 40.0) -> None:
    """Wait until a condition holds; fail at the deadline."""
    deadline, pause = Deadline(seconds), threading.Event()
    while not condition():
        assert not deadline.expired
        pause.wait(0.02)


def signals_of(fabric: Fabric, run_id: str) -> list[Event]:
    """Return the signals that name a run."""
    with fabric.reader({(EMERGENCY, 0): "begin"}) as reader:
        events = reader.read_to_end()
    return [event for event in events if cast("ly.EmergencySignal", event.message).run_id == run_id]


def test_highest_level_in_force_counts_until_its_time_is_over() -> None:
    """Levels hold for a time: fold signals of two origins and ask at several times."""
    state = EmergencyState(HOLD).fold(signal(ly.EMERGENCY_LEVEL_ELEVATED, "a"), 0)
    state = state.fold(signal(ly.EMERGENCY_LEVEL_CONSERVATIVE, "b"), 10_000)
    assert state.level(10_000) == ly.EMERGENCY_LEVEL_CONSERVATIVE
    assert state.in_force(69_999)
    assert not state.in_force(70_000)
    assert state.level(70_000) == ly.EMERGENCY_LEVEL_UNSPECIFIED


def test_its_origin_ends_it_and_nothing_lower_does() -> None:
    """NOTICE is the all-clear: lower a HALT by an alarm, by another's NOTICE, and by its own."""
    state = EmergencyState(HOLD).fold(signal(ly.EMERGENCY_LEVEL_HALT), 0)
    state = state.fold(signal(ly.EMERGENCY_LEVEL_ELEVATED), 1).fold(signal(ly.EMERGENCY_LEVEL_NOTICE, "other"), 2)
    assert state.level(3) == ly.EMERGENCY_LEVEL_HALT
    assert state.fold(signal(ly.EMERGENCY_LEVEL_NOTICE), 3).level(3) == ly.EMERGENCY_LEVEL_UNSPECIFIED


def test_a_signal_about_one_run_is_not_one_about_another() -> None:
    """Runs are told apart: raise signals about two runs, end one of them, then both at once."""
    state = EmergencyState(HOLD)
    for run_id in ("run-a", "run-b"):
        raised = emergency_signal(ly.EMERGENCY_LEVEL_CONSERVATIVE, f"about {run_id}", origin="x", run_id=run_id)
        raised.meta.event_id = f"event of {run_id}"
        state = state.fold(raised, 0)
    assert [(held.run_id, held.event_id) for held in state.calls(1)] == [
        ("run-a", "event of run-a"),
        ("run-b", "event of run-b"),
    ]
    one = state.fold(emergency_signal(ly.EMERGENCY_LEVEL_NOTICE, "over", origin="x", run_id="run-a"), 1)
    assert [held.run_id for held in one.calls(2)] == ["run-b"]
    assert one.fold(signal(ly.EMERGENCY_LEVEL_NOTICE, "y"), 2).calls(3) == one.calls(3)
    assert state.fold(signal(ly.EMERGENCY_LEVEL_NOTICE, "x"), 2).calls(3) == ()


@given(st.lists(st.tuples(st.sampled_from(LEVELS), st.integers(0, 2_000), st.integers(0, 10**6)), max_size=200))
def test_nothing_latches_and_nothing_grows(history: list[tuple[ly.EmergencyLevel, int, int]]) -> None:
    """Whatever was raised, it is over in time: fold random histories of many origins and ask after the last."""
    state = EmergencyState(HOLD)
    for level, origin, at in sorted(history, key=lambda entry: entry[2]):
        state = state.fold(signal(level, str(origin)), at)
    assert len(state.standing) <= 1_000
    assert not state.in_force(10**6 + HOLD * 1000)


def test_a_flood_of_origins_is_bounded_and_keeps_what_holds_longest() -> None:
    """A flood forgets the oldest: fold 1,500 origins and look at who is left."""
    state = EmergencyState(HOLD)
    for number in range(1_500):
        state = state.fold(signal(ly.EMERGENCY_LEVEL_ELEVATED, str(number)), number)
    assert len(state.standing) == 1_000
    assert ("1499", "") in state.standing
    assert ("0", "") not in state.standing


def test_signals_are_heard_before_records_that_lay_there_earlier(fabric: Fabric) -> None:
    """Emergencies overtake: let 50 records lie, raise one in the first handler, and see when it is heard."""
    run_id = new_run_id()
    heard: list[str] = []
    with fabric.publisher("tolaria") as states:
        for epoch in range(50):
            states.publish(packet(run_id, epoch), key=run_id)
    publisher = fabric.publisher("tamiyo")

    def handle(event: Event) -> None:
        if event.meta.subject != run_id:
            return
        heard.append("record")
        if len(heard) == 1:
            publisher.raise_emergency(ly.EMERGENCY_LEVEL_ELEVATED, "smoke", run_id=run_id, attributes={"where": "here"})
            until(lambda: signal_read(fabric, run_id))

    def on_emergency(event: Event) -> None:
        if cast("ly.EmergencySignal", event.message).run_id == run_id:
            heard.append("emergency")

    consumer = fabric.consumer(
        group=fresh_group(),
        instance="member-0",
        topics=["system-state"],
        handlers={ly.SystemStatePacket: handle},
        publisher=publisher,
        on_emergency=on_emergency,
    )
    poll_until(consumer, lambda: len(heard) == 51, seconds=90)
    assert heard.index("emergency") == 1, "right after the record in whose handling it was raised"
    (event,) = signals_of(fabric, run_id)
    message = cast("ly.EmergencySignal", event.message)
    assert (message.origin, message.reason, dict(message.attributes)) == ("test", "smoke", {"where": "here"})
    assert (event.meta.source, event.meta.priority) == ("tamiyo", ly.MESSAGE_PRIORITY_CRITICAL)


def signal_read(fabric: Fabric, run_id: str) -> bool:
    """Return whether the process's watch has read a signal of a run."""
    recent = list(fabric.emergencies._recent)
    return any(cast("ly.EmergencySignal", event.message).run_id == run_id for event in recent)


def test_idle_consumers_hear_them_too_and_newcomers_hear_those_in_force(fabric: Fabric) -> None:
    """Nobody needs a record to hear: poll a consumer without records, then begin another one."""
    run_id = new_run_id()
    heard: dict[str, list[str]] = {"early": [], "late": []}
    publisher = fabric.publisher("tamiyo")

    def begin(name: str) -> None:
        def on_emergency(event: Event) -> None:
            if cast("ly.EmergencySignal", event.message).run_id == run_id:
                heard[name].append(event.meta.event_id)

        consumer = fabric.consumer(
            group=fresh_group(),
            instance="member-0",
            topics=["blueprints"],
            handlers={},
            publisher=publisher,
            on_emergency=on_emergency,
        )
        if name == "early":
            consumer.poll(0.1)
            publisher.raise_emergency(ly.EMERGENCY_LEVEL_ELEVATED, "smoke", run_id=run_id)
        poll_until(consumer, lambda: bool(heard[name]), seconds=60)
        consumer.poll(0.1)

    begin("early")
    begin("late")
    assert heard["early"] == heard["late"]
    assert len(heard["early"]) == 1


def test_critical_events_raise_a_signal_and_stay_where_they_belong(fabric: Fabric) -> None:
    """CRITICAL is heard first and rerouted nowhere: publish a critical decision twice under one id."""
    run_id = new_run_id()
    with fabric.publisher("tamiyo") as publisher:
        receipt = publisher.publish(ly.DecisionMade(run_id=run_id), key=run_id, priority=ly.MESSAGE_PRIORITY_CRITICAL)
        publisher.submit(ly.DecisionMade(run_id=run_id), key=run_id, priority=ly.MESSAGE_PRIORITY_HIGH).result()
    (event,) = signals_of(fabric, run_id)
    message = cast("ly.EmergencySignal", event.message)
    assert (message.level, message.origin_event_id) == (ly.EMERGENCY_LEVEL_ELEVATED, receipt.event_id)
    assert event.meta.event_id == derive_id("emergency", receipt.event_id)
    assert len(read_run(fabric, "decisions", run_id)) == 2


def test_conservative_mode_sheds_telemetry_and_ends_by_itself(broker: RunningBroker) -> None:
    """The mode ends with its cause: raise CONSERVATIVE with a short hold, shed, wait it out; raise again, all-clear."""
    settings = broker.settings.model_copy(update={"emergency_hold_seconds": 8.0})
    with Fabric.open(settings, member=f"test-{new_run_id()}") as fabric:
        fabric.emergencies.await_following()
        until(lambda: not fabric.conservative())
        publisher = fabric.publisher("tolaria")
        publisher.raise_emergency(ly.EMERGENCY_LEVEL_CONSERVATIVE, "too hot")
        until(lambda: bool(fabric.conservative()))
        assert fabric.conservative() == ("emergency of level EMERGENCY_LEVEL_CONSERVATIVE",)
        outcomes = [publisher.submit(ly.TelemetryPacket(), key="tolaria") for _ in range(32)]
        assert sum(one.sampled_out for one in outcomes) == 30
        until(lambda: not fabric.conservative())
        assert not publisher.submit(ly.TelemetryPacket(), key="tolaria").sampled_out
        publisher.raise_emergency(ly.EMERGENCY_LEVEL_HALT, "again")
        until(lambda: bool(fabric.conservative()))
        publisher.raise_emergency(ly.EMERGENCY_LEVEL_NOTICE, "over")
        until(lambda: not fabric.conservative(), seconds=6.0)


def test_defect_1_conservative_mode_latch(broker: RunningBroker) -> None:
    """Predecessor: one HIGH packet rerouted 300 commands, 181 were lost. Do the same, with real pressure."""
    settings = broker.settings.model_copy(update={"telemetry_backlog_records": 1})
    run_id = new_run_id()
    with Fabric.open(settings, member="test") as fabric:
        _, before = fabric.cluster.watermarks([(EMERGENCY, 0)])[(EMERGENCY, 0)]
        publisher = fabric.publisher("tamiyo")
        publisher.submit(ly.TelemetryPacket(), key="tamiyo", priority=ly.MESSAGE_PRIORITY_HIGH)
        pending = [publisher.submit(ly.AdaptationCommand(command_id=str(number)), key=run_id) for number in range(300)]
        assert fabric.conservative()[0].startswith("backlog of tamiyo") or publisher.backlog_records == 0
        for one in pending:
            one.result()
        publisher.flush()
        assert fabric.conservative() == (), "a publisher that handles nothing recovers, too"
        commands = read_run(fabric, "adaptation-commands", run_id)
        assert [cast("ly.AdaptationCommand", event.message).command_id for event in commands] == [
            str(number) for number in range(300)
        ]
        _, after = fabric.cluster.watermarks([(EMERGENCY, 0)])[(EMERGENCY, 0)]
        assert after == before, "nothing was rerouted"


def test_a_flood_of_junk_hides_no_signal_in_force(secluded: Fabric) -> None:
    """Whoever starts late still hears it: raise a signal, bury it under 10,001 records of nobody, and start."""
    junk = Record("emergency", 0, -1, b"oona", b"junk")
    with secluded.publisher("oona") as publisher:
        publisher.raise_emergency(ly.EMERGENCY_LEVEL_CONSERVATIVE, "buried")
        try:
            append(secluded, [junk] * 10_001)
            with Fabric.open(secluded.settings, member="late") as late:
                late.emergencies.await_following()
                assert late.emergencies.level() == ly.EMERGENCY_LEVEL_CONSERVATIVE
        finally:
            publisher.raise_emergency(ly.EMERGENCY_LEVEL_NOTICE, "over")


def test_signals_are_heard_again_after_an_outage(tmp_path: Path) -> None:
    """Goal: an outage costs no signal and hears none twice. Method: a broker of its own, stopped and started again."""
    heard: list[str] = []
    with (
        running_broker(tmp_path / "home", broker_retry_seconds=2.0) as broker,
        Fabric.open(broker.settings, member="hearer") as fabric,
    ):
        inbox = fabric.emergencies.inbox(lambda event: heard.append(_reason_of(event)))
        with fabric.publisher("oona") as publisher:
            publisher.raise_emergency(ly.EMERGENCY_LEVEL_NOTICE, "before")
        until(lambda: bool(inbox.waiting))
        inbox.hear()
        broker.local.stop()
        until(lambda: not fabric.emergencies.following, seconds=60.0)
        with pytest.raises(BrokerUnavailable):
            inbox.hear()
        broker.local.start()
        with Fabric.open(broker.settings, member="teller") as other, other.publisher("oona") as publisher:
            publisher.raise_emergency(ly.EMERGENCY_LEVEL_NOTICE, "after")
        until(lambda: fabric.emergencies.following and bool(inbox.waiting), seconds=60.0)
        inbox.hear()
    assert heard == ["before", "after"]


def _reason_of(event: Event) -> str:
    return cast("ly.EmergencySignal", event.message).reason
