"""The publish breaker: failed deliveries open it, a probe closes it, backpressure is not its business."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from esper.core.clock import SYSTEM_CLOCK, Deadline, ManualClock
from esper.core.errors import BrokerUnavailable, EsperError
from esper.core.ids import new_run_id
from esper.core.settings import load_settings
from esper.leyline import messages as ly
from esper.oona import Cluster, Fabric, Publisher
from esper.oona.publishing._line import PublisherLine, PublisherMetrics
from esper.oona.publishing._queue import SendQueue
from tests.conftest import StartBroker
from tests.oona.log import packet, read_run


def line(folder: Path, clock: ManualClock, *, member: str = "tolaria-0", source: str = "tolaria") -> PublisherLine:
    """Return a line whose breaker opens after three failures for 30 seconds."""
    settings = load_settings(_env_file=None, publish_failures_max=3, publish_open_seconds=30.0)
    return PublisherLine(member=member, source=source, folder=folder, settings=settings, clock=clock)


def test_opens_after_failures_in_a_row_and_lets_one_probe_pass(tmp_path: Path) -> None:
    """The steps of a breaker: fail thrice, wait, probe, fail the probe, probe again with success."""
    clock = ManualClock()
    subject = line(tmp_path, clock)
    subject.failed()
    subject.failed()
    subject.succeeded()
    subject.failed()
    subject.failed()
    subject.admit("x")
    assert subject.breaker_state() == ly.CIRCUIT_STATE_CLOSED, "only failures in a row count"
    subject.failed()
    assert subject.breaker_state() == ly.CIRCUIT_STATE_OPEN
    with pytest.raises(BrokerUnavailable, match=r"publish breaker of tolaria is open after 3 failures.*30\.0 seconds"):
        subject.admit("x")
    clock.advance(30.0)
    assert subject.breaker_state() == ly.CIRCUIT_STATE_HALF_OPEN
    subject.admit("x")
    with pytest.raises(BrokerUnavailable, match="its probe is on its way"):
        subject.admit("x")
    subject.failed()
    assert subject.breaker_state() == ly.CIRCUIT_STATE_OPEN
    clock.advance(30.0)
    subject.admit("x")
    subject.succeeded()
    assert subject.breaker_state() == ly.CIRCUIT_STATE_CLOSED
    subject.admit("x")


def test_counts_of_closed_lives_are_kept(tmp_path: Path) -> None:
    """A source's figures outlive its publishers: close two lives and add up."""
    subject = line(tmp_path, ManualClock())
    subject.closed(PublisherMetrics(5, 4, 1, 2, 3))
    subject.closed(PublisherMetrics(1, 1, 0, 0, 0))
    assert subject.closed_lives == PublisherMetrics(6, 5, 1, 2, 3)


def test_defect_7_backpressure_counted_as_failure(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predecessor: three waits opened the breaker, then conservative mode. Submit 500 events through a queue of ten."""
    monkeypatch.setattr("esper.oona.publishing._queue.QUEUE_RECORDS_MAX", 10)
    run_id = new_run_id()
    with fabric.publisher("tolaria") as publisher:
        for epoch in range(500):
            publisher.submit(packet(run_id, epoch), key=run_id)
        assert publisher.metrics().backpressure_waits > 3
        assert fabric.metrics().sources["tolaria"].breaker == ly.CIRCUIT_STATE_CLOSED
        assert fabric.conservative() == ()
        publisher.flush()
        assert publisher.metrics().failed == 0
    assert len(read_run(fabric, "system-state", run_id)) == 500


def test_breaker_opens_with_the_broker_away_and_closes_with_its_return(start_broker: StartBroker) -> None:
    """A dead broker is refused at once and found again by a probe: kill it, fail twice, start it, try on."""
    running = start_broker(broker_retry_seconds=2.0, publish_failures_max=2, publish_open_seconds=3.0)
    run_id = new_run_id()
    with Fabric.open(running.settings, member="tolaria-0") as fabric:
        publisher = fabric.publisher("tolaria")
        publisher.publish(packet(run_id, 1), key=run_id)
        running.local.kill()
        with pytest.raises(BrokerUnavailable):
            publisher.publish(packet(run_id, 2), key=run_id)
        assert fabric.metrics().sources["tolaria"].breaker == ly.CIRCUIT_STATE_CLOSED
        with pytest.raises(BrokerUnavailable):
            fabric.publisher("tolaria")
        assert fabric.metrics().sources["tolaria"].breaker == ly.CIRCUIT_STATE_OPEN
        assert fabric.conservative() == ("publish breaker of tolaria: CIRCUIT_STATE_OPEN",)
        with pytest.raises(BrokerUnavailable, match="publish breaker of tolaria is open after 2 failures"):
            fabric.publisher("tolaria")
        running.local.start()
        successor = probe(fabric)
        assert fabric.metrics().sources["tolaria"].breaker == ly.CIRCUIT_STATE_CLOSED
        assert fabric.conservative() == ()
        successor.publish(packet(run_id, 3), key=run_id)
        with fabric.reader({("operations", 0): "begin"}) as reader:
            started = [event for event in reader.read_to_end() if isinstance(event.message, ly.ProducerStarted)]
        assert [event.meta.producer_id for event in started] == [successor.producer_id], "the probe tells the ending"
        (state,) = {one.meta.producer_id for one in read_run(fabric, "system-state", run_id)} - {successor.producer_id}
        assert started[0].meta.subject == state


def probe(fabric: Fabric) -> Publisher:
    """Open a publisher as soon as the breaker lets a probe pass."""
    deadline, pause = Deadline(60.0), threading.Event()
    while True:  # ends with a publisher, or at the deadline
        try:
            return fabric.publisher("tolaria")
        except BrokerUnavailable:
            assert not deadline.expired
            pause.wait(0.2)


def lonely_queue(folder: Path, *, given_up: list[EsperError]) -> SendQueue:
    """Return a queue whose broker is never there, and which gives up after a second."""
    settings = load_settings(_env_file=None, home=folder, kafka_bootstrap="127.0.0.1:1", broker_retry_seconds=1.0)

    def give_up(error: EsperError) -> EsperError:
        given_up.append(error)
        return error

    return SendQueue(
        Cluster(settings, "127.0.0.1:1"),
        name="lonely",
        clock=SYSTEM_CLOCK,
        check=lambda: None,
        give_up=give_up,
        on_error=lambda _: None,
        on_tick=lambda: None,
    )


def test_a_queue_that_stays_full_gives_up_and_never_blocks_the_impatient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patience has an end, and the delivery thread has none: fill a queue without a broker by bytes and by number."""
    monkeypatch.setattr("esper.oona.publishing._queue.QUEUE_RECORDS_MAX", 50)
    monkeypatch.setattr("esper.oona.publishing._queue._QUEUE_KIBIBYTES_MAX", 2048)
    given_up: list[EsperError] = []
    queue = lonely_queue(tmp_path, given_up=given_up)

    def put(*, patient: bool) -> None:
        queue.put(("runs", 0), "run", b"x" * 900_000, [], lambda *_: None, "x", patient=patient)

    put(patient=True)
    put(patient=True)
    with pytest.raises(BufferError):
        put(patient=False)
    assert queue.waits == 0
    with pytest.raises(BrokerUnavailable, match="the queue stayed full for 1 seconds"):
        put(patient=True)
    while queue.backlog_records < 50:
        queue.put(("runs", 0), "run", b"", [], lambda *_: None, "x")
    with pytest.raises(BrokerUnavailable, match="the queue stayed full for 1 seconds"):
        queue.await_room("x")
    assert len(given_up) == 2
    assert queue.waits > 100
