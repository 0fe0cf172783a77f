"""Tamiyo on a real broker: one answer for each packet, whatever is delivered twice, missed or killed."""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from esper.core.clock import Deadline
from esper.core.errors import NotReadyError
from esper.core.ids import derive_id, new_run_id
from esper.karn import KarnCatalog, approve, catalogue, withdraw
from esper.karn import build_service as karn_service
from esper.leyline import messages as ly
from esper.oona import Event, Fabric, Record
from esper.tamiyo import FieldReportStore, RunState, TamiyoService, decide, fold
from esper.tamiyo._service import GROUP
from tests.conftest import RunningBroker
from tests.tamiyo.scripted_run import ScriptedRun
from tests.tamiyo.worker import ANSWER_SECONDS, Worker, serving

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def open_fabric(broker: RunningBroker) -> Callable[[], Fabric]:
    """Return a function that opens one more fabric on the session's broker."""
    return lambda: Fabric.open(broker.settings, member="tamiyo-test")


@contextmanager
def member(broker: RunningBroker, *, instance: str = "tamiyo-0") -> Iterator[subprocess.Popen[bytes]]:
    """Run a real Tamiyo process; it is gone when the block ends."""
    home = str(broker.settings.home)
    process = subprocess.Popen([sys.executable, "-m", "tests.tamiyo.member", home, instance], cwd=ROOT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        finally:
            process.kill()


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process as a power cut would."""
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)


def assert_one_answer_each(worker: Worker, epochs: list[int]) -> None:
    """Assert that exactly `epochs` have a decision and a command, one of each, linked and in order."""
    worker.log.read_up()
    decisions, commands = worker.log.of(ly.DecisionMade), worker.log.of(ly.AdaptationCommand)
    assert [made.epoch for made in decisions] == epochs
    assert [command.epoch for command in commands] == epochs
    run_id = worker.run.run_id
    for made, command in zip(decisions, commands, strict=True):
        assert made.state_event_id == made.meta.causation_id == derive_id(run_id, "state", made.epoch)
        assert made.meta.event_id == derive_id(run_id, "decision", made.state_event_id) == command.decision_id
        assert command.meta.event_id == command.command_id == made.command_id
        assert command.meta.causation_id == made.state_event_id
        assert command.meta.source == command.issued_by == "tamiyo"
        assert command.issued_at.ToNanoseconds() <= command.meta.time.ToNanoseconds()


def test_a_whole_run_is_answered_recorded_and_reported(fabric: Fabric, open_fabric: Callable[[], Fabric]) -> None:
    """Forty epochs over the real broker: a seed grows up, each epoch has its answer, each decision its report."""
    worker = Worker(fabric, ScriptedRun(new_run_id(), epochs=40))
    with serving(open_fabric):
        worker.request()
        for _ in range(40):
            worker.answered_epoch()
        worker.finish()
        reports = worker.reported(40)
    assert worker.run.stages() == ["FOSSILIZED"]
    assert_one_answer_each(worker, list(range(1, 41)))
    store = FieldReportStore()
    assert all(store.fold(report) for report in reports)
    for made in worker.log.of(ly.DecisionMade):
        report = store.of_decision(made.meta.event_id)
        assert report is not None
        assert report.meta.causation_id == made.meta.event_id
        assert report.HasField("issued_at")
    median = statistics.median(worker.latencies_ms[1:])
    assert median < 100.0, f"state appended -> command read takes {median:.1f} ms at the median"


def test_decisions_come_before_their_commands(fabric: Fabric, open_fabric: Callable[[], Fabric]) -> None:
    """The broker's own append times: no command may stand in the log before the decision behind it."""
    worker = Worker(fabric, ScriptedRun(new_run_id(), epochs=5))
    with serving(open_fabric):
        worker.request()
        for _ in range(5):
            worker.answered_epoch()
    worker.log.read_up()
    appended = {event.meta.event_id: event.record.append_time_ms for event in worker.log.events}
    for command in worker.log.of(ly.AdaptationCommand):
        assert appended[command.decision_id] <= appended[command.command_id]


def test_a_packet_that_is_appended_again_is_not_decided_again(
    fabric: Fabric, open_fabric: Callable[[], Fabric]
) -> None:
    """A second producer appends the same epoch once more, as another attempt would; the first one counts."""
    worker = Worker(fabric, ScriptedRun(new_run_id(), epochs=10))
    with serving(open_fabric):
        worker.request()
        packet = worker.packet()
        worker.log.wait_for(lambda: worker.log.command(1))
        again = ly.SystemStatePacket()
        again.CopyFrom(packet)
        fabric.publisher("tolaria").publish(again, key=worker.run.run_id)
        worker.outcome(worker.log.command(1))
        worker.answered_epoch()
    assert_one_answer_each(worker, [1, 2])


def test_an_unknown_policy_is_answered_with_continue(fabric: Fabric, open_fabric: Callable[[], Fabric]) -> None:
    """A request that nobody checked must not stop its run; the decision says what was wrong with it."""
    worker = Worker(fabric, ScriptedRun(new_run_id(), epochs=3, policy="clairvoyant"))
    with serving(open_fabric):
        worker.request()
        outcome = worker.answered_epoch()
    assert outcome.command_type == ly.COMMAND_CONTINUE
    (made,) = worker.log.of(ly.DecisionMade)
    assert "clairvoyant" in made.reasons[0]
    assert "heuristic" in made.reasons[0]


def test_parameters_are_read_from_a_request_that_came_after_the_start(
    fabric: Fabric, open_fabric: Callable[[], Fabric]
) -> None:
    """The service runs already; request and first packet come at once, and the schedule must be the request's."""
    with serving(open_fabric):
        for _ in range(3):
            worker = Worker(fabric, ScriptedRun(new_run_id(), policy="fixed", parameters={"germinate": 1.0}))
            worker.request()
            assert worker.answered_epoch().seed_operation == ly.SEED_OP_GERMINATE


def test_telemetry_tells_loss_and_latency(fabric: Fabric, open_fabric: Callable[[], Fabric]) -> None:
    """Two epochs: two packets of telemetry, the second with the change of the loss."""
    worker = Worker(fabric, ScriptedRun(new_run_id(), epochs=5))
    reader = fabric.reader({("telemetry", 0): "end"})
    with serving(open_fabric):
        worker.request()
        worker.answered_epoch()
        worker.answered_epoch()
    told = [event.message for event in reader.read_to_end() if event.meta.source == "tamiyo"]
    mine = [
        {metric.name: metric.value for metric in packet.metrics}
        for packet in told
        if isinstance(packet, ly.TelemetryPacket) and packet.metrics[0].attributes["run_id"] == worker.run.run_id
    ]
    # Whether a blueprint's risk is known depends on who registered it before on this broker.
    assert [set(metrics) - {"tamiyo.blueprint.risk"} for metrics in mine] == [
        {"tamiyo.validation_loss", "tamiyo.inference.latency_ms", "tamiyo.conservative_mode"},
        {"tamiyo.validation_loss", "tamiyo.inference.latency_ms", "tamiyo.conservative_mode", "tamiyo.loss_delta"},
    ]
    assert mine[1]["tamiyo.loss_delta"] == pytest.approx(2.0 * (0.97**2 - 0.97))
    assert 0.0 < mine[1]["tamiyo.inference.latency_ms"] < 1_000.0


def test_of_a_backlog_only_the_latest_packet_is_decided(fabric: Fabric, open_fabric: Callable[[], Fabric]) -> None:
    """Five epochs went by while nobody served; the service answers the last one and leaves the others alone."""
    worker = Worker(fabric, ScriptedRun(new_run_id(), epochs=10))
    worker.request()
    for _ in range(4):
        worker.silent_epoch()
    worker.packet()
    with serving(open_fabric):
        worker.log.wait_for(lambda: worker.log.command(5))
        worker.outcome(worker.log.command(5))
        worker.answered_epoch()
    assert_one_answer_each(worker, [5, 6])


def test_a_decision_without_its_command_gets_it(fabric: Fabric, open_fabric: Callable[[], Fabric]) -> None:
    """The log holds a decision whose writer died before the command; the next life sends just that command."""
    worker = Worker(fabric, ScriptedRun(new_run_id(), epochs=10))
    worker.request()
    state = fold(RunState(worker.run.run_id), worker.packet())
    made = decide(state, state.packets[1]).made
    fabric.publisher("tamiyo").publish(made, key=worker.run.run_id, causation_id=made.state_event_id)
    with serving(open_fabric):
        worker.log.wait_for(lambda: worker.log.command(1))
        worker.outcome(worker.log.command(1))
        worker.answered_epoch()
    assert_one_answer_each(worker, [1, 2])


def test_a_run_that_ended_meanwhile_gets_reports_only(fabric: Fabric, open_fabric: Callable[[], Fabric]) -> None:
    """A decision, its command and the end of the run stand in the log; what is owed is the report, nothing else."""
    worker = Worker(fabric, ScriptedRun(new_run_id(), epochs=1, policy="noop"))
    worker.request()
    state = fold(RunState(worker.run.run_id), worker.packet())
    decision = decide(state, state.packets[1])
    publisher = fabric.publisher("tamiyo")
    key, packet_id = worker.run.run_id, state.packets[1].event_id
    publisher.publish(decision.made, key=key, causation_id=packet_id)
    publisher.publish(decision.command, key=key, causation_id=packet_id, event_id=decision.command.command_id)
    worker.outcome(decision.command)
    worker.finish()
    with serving(open_fabric):
        (report,) = worker.reported(1)
    assert report.terminated
    worker.log.read_up()
    assert len(worker.log.of(ly.DecisionMade)) == len(worker.log.of(ly.AdaptationCommand)) == 1


def test_evaluate_epoch_answers_without_appending(fabric: Fabric) -> None:
    """The call of the brief: the same packet gives the same answer, and a closed run none."""
    run = ScriptedRun(new_run_id(), epochs=1, policy="noop")
    service = TamiyoService(fabric, instance="tamiyo-quiet")
    packet = run.next_packet()
    made, command = service.evaluate_epoch(packet)
    assert (made, command) == service.evaluate_epoch(packet)
    assert made.command_id == command.command_id
    assert made.proposed == command
    reader = fabric.reader({("decisions", fabric.partition_of("decisions", run.run_id)): "begin"})
    assert not [event for event in reader.read_to_end() if event.meta.subject == run.run_id]
    ledger = service._ledger(fabric.partition_of("system-state", run.run_id))
    ledger.fold(run.finished())
    assert ledger.close_if_settled(run.run_id)
    with pytest.raises(NotReadyError, match="is not decided"):
        service.evaluate_epoch(packet)


def test_a_killed_tamiyo_comes_back_and_answers_nothing_twice(broker: RunningBroker, fabric: Fabric) -> None:
    """SIGKILL a real process twice in mid-run; silent epochs stay silent, every other epoch has one answer."""
    worker = Worker(fabric, ScriptedRun(new_run_id(), epochs=20))
    worker.request()
    answered: list[int] = []
    for life in range(3):
        with member(broker) as process:
            answered += [worker.answered_epoch().epoch for _ in range(3)]
            if life < 2:
                kill(process)
                worker.silent_epoch()
                worker.silent_epoch()
    worker.finish()
    with member(broker):
        worker.reported(len(answered))
    assert answered == [1, 2, 3, 6, 7, 8, 11, 12, 13]
    assert_one_answer_each(worker, answered)
    assert len(worker.log.of(ly.FieldReport)) == len(answered)


def test_a_kill_at_any_moment_of_an_answer_yields_one_answer(broker: RunningBroker, fabric: Fabric) -> None:
    """Append a packet and SIGKILL at once: the next life finishes whatever part of the answer was appended."""
    worker = Worker(fabric, ScriptedRun(new_run_id(), epochs=20))
    worker.request()
    for _ in range(3):
        with member(broker) as process:
            worker.answered_epoch()
            packet = worker.packet()
            kill(process)
        with member(broker):
            epoch = packet.current_epoch
            worker.log.wait_for(lambda: worker.log.command(epoch), seconds=ANSWER_SECONDS)  # noqa: B023 - called here
            worker.outcome(worker.log.command(epoch))
    assert_one_answer_each(worker, list(range(1, 7)))


def test_partitions_move_between_members_without_a_second_answer(
    broker: RunningBroker, fabric: Fabric, open_fabric: Callable[[], Fabric]
) -> None:
    """A second member joins and is killed: a run on each partition goes on, every epoch answered once."""
    workers = [Worker(fabric, ScriptedRun(run_id, epochs=10, policy="noop")) for run_id in one_run_each(fabric)]
    with serving(open_fabric):
        for worker in workers:
            worker.request()
            worker.answered_epoch()
        with member(broker, instance="tamiyo-1") as process:
            wait_for_members(fabric, 2)
            for worker in workers:
                worker.answered_epoch()
            kill(process)
        for worker in workers:
            worker.answered_epoch()
    for worker in workers:
        assert_one_answer_each(worker, [1, 2, 3])


def one_run_each(fabric: Fabric) -> list[str]:
    """Return a fresh run id for each partition."""
    found: dict[int, str] = {}
    while len(found) < fabric.topics["system-state"].partitions:
        run_id = new_run_id()
        found.setdefault(fabric.partition_of("system-state", run_id), run_id)
    return list(found.values())


def wait_for_members(fabric: Fabric, count: int) -> None:
    """Wait until `count` members of Tamiyo's group hold partitions."""
    deadline = Deadline(ANSWER_SECONDS)
    while True:
        group = fabric.cluster.admin.describe_consumer_groups([GROUP])[GROUP].result()
        if sum(bool(found.assignment.topic_partitions) for found in group.members) == count:
            return
        assert not deadline.expired, f"the group did not come to {count} members"
        threading.Event().wait(0.1)


def test_what_was_not_rebuilt_is_not_handled(fabric: Fabric) -> None:
    """A stop in the middle of a rebuild leaves a state that must not be believed: its events wait for the next life."""
    service = TamiyoService(fabric, instance="tamiyo-stopped")
    service._stop.set()
    service._assigned([("system-state", 0), ("runs", 0)])
    packet = ScriptedRun(new_run_id()).next_packet()
    record = Record("system-state", 0, 0, b"", b"")
    with pytest.raises(NotReadyError, match="is not handled") as caught:
        service._handle(Event(record, packet.meta, packet))
    assert caught.value.retriable


def test_a_withdrawal_is_heeded_and_ends(fabric: Fabric, open_fabric: Callable[[], Fabric]) -> None:
    """A person withdraws what the schedule wants: no epoch germinates it; approved again, it is germinated."""
    known = catalogue()["BP014"]
    with fabric.publisher("karn") as karn:
        karn_service(fabric, catalog=KarnCatalog({"BP014": known})).register(karn)
    wish = {"blueprint": 14.0, "germinate": 1.0, "parameter.gate_bias": 0.0}
    worker = Worker(fabric, ScriptedRun(new_run_id(), epochs=60, policy="fixed", parameters=wish))
    withdraw(fabric, {"BP014": known}, "BP014", who="bob", reason="a test")
    try:
        with serving(open_fabric):
            worker.request()
            for _ in range(5):
                worker.answered_epoch()
            assert germinations(worker) == []
            masks = [
                dict(zip(head.actions, head.mask, strict=True)) for head in worker.log.of(ly.DecisionMade)[-1].heads
            ]
            assert masks[0]["germinate"] is False
            approve(fabric, {"BP014": known}, "BP014", who="ann", reason="a test")
            while not germinations(worker) and len(worker.log.of(ly.DecisionMade)) < 60:
                worker.answered_epoch()
        assert germinations(worker) == ["BP014"]
    finally:
        approve(fabric, {"BP014": known}, "BP014", who="ann", reason="a test")


def germinations(worker: Worker) -> list[str]:
    """Return the blueprints that were ordered, in order."""
    orders = [command.seed_operation for command in worker.log.of(ly.AdaptationCommand)]
    return [order.blueprint_id for order in orders if order.operation == ly.SEED_OP_GERMINATE]
