"""The campaign's judge can fail: every kind of loss, double, inversion and forgery is found in a log that has it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from esper.leyline import Envelope, EventMessage, KeyRing, mac_of, type_of
from esper.leyline import messages as ly
from tests.faults._independent import Log, Raw
from tests.faults._rules import judge, judge_tables

SECRET = b"0123456789abcdef" * 4
REPOSITORY = Path(__file__).resolve().parents[2]
PLACE = "topic_partition integer, record_offset bigint"
KEYS, NUMBERS = ("run-a", "run-b"), (1, 2, 3)


class Story:
    """A small log as the fabric writes it: signed by its own ring, chained by producer, one partition a topic."""

    def __init__(self) -> None:
        self.records: list[Raw] = []
        self.acknowledged: dict[str, tuple[int, int]] = {}
        self._ring = KeyRing.from_secrets(SECRET)
        self._ends: dict[tuple[str, str], tuple[int, bytes]] = {}
        self._digests: dict[str, str] = {}

    def append(
        self, topic: str, message: EventMessage, key: str, event_id: str, *, cause: str = "", producer: str
    ) -> Raw:
        """Append one event to partition 0 of a topic."""
        sequence, previous = self._ends.get((producer, topic), (0, b""))
        meta = message.meta
        meta.event_id, meta.type, meta.subject, meta.causation_id = event_id, type_of(message), key, cause
        meta.producer_id, meta.sequence, meta.previous_mac = producer, sequence + 1, previous
        meta.time.FromNanoseconds(1)
        value = message.SerializeToString(deterministic=True)  # type: ignore[attr-defined]  # every message has it
        signature = self._ring.sign(Envelope(topic, 0, key, meta.type, value), source=producer.split(":")[0])
        self._ends[(producer, topic)] = (sequence + 1, mac_of(signature))
        offset = sum(record.topic == topic for record in self.records)
        headers = (("signature", signature), ("type", meta.type.encode()))
        self.records.append(Raw(topic, 0, offset, key.encode(), value, headers))
        return self.records[-1]

    def packet(self, key: str, number: int, *, producer: str = "tolaria:1", loss: float = 0.0) -> None:
        """Append a state packet and take note of its receipt."""
        message = ly.SystemStatePacket(training_run_id=key, current_epoch=number, training_loss=loss)
        record = self.append("system-state", message, key, packet_id(key, number), producer=producer)
        self.acknowledged.setdefault(packet_id(key, number), (0, record.offset))

    def decision(self, key: str, number: int, *, producer: str = "tamiyo:1", name: str = "decision") -> None:
        """Append the decision about a packet."""
        cause = packet_id(key, number)
        digest = ""
        for step in range(1, number + 1):
            digest = hashlib.sha256((digest + packet_id(key, step)).encode()).hexdigest()
        message = ly.DecisionMade(run_id=key, epoch=number, state_event_id=cause, policy_digest=digest)
        self.append("decisions", message, key, identity(name, cause), cause=cause, producer=producer)

    def command(self, key: str, number: int, *, producer: str = "tamiyo:1", name: str = "command") -> None:
        """Append the command that answers a packet."""
        cause = packet_id(key, number)
        message = ly.AdaptationCommand(training_run_id=key, epoch=number)
        self.append("adaptation-commands", message, key, identity(name, cause), cause=cause, producer=producer)

    def findings(self) -> list[str]:
        """Return the kinds of what the judge finds, each once."""
        log = Log(SECRET).take_all(self.records)
        return sorted({finding.kind for finding in judge(log, self.acknowledged)})


def identity(*words: str) -> str:
    """Return an id of 32 hexadecimal digits."""
    return hashlib.sha256("/".join(words).encode()).hexdigest()[:32]


def packet_id(key: str, number: int) -> str:
    """Return the id of a state packet."""
    return identity("packet", key, str(number))


STEPS = [(key, number) for number in NUMBERS for key in KEYS]


def told(*, packets: list[tuple[str, int]] = STEPS, answers: list[tuple[str, int]] | None = None) -> Story:
    """Return the story of packets and their answers, in these orders."""
    story = Story()
    for step in packets:
        story.packet(*step)
    for step in packets if answers is None else answers:
        story.decision(*step)
        story.command(*step)
    return story


def test_a_sound_log_has_no_findings() -> None:
    """Goal: what the fabric writes after a kill is believed. Method: successors append anew, say whom they follow."""
    story = told()
    last = next(record for record in reversed(story.records) if record.topic == "system-state")
    for number in (2, 3):
        story.packet("run-b", number, producer="tolaria:2")
        story.command("run-b", number, producer="tamiyo:2")
    mac = mac_of(last.headers[0][1])
    link = ly.ChainLink(topic="system-state", partition=0, sequence=6, offset=last.offset, mac=mac)
    started = ly.ProducerStarted(member="tolaria-0", predecessor_id="tolaria:1", links=[link])
    story.append("operations", started, "tolaria:1", identity("started"), producer="tolaria:2")
    log = Log(SECRET).take_all(story.records)
    assert judge(log, story.acknowledged) == []
    assert log.copies == {"system-state": 2, "adaptation-commands": 2}
    assert log.lives == 4


# What happens to the records of a sound log ------------------------------------------------------------------


def place_of(story: Story, topic: str, offset: int) -> int:
    """Return where in the story a record stands."""
    return next(i for i, record in enumerate(story.records) if (record.topic, record.offset) == (topic, offset))


def drop(story: Story) -> None:
    """Take an acknowledged record away; those behind it move up."""
    gone = story.records.pop(place_of(story, "system-state", 3))
    for index, record in enumerate(story.records):
        if record.topic == gone.topic and record.offset > gone.offset:
            story.records[index] = record._replace(offset=record.offset - 1)


def cut_off(story: Story) -> None:
    """Take the last acknowledged record away, which no chain tells."""
    story.records.pop(place_of(story, "system-state", len(STEPS) - 1))


def swap(story: Story) -> None:
    """Let two records of one key change places."""
    one, other = place_of(story, "system-state", 0), place_of(story, "system-state", 2)
    first, second = story.records[one], story.records[other]
    story.records[one] = second._replace(offset=first.offset)
    story.records[other] = first._replace(offset=second.offset)


def flip(story: Story) -> None:
    """Turn one bit of a value."""
    at = place_of(story, "decisions", 2)
    value = bytearray(story.records[at].value)
    value[-1] ^= 1
    story.records[at] = story.records[at]._replace(value=bytes(value))


def repeat(story: Story) -> None:
    """Append a record's bytes a second time."""
    record = story.records[place_of(story, "decisions", 2)]
    story.records.append(record._replace(offset=len(STEPS)))


