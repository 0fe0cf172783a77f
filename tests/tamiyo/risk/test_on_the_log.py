"""The risk gate on a real broker: in the service, over a restart, in a stack, and under an emergency."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from esper.core.clock import Deadline
from esper.core.ids import new_run_id
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.tamiyo import RunState, StackDecider, TamiyoService, decide, fold
from tests.conftest import RunningBroker
from tests.tamiyo.scripted_run import ScriptedRun
from tests.tamiyo.worker import Worker, serving

#: The heuristic blends its seed in these epochs of a run of 40; the loss of the 9th leaps up.
LEAP = {9: 2.0}


@pytest.fixture
def open_fabric(broker: RunningBroker) -> Callable[[], Fabric]:
    """Return a function that opens one more fabric on the session's broker."""
    return lambda: Fabric.open(broker.settings, member="tamiyo-test")


def scripted(**options: object) -> ScriptedRun:
    """Return a run whose seed is heard from the 7th epoch on."""
    return ScriptedRun(new_run_id(), epochs=40, **options)  # type: ignore[arg-type]  # the test names real fields


def told(fabric: Fabric, run_id: str) -> list[ly.TelemetryPacket]:
    """Return what Tamiyo told of a run."""
    with fabric.reader({("telemetry", 0): "begin"}) as reader:
        packets = [event.message for event in reader.read_to_end() if isinstance(event.message, ly.TelemetryPacket)]
    return [
        packet
        for packet in packets
        if packet.source_subsystem == "tamiyo" and packet.metrics[0].attributes["run_id"] == run_id
    ]


def test_a_spike_pauses_a_run_and_every_record_says_so(fabric: Fabric, open_fabric: Callable[[], Fabric]) -> None:
    """Twelve epochs, the loss leaps in the ninth: command, decision, report and telemetry tell one story."""
    worker = Worker(fabric, scripted(leaps=LEAP))
    with serving(open_fabric):
        worker.request()
        outcomes = [worker.answered_epoch() for _ in range(12)]
        worker.finish()
        reports = {report.epoch: report for report in worker.reported(12)}
    assert [outcome.epoch for outcome in outcomes if outcome.command_type == ly.COMMAND_PAUSE] == [9]
    assert {outcome.result for outcome in outcomes} == {ly.COMMAND_RESULT_APPLIED}
    decisions = {decision.epoch: decision for decision in worker.log.of(ly.DecisionMade)}
    assert [epoch for epoch, decision in decisions.items() if decision.overridden] == [9]
    made, command = decisions[9], worker.log.command(9)
    assert command is not None
    assert made.override_reason.startswith("loss_spike: the validation loss rose by ")
    assert (command.command_type, command.pause.epochs) == (ly.COMMAND_PAUSE, 2)
    assert command.command_id == made.command_id == made.proposed.command_id == made.executed.command_id
    assert made.proposed.command_type != ly.COMMAND_PAUSE
    assert reports[9].outcome == ly.FIELD_REPORT_OUTCOME_ABORTED
    assert reports[9].command_type == made.proposed.command_type
    assert reports[9].reward_parts["stability"] == 0.0
    assert reports[8].reward_parts["stability"] < -0.5
    packets = told(fabric, worker.run.run_id)
    assert len(packets) == 12
    events = [event for packet in packets for event in packet.events]
    assert [(event.attributes["kind"], event.attributes["epoch"]) for event in events] == [("pause", "9")]
    assert events[0].description == made.override_reason


def test_a_restart_sends_what_the_gate_chose(fabric: Fabric, open_fabric: Callable[[], Fabric]) -> None:
    """The log holds an overridden decision whose writer died before the command: the next life sends the pause."""
    worker = Worker(fabric, scripted(leaps=LEAP))
    worker.request()
    state = fold(RunState(worker.run.run_id), worker.run.request())
    publisher = fabric.publisher("tamiyo")
    for epoch in range(1, 10):
        state = fold(state, worker.packet())
        decision = decide(state, state.packets[epoch])
        publisher.publish(decision.made, key=worker.run.run_id, causation_id=decision.made.state_event_id)
        state = fold(state, decision.made)
        if epoch < 9:
            command = decision.command
            publisher.publish(command, key=worker.run.run_id, causation_id=decision.made.state_event_id)
            worker.outcome(command)
    assert decision.made.overridden
    with serving(open_fabric):
        worker.log.wait_for(lambda: worker.log.command(9))
        worker.outcome(worker.log.command(9))
        worker.answered_epoch()
    sent = worker.log.command(9)
    assert sent is not None
    assert sent.pause == decision.command.pause
    assert sent.command_type == ly.COMMAND_PAUSE
    assert len([made for made in worker.log.of(ly.DecisionMade) if made.epoch == 9]) == 1


