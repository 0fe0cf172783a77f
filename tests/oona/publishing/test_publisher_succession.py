"""A failed producer's chain ends, and its successor says where: in one process, and in the one that follows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from esper.core.clock import ManualClock
from esper.core.errors import BrokerUnavailable
from esper.core.ids import new_run_id
from esper.core.settings import load_settings
from esper.leyline import SIGNATURE_HEADER, mac_of
from esper.leyline import messages as ly
from esper.oona import Event, Fabric, Publisher
from esper.oona.publishing._chain import Chain
from esper.oona.publishing._line import PublisherLine
from tests.conftest import RunningBroker
from tests.oona.log import packet, read_run

#: A member whose delivery fails for good, in a process of its own.
FAILS = """
import sys
from esper.core.errors import BrokerUnavailable
from esper.core.settings import load_settings
from esper.leyline import messages as ly
from esper.oona import Fabric
home, member, run_id = sys.argv[1:]
with Fabric.open(load_settings(_env_file=None, home=home), member=member) as fabric:
    publisher = fabric.publisher("tolaria")
    for epoch in range(3):
        publisher.publish(ly.SystemStatePacket(training_run_id=run_id, current_epoch=epoch), key=run_id)
    publisher._die(BrokerUnavailable("tolaria cannot write to the log", cause="the process fails"))
"""


def started(fabric: Fabric, predecessor_id: str) -> list[Event]:
    """Return the events that tell how one producer ended."""
    with fabric.reader({("operations", 0): "begin"}) as reader:
        return [event for event in reader.read_to_end() if event.meta.subject == predecessor_id]


def fail(publisher: Publisher) -> None:
    """Let a publisher die as of a delivery that failed for good."""
    publisher._die(BrokerUnavailable("tolaria cannot write to the log", cause="a delivery failed for good"))


def links_of(events: list[Event]) -> list[ly.ChainLink]:
    """Return the last link of each partition, from the log itself."""
    last = {(event.topic, event.partition): event for event in events}
    return [
        ly.ChainLink(
            topic=topic,
            partition=partition,
            sequence=event.meta.sequence,
            offset=event.offset,
            mac=mac_of(event.record.header(SIGNATURE_HEADER) or b""),
        )
        for (topic, partition), event in sorted(last.items())
    ]


def test_chain_keeps_the_last_acknowledged_of_each_partition() -> None:
    """Sent is not acknowledged: send three, acknowledge two, on two partitions."""
    chain = Chain()
    for sequence in (1, 2, 3):
        chain.append(("b", 1), sequence, bytes([sequence]))
    chain.append(("a", 0), 1, b"x")
    for sequence in (1, 2):
        chain.acknowledge(("b", 1), sequence, bytes([sequence]), 10 + sequence)
    chain.acknowledge(("a", 0), 1, b"x", 7)
    assert chain.last(("b", 1)).sequence == 3
    assert chain.last(("c", 0)).sequence == 0
    assert [(link.topic, link.sequence, link.offset) for link in chain.acknowledged()] == [("a", 1, 7), ("b", 2, 12)]


def test_successor_opens_with_where_its_predecessor_ended(broker: RunningBroker) -> None:
    """The chain's end is told by the next life: let a publisher fail on two topics and open the next."""
    run_id = new_run_id()
    with Fabric.open(broker.settings, member=f"tolaria-{run_id}") as fabric:
        first = fabric.publisher("tolaria")
        for epoch in range(5):
            first.publish(packet(run_id, epoch), key=run_id)
            first.publish(ly.TrainingRunStarted(run_id=run_id), key=run_id)
        fail(first)
        with pytest.raises(BrokerUnavailable, match="a delivery failed for good"):
            first.publish(packet(run_id, 5), key=run_id)
        second = fabric.publisher("tolaria")
        second.publish(packet(run_id, 6), key=run_id)
        (event,) = started(fabric, first.producer_id)
        told = cast("ly.ProducerStarted", event.message)
        assert (told.member, told.predecessor_id) == (f"tolaria-{run_id}", first.producer_id)
        assert "a delivery failed for good" in told.cause
        assert (event.meta.producer_id, event.meta.sequence) == (second.producer_id, 1)
        of_first = [
            one
            for topic in ("runs", "system-state")
            for one in read_run(fabric, topic, run_id)
            if one.meta.producer_id == first.producer_id
        ]
        assert list(told.links) == links_of(of_first)
        assert [link.sequence for link in told.links] == [5, 5]
        (packet_after,) = [one for one in read_run(fabric, "system-state", run_id) if one.message.current_epoch == 6]  # type: ignore[attr-defined]
        assert (packet_after.meta.sequence, packet_after.meta.previous_mac) == (1, b""), "a chain of its own"
        third = fabric.publisher("tolaria")
        third.publish(packet(run_id, 7), key=run_id)
        assert len(started(fabric, first.producer_id)) == 1, "it is told once"


def test_a_clean_end_needs_no_word(broker: RunningBroker) -> None:
    """Only failures are told: close a publisher and open the next."""
    run_id = new_run_id()
    with Fabric.open(broker.settings, member=f"tolaria-{run_id}") as fabric:
        with fabric.publisher("tolaria") as first:
            first.publish(packet(run_id, 1), key=run_id)
        with fabric.publisher("tolaria") as second:
            second.publish(packet(run_id, 2), key=run_id)
        assert started(fabric, first.producer_id) == []
        assert not list(fabric.home.members.glob("*.ending"))


def test_the_next_process_tells_how_the_last_one_ended(broker: RunningBroker) -> None:
    """A member is restarted in a new process: let one fail in its own process, open the same member here."""
    run_id = new_run_id()
    member = f"tolaria-{run_id}"
    words = [sys.executable, "-c", FAILS, str(broker.settings.home), member, run_id]
    died = subprocess.run(words, env=broker.environment, capture_output=True, text=True, timeout=120)
    assert died.returncode == 0, died.stderr
    (note,) = broker.home.members.glob(f"{member.replace('.', '-')}*.ending")
    assert note.stat().st_mode & 0o777 == 0o600
    with Fabric.open(broker.settings, member="tolaria-other") as other, other.publisher("tolaria"):
        assert note.exists(), "another member's end is not its business"
    with Fabric.open(broker.settings, member=member) as fabric:
        events = read_run(fabric, "system-state", run_id)
        with fabric.publisher("tolaria"):
            assert not note.exists()
        (event,) = started(fabric, events[0].meta.producer_id)
        told = cast("ly.ProducerStarted", event.message)
        assert list(told.links) == links_of(events)
        assert "the process fails" in told.cause


def test_a_note_that_is_none_is_left_alone(tmp_path: Path) -> None:
    """What cannot be read stops nobody: put garbage and another member's note where notes lie."""
    line = PublisherLine(
        member="tolaria-0",
        source="tolaria",
        folder=tmp_path,
        settings=load_settings(_env_file=None),
        clock=ManualClock(),
    )
    (tmp_path / "tolaria-0.tolaria-garbage.ending").write_text("{ no JSON")
    (tmp_path / "tolaria-0.tolaria-other.ending").write_text('{"member": "tolaria.0", "predecessorId": "tolaria:1"}')
    assert line.untold() == []
    line.dying()
    line.ended("tolaria:2", [ly.ChainLink(topic="runs", sequence=1)], "why")
    line.dying()
    line.ended("tolaria:3", [], "nothing was acknowledged")
    (ending,) = line.untold()
    assert ending.predecessor_id == "tolaria:2"
    assert [one.name for one in tmp_path.glob("*-2.ending")] == ["tolaria-0.tolaria-2.ending"]
    line.told(ending)
    assert line.untold() == []
    assert not list(tmp_path.glob("*-2.ending"))