def move(story: Story) -> None:
    """Put a record on another partition."""
    at = place_of(story, "decisions", len(STEPS) - 1)
    story.records[at] = story.records[at]._replace(partition=1, offset=0)


@pytest.mark.parametrize(
    ("tamper", "kinds"),
    [
        (drop, {"lost", "chain", "no cause"}),
        (cut_off, {"lost", "no cause"}),
        (swap, {"lost", "chain"}),
        (flip, {"signature", "chain", "no effect"}),
        (repeat, {"chain"}),
        (move, {"signature", "no effect"}),
    ],
)
def test_records_that_were_tampered_with_are_found(tamper: Callable[[Story], None], kinds: set[str]) -> None:
    """Goal: no change of the log passes. Method: change a sound log's records, ask for what each change must show."""
    story = told()
    tamper(story)
    assert kinds <= set(story.findings())


# What a broken fabric would write: signed and chained as it should be ----------------------------------------


def swapped() -> list[tuple[str, int]]:
    """Return the steps with two of one key in the wrong order."""
    return [STEPS[2], STEPS[1], STEPS[0], *STEPS[3:]]


def test_what_a_broken_fabric_would_write_is_found() -> None:
    """Goal: the rules find what no signature shows. Method: write logs with one fault each, signed and chained."""
    assert told(packets=swapped()).findings() == ["inversion"]
    assert told(answers=swapped()).findings() == ["inversion"]
    assert told(answers=STEPS[:-1]).findings() == ["no effect"]
    doubled = told()
    doubled.command("run-b", 3, name="again")
    assert "doubled" in doubled.findings()
    strange = told()
    strange.command("run-b", 4)
    assert strange.findings() == ["no cause"]
    contradicting = told()
    contradicting.packet("run-b", 3, producer="tolaria:2", loss=1.0)
    assert contradicting.findings() == ["contradiction"]
    unwritten = told()
    unwritten.acknowledged[identity("never")] = (0, 6)
    assert unwritten.findings() == ["lost"]
    elsewhere = told()
    elsewhere.acknowledged[packet_id("run-a", 1)] = (0, 1)
    assert elsewhere.findings() == ["lost"]
    assert told(packets=[("run-a", 1), ("run-a", 3)]).findings() == ["lost", "state"]