def test_an_emergency_about_a_run_holds_it_back_until_the_all_clear(
    fabric: Fabric, open_fabric: Callable[[], Fabric]
) -> None:
    """A signal about one run of two: that one gets pauses and no germination, its neighbour goes on as ever."""
    held, free = Worker(fabric, scripted()), Worker(fabric, scripted())
    operator = fabric.publisher("weatherlight")
    with serving(open_fabric) as service:
        for worker in (held, free):
            worker.request()
            worker.answered_epoch()
        operator.raise_emergency(ly.EMERGENCY_LEVEL_CONSERVATIVE, "smoke", run_id=held.run.run_id)
        until(lambda: alarmed(service, held))
        for worker in (held, free):
            for _ in range(5):
                worker.answered_epoch()
        operator.raise_emergency(ly.EMERGENCY_LEVEL_NOTICE, "over", run_id=held.run.run_id)
        until(lambda: not alarmed(service, held))
        while not held.run.seeds and held.run.epoch < 15:
            held.answered_epoch()
    overridden = [decision for decision in held.log.of(ly.DecisionMade) if decision.overridden]
    assert overridden
    reasons = {decision.override_reason for decision in overridden}
    assert len(reasons) == 1
    assert reasons.pop().startswith("conservative_mode: emergency by ")
    assert all(decision.epoch <= 6 for decision in overridden)
    assert held.run.seeds, "the all-clear let it grow again"
    assert free.run.seeds
    assert not any(decision.overridden for decision in free.log.of(ly.DecisionMade))
    modes = [
        metric.value
        for packet in told(fabric, held.run.run_id)
        for metric in packet.metrics
        if metric.name == "tamiyo.conservative_mode"
    ]
    assert modes[0] == modes[-1] == 0.0, "while a signal stands the fabric sheds telemetry; the decisions have it all"


def alarmed(service: TamiyoService, worker: Worker) -> bool:
    """Return whether the service has heard a signal about the run."""
    calls = service._fabric.emergencies.calls()
    return any(call.run_id == worker.run.run_id for call in calls)


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; fail at the deadline."""
    deadline = Deadline(30.0)
    while not condition():
        assert not deadline.expired


def test_an_old_packet_is_answered_with_continue(fabric: Fabric) -> None:
    """Asked about a packet that a newer one followed, the service orders nothing and says why; the latest is free."""
    run = scripted(policy="fixed", parameters={"germinate": 2.0})
    service = TamiyoService(fabric, instance="tamiyo-quiet")
    service._ledger(fabric.partition_of("system-state", run.run_id)).fold(run.request())
    packets = [run.next_packet() for _ in range(3)]
    service.evaluate_epoch(packets[0])
    made, command = service.evaluate_epoch(packets[1])
    assert command.seed_operation.operation == ly.SEED_OP_GERMINATE
    service.evaluate_epoch(packets[2])
    made, command = service.evaluate_epoch(packets[1])
    assert made.proposed.seed_operation.operation == ly.SEED_OP_GERMINATE
    assert command.command_type == ly.COMMAND_CONTINUE
    assert made.override_reason == "stale_state: the run has gone on to epoch 3"


@dataclass
class Stacked(ScriptedRun):
    """A member of a stack of one."""

    def request(self) -> ly.TrainingRunRequested:
        """Return the request of a member."""
        request = super().request()
        request.stack.CopyFrom(ly.StackPlace(stack_id="stack-a", index=0, size=1))
        return request


def test_a_stack_that_cannot_pause_lets_growth_wait(fabric: Fabric) -> None:
    """The same leap in a member of a stack: no pause, which it would refuse; orders wait, and the reason says so."""
    run = Stacked(new_run_id(), epochs=40, leaps=LEAP)
    commands = []
    with StackDecider(fabric, [run.request()]) as decider:
        for _ in range(12):
            packet = run.next_packet()
            command, _ = decider.decide([packet])[run.run_id]
            commands.append(command)
            decider.settle(run.run_id, run.apply(command))
    assert ly.COMMAND_PAUSE not in {command.command_type for command in commands}
    worker_log = Worker(fabric, run).log
    worker_log.read_up()
    overridden = {made.epoch: made for made in worker_log.of(ly.DecisionMade) if made.overridden}
    assert set(overridden) <= {9, 10}
    assert overridden, "the schedule would have moved its seed on in one of the two epochs"
    for made in overridden.values():
        assert "a stack cannot pause its members: growth waits instead" in made.override_reason or made.epoch == 10
        assert made.executed.command_type == ly.COMMAND_CONTINUE
