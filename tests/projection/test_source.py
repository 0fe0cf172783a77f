"""The contract of a record source, run alike against the log in memory and the real broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from esper.core.clock import Deadline
from esper.core.errors import NotReadyError
from esper.leyline import Record
from esper.leyline import messages as ly
from esper.projection import KafkaSource, RecordSource
from tests.conftest import RunningBroker
from tests.projection.log import Log
from tests.projection.system import System, own_system


@dataclass(frozen=True)
class Setup:
    """A source over two topics, and how to append one event to the log behind it."""

    source: RecordSource
    topics: tuple[str, str]
    append: Callable[[str, int], None]


@pytest.fixture(scope="module")
def kafka(broker: RunningBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system on the real broker."""
    with own_system(broker, tmp_path_factory.mktemp("source")) as system:
        yield system


@pytest.fixture(params=["memory", "kafka"])
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    """Each kind of source in turn, each test with runs of its own."""
    if request.param == "memory":
        log = Log()
        yield Setup(log.source, ("runs", "system-state"), lambda run, epoch: _append(log, run, epoch))
        return
    system: System = request.getfixturevalue("kafka")
    topics = (system.topic("runs"), system.topic("system-state"))
    source = KafkaSource(system.fabric, topics)
    yield Setup(source, topics, lambda run, epoch: _append(system, run, epoch))
    source.close()


def _append(log: Log | System, run: str, epoch: int) -> None:
    log.append(ly.SystemStatePacket(training_run_id=run, current_epoch=epoch, attempt=1), key=run)


def _read(source: RecordSource, count: int) -> list[Record]:
    """Read `count` records, however many calls that takes."""
    deadline, records = Deadline(30), list[Record]()
    while len(records) < count:
        assert not deadline.expired
        records += source.read(0.5, 2).records()
    return records


def test_records_come_in_order_from_where_one_stands(setup: Setup) -> None:
    """Seek and read: everything from an offset on, once, in order, and the position follows."""
    before = setup.source.state()
    for epoch in range(1, 6):
        setup.append("run-order", epoch)
    after = setup.source.state()
    (place,) = [one for one in after if after[one].high != before[one].high]
    begin = before[place].high

    setup.source.seek({place: begin + 1})
    records = _read(setup.source, 4)

    assert [(record.topic, record.partition, record.offset) for record in records] == [
        (*place, offset) for offset in range(begin + 1, begin + 5)
    ]
    assert setup.source.positions() == {place: begin + 5}
    assert not len(setup.source.read(0.1, 10))
    assert records[0].key == b"run-order"


def test_a_new_seek_leaves_the_old_place(setup: Setup) -> None:
    """Seeking back reads the same records again, byte for byte, and only the partitions asked for."""
    setup.append("run-again", 1)
    state = setup.source.state()
    place = max(
        (one for one in state if one[0] == setup.topics[1] and state[one].high > 0), key=lambda one: state[one].high
    )
    setup.source.seek({place: state[place].high - 1})
    first = _read(setup.source, 1)
    setup.source.seek({place: state[place].high - 1})
    assert _read(setup.source, 1) == first


def test_the_state_names_every_partition(setup: Setup) -> None:
    """Ids and ends are told for all partitions of the topics; one topic has one id, two topics have two."""
    state = setup.source.state()
    ids = setup.source.topic_ids()
    assert {topic for topic, _ in state} >= set(setup.topics)
    assert ids[setup.topics[0]] != ids[setup.topics[1]]
    assert setup.source.topic_ids() == ids
    for (topic, _), found in state.items():
        assert found.topic_id == ids[topic]
        assert 0 <= found.low <= found.high


def test_a_topic_that_is_not_there_is_named(kafka: System) -> None:
    """Asking for an unknown topic fails with its name: on the broker and in memory."""
    source = KafkaSource(kafka.fabric, ("no-such-topic",))
    with pytest.raises(NotReadyError, match="no-such-topic"):
        source.topic_ids()
    with pytest.raises(NotReadyError, match="no-such-topic"):
        Log().source.seek({("no-such-topic", 0): 0})