def test_a_state_that_took_an_event_twice_is_found() -> None:
    """Goal: a doubled effect on state shows though ids agree. Method: a digest over one packet taken twice."""
    story = told(answers=[])
    for step in STEPS:
        story.command(*step)
    for key, number in STEPS:
        cause, digest = packet_id(key, number), identity("a digest of something else") * 2
        message = ly.DecisionMade(run_id=key, epoch=number, state_event_id=cause, policy_digest=digest)
        story.append("decisions", message, key, identity("decision", cause), cause=cause, producer="tamiyo:1")
    assert story.findings() == ["state"]


def test_dead_letters_and_false_words_of_a_successor_are_found() -> None:
    """Goal: nothing genuine was set aside, and links are true. Method: a letter; a link to a record that is another."""
    story = told()
    story.append("dead-letters", ly.DeadLetter(topic="decisions"), "decisions-0-0", identity("x"), producer="oona:1")
    assert story.findings() == ["set aside"]
    story = told()
    link = ly.ChainLink(topic="system-state", partition=0, sequence=6, offset=4, mac=b"m" * 32)
    started = ly.ProducerStarted(member="tolaria-0", predecessor_id="tolaria:1", links=[link])
    story.append("operations", started, "tolaria:1", identity("started"), producer="tolaria:2")
    assert story.findings() == ["lost"]


# Tables and the module itself --------------------------------------------------------------------------------


def test_tables_that_miss_or_repeat_a_row_are_found(tmp_path: Path) -> None:
    """Goal: a projection that lost or doubled an event is told. Method: tables of a sound log, one row less or more."""
    story = told()
    story.packet("run-b", 3, producer="tolaria:2")
    log, path = Log(SECRET).take_all(story.records), tmp_path / "runs.duckdb"
    tables = {"system-state": "run_states", "decisions": "decisions", "adaptation-commands": "commands"}
    with duckdb.connect(str(path)) as database:
        database.execute("create schema esper")
        database.execute(f"create table esper.records (topic varchar, {PLACE}, disposition varchar)")
        for topic, table in tables.items():
            database.execute(f"create table {table} ({PLACE})")
            for offset in range(len(STEPS)):
                database.execute(f"insert into {table} values (0, ?)", [offset])  # noqa: S608 - our own table names
                database.execute("insert into esper.records values (?, 0, ?, 'applied')", [topic, offset])
        database.execute("insert into esper.records values ('system-state', 0, ?, 'deduplicated')", [len(STEPS)])
    assert judge_tables(log, path) == []
    for statement, count in [
        ("delete from run_states where record_offset = 2", 1),
        ("insert into run_states values (0, 2), (0, 6)", 1),
        ("update esper.records set disposition = 'applied' where disposition = 'deduplicated'", 3),
    ]:
        with duckdb.connect(str(path)) as database:
            database.execute(statement)
        found = judge_tables(log, path)
        assert len(found) == count, found
        assert {finding.kind for finding in found} == {"tables"}


def test_the_reader_uses_nothing_of_the_fabric() -> None:
    """Goal: one fault cannot hide another. Method: import the reader and its rules in a process, list its modules."""
    code = "import sys, tests.faults._rules; print(*(name for name in sys.modules if name.split('.')[0] == 'esper'))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == []
