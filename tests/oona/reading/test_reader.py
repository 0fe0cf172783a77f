"""Readers: replay from any position, follow the tail, believe nothing that is not authentic."""

from __future__ import annotations

from typing import cast

import pytest

from esper.core.clock import Deadline
from esper.core.errors import IntegrityError, NotReadyError, UsageError
from esper.core.ids import new_run_id
from esper.leyline import Record
from esper.leyline import messages as ly
from esper.oona import Event, Fabric, Reader, list_dead_letters
from tests.oona.log import append, packet


def epochs(events: list[Event], run_id: str) -> list[int]:
    """Return the epochs of one run's packets."""
    mine = [event for event in events if event.meta.subject == run_id]
    return [cast("ly.SystemStatePacket", event.message).current_epoch for event in mine]


def publish_epochs(fabric: Fabric, run_id: str, numbers: range) -> list[int]:
    """Append packets of a run and return their offsets."""
    with fabric.publisher("tolaria") as publisher:
        return [publisher.publish(packet(run_id, epoch), key=run_id).offset for epoch in numbers]


def test_reading_from_begin_end_and_offset(fabric: Fabric) -> None:
    """Every position is a place to begin: read one run's partition from three of them."""
    run_id = new_run_id()
    place = ("system-state", fabric.partition_of("system-state", run_id))
    offsets = publish_epochs(fabric, run_id, range(5))
    with fabric.reader({place: "begin"}) as reader:
        assert epochs(reader.read_to_end(), run_id) == [0, 1, 2, 3, 4]
    with fabric.reader({place: offsets[3]}) as reader:
        assert epochs(reader.read_to_end(), run_id) == [3, 4]
        assert reader.positions() == {place: offsets[4] + 1}
        assert reader.at_end()
    with fabric.reader({place: "end"}) as reader:
        assert reader.read_to_end() == []
        publish_epochs(fabric, run_id, range(5, 7))
        found: list[Event] = []
        deadline = Deadline(20.0)
        while len(found) < 2 and not deadline.expired:
            found += reader.read(1.0)
        assert epochs(found, run_id) == [5, 6]


def test_reading_stops_at_the_limit_and_goes_on_from_there(fabric: Fabric) -> None:
    """A batch is bounded and loses nothing: read 30 records seven at a time."""
    run_id = new_run_id()
    place = ("system-state", fabric.partition_of("system-state", run_id))
    first = publish_epochs(fabric, run_id, range(30))[0]
    found: list[Event] = []
    with fabric.reader({place: first}) as reader:
        deadline = Deadline(20.0)
        while len(found) < 30 and not deadline.expired:
            batch = reader.read(1.0, limit=7)
            assert len(batch) <= 7
            found += batch
    assert epochs(found, run_id) == list(range(30))


def test_all_partitions_of_several_topics_are_read_to_their_ends(fabric: Fabric) -> None:
    """A reader may follow many partitions: read two topics to the end and look at positions and end."""
    run_ids = [new_run_id() for _ in range(20)]
    with fabric.publisher("tolaria") as publisher:
        for run_id in run_ids:
            publisher.submit(packet(run_id, 1), key=run_id)
            publisher.submit(ly.TrainingRunStarted(run_id=run_id), key=run_id)
        publisher.flush()
    places = [*fabric.topics.partitions("system-state"), *fabric.topics.partitions("runs")]
    with fabric.reader(dict.fromkeys(places, "begin")) as reader:
        events = reader.read_to_end()
        ends = {place: high for place, (_, high) in fabric.cluster.watermarks(places).items()}
        assert reader.positions() == ends
    for topic in ("system-state", "runs"):
        assert {event.meta.subject for event in events if event.topic == topic} >= set(run_ids)


def test_copies_are_skipped_and_raw_reading_shows_them(fabric: Fabric) -> None:
    """The same bytes appended twice are one event and two records: read both ways."""
    run_id = new_run_id()
    place = ("system-state", fabric.partition_of("system-state", run_id))
    first = publish_epochs(fabric, run_id, range(2))[0]
    with fabric.reader({place: first}) as reader:
        records = [event.record for event in reader.read_to_end()]
    append(fabric, records)
    with fabric.reader({place: first}) as reader:
        assert epochs(reader.read_to_end(), run_id) == [0, 1]
        assert reader.metrics().deduplicated == 2
    with fabric.reader({place: first}) as reader:
        raw: list[Record] = []
        deadline = Deadline(20.0)
        while len(raw) < 4 and not deadline.expired:
            raw += reader.read_raw(1.0)
    assert [record.value for record in raw] == [record.value for record in (*records, *records)]


def test_rejects_are_set_aside_once_however_often_they_are_read(fabric: Fabric) -> None:
    """A replay adds no second letter: read a forged record twice with and once without `rejects`."""
    run_id = new_run_id()
    partition = fabric.partition_of("system-state", run_id)
    (forged,) = append(fabric, [Record("system-state", partition, -1, run_id.encode(), b"forged")])
    place = ("system-state", partition)
    with fabric.reader({place: forged.offset}) as reader:
        assert reader.read_to_end() == []
        assert reader.metrics().rejected == 1
    assert all(row.key != run_id for row in list_dead_letters(fabric))
    with fabric.publisher("oona") as publisher:
        for _ in range(2):
            with fabric.reader({place: forged.offset}, rejects=publisher) as reader:
                assert reader.read_to_end() == []
        assert publisher.metrics().submitted == 1
    rows = [row for row in list_dead_letters(fabric) if row.key == run_id]
    assert [(row.offset, row.reason, row.attempts) for row in rows] == [(forged.offset, "UNSIGNED", 1)]


def test_positions_outside_the_log_stop_the_reader(fabric: Fabric) -> None:
    """A reader is never moved in silence: begin beyond the end of a partition."""
    run_id = new_run_id()
    place = ("system-state", fabric.partition_of("system-state", run_id))
    end = publish_epochs(fabric, run_id, range(1))[0] + 1

    def follow(reader: Reader, deadline: Deadline) -> None:
        while not deadline.expired:
            reader.read(0.5)

    with fabric.reader({place: end + 1_000}) as reader, pytest.raises(IntegrityError, match="does not hold"):
        follow(reader, Deadline(20.0))


def test_slips_are_told(fabric: Fabric) -> None:
    """A reader needs partitions that are there: give none, an unknown topic and no time."""
    with pytest.raises(UsageError, match="needs a partition"):
        fabric.reader({})
    with pytest.raises(UsageError, match="no topic called 'no-such-topic'"):
        fabric.reader({("no-such-topic", 0): "begin"})
    with pytest.raises(UsageError, match="no partition blueprints-1"):
        fabric.reader({("blueprints", 1): 0})
    run_id = new_run_id()
    publish_epochs(fabric, run_id, range(1))
    place = ("system-state", fabric.partition_of("system-state", run_id))
    with fabric.reader({place: "begin"}) as reader, pytest.raises(NotReadyError, match=r"records were left after 0 s"):
        reader.read_to_end(deadline_seconds=0.0)
