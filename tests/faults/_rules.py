"""What must be true of the log after the kill campaign, whatever died when; uses nothing of the fabric either."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import duckdb

from tests.faults._independent import Entry, Finding, Log, wire_fields

SOURCE: Final = "system-state"
DECISIONS: Final = "decisions"
COMMANDS: Final = "adaptation-commands"
LETTERS: Final = "dead-letters"
OPERATIONS: Final = "operations"
TOPICS: Final = (SOURCE, DECISIONS, COMMANDS, LETTERS, OPERATIONS)
#: The field that holds the run, and the one that holds the number within the run.
_RUN: Final = {SOURCE: 3, DECISIONS: 2, COMMANDS: 6}
_NUMBER: Final = {SOURCE: 6, DECISIONS: 4, COMMANDS: 7}
_STATE_EVENT_ID, _DIGEST = 5, 8
#: The tables of the shipped projection `runs` that hold one row for each event of a topic.
_TABLES: Final = {SOURCE: "run_states", DECISIONS: "decisions", COMMANDS: "commands"}


def judge(log: Log, acknowledged: Mapping[str, tuple[int, int]]) -> list[Finding]:
    """Return all that is wrong; `acknowledged` gives the partition and offset of each confirmed event of the source."""
    return [
        *log.findings,
        *_lost(log, acknowledged),
        *_out_of_order(SOURCE, log.events.get(SOURCE, {}).values()),
        *_effects(log, DECISIONS),
        *_effects(log, COMMANDS),
        *_states(log),
        *_predecessors(log),
        *(Finding("set aside", _where(entry), "a genuine record is a dead letter") for entry in _all(log, LETTERS)),
    ]


def _where(entry: Entry) -> str:
    return f"{entry.topic}-{entry.partition}-{entry.offset}"


def _all(log: Log, topic: str) -> Iterator[Entry]:
    return (entry for (name, _), entries in log.entries.items() if name == topic for entry in entries.values())


def _lost(log: Log, acknowledged: Mapping[str, tuple[int, int]]) -> Iterator[Finding]:
    """An event whose delivery was confirmed stands where the receipt says, and no run has a gap."""
    events = log.events.get(SOURCE, {})
    for event_id, (partition, offset) in acknowledged.items():
        entry = log.entries.get((SOURCE, partition), {}).get(offset)
        if event_id not in events or entry is None or entry.event_id != event_id:
            yield Finding("lost", f"{SOURCE}-{partition}-{offset}", f"acknowledged event {event_id} is not there")
    numbers: dict[str, set[int]] = {}
    for entry in events.values():
        numbers.setdefault(entry.key, set()).add(entry.number(_NUMBER[SOURCE]))
    for key, found in numbers.items():
        for missing in set(range(1, max(found) + 1)) - found:
            yield Finding("lost", SOURCE, f"number {missing} of {key} is not there, though later ones are")


def _out_of_order(topic: str, events: Iterable[Entry]) -> Iterator[Finding]:
    """Within a key the numbers never go back; `events` are in the order of each partition."""
    last: dict[str, int] = {}
    for entry in events:
        number = entry.number(_NUMBER[topic])
        if entry.content(_RUN[topic]).decode() != entry.key:
            yield Finding("contradiction", _where(entry), "the event names another run than its key")
        if number <= last.get(entry.key, 0):
            yield Finding("inversion", _where(entry), f"{entry.key}: {number} comes after {last[entry.key]}")
        last[entry.key] = max(number, last.get(entry.key, 0))


def _effects(log: Log, topic: str) -> Iterator[Finding]:
    """Every event of the source has one effect in a topic, which agrees with it, in the source's order."""
    sources, effects = log.events.get(SOURCE, {}), log.events.get(topic, {})
    count = Counter(effect.cause for effect in effects.values())
    for event_id, source in sources.items():
        if count[event_id] != 1:
            kind = "doubled" if count[event_id] else "no effect"
            yield Finding(kind, _where(source), f"{count[event_id]} events of {topic} follow from {event_id}")
    for effect in effects.values():
        cause = sources.get(effect.cause)
        if cause is None:
            yield Finding("no cause", _where(effect), f"its cause {effect.cause} is not there")
        elif (cause.key, cause.number(_NUMBER[SOURCE])) != (effect.key, effect.number(_NUMBER[topic])):
            yield Finding("contradiction", _where(effect), f"it is not about its cause at {_where(cause)}")
    yield from _out_of_order(topic, effects.values())


def _states(log: Log) -> Iterator[Finding]:
    """Each decision's digest is that of all events of its run up to it, each taken once and in order."""
    decisions = {entry.cause: entry for entry in log.events.get(DECISIONS, {}).values()}
    runs: dict[str, list[Entry]] = {}
    for entry in log.events.get(SOURCE, {}).values():
        runs.setdefault(entry.key, []).append(entry)
    for entries in runs.values():
        digest = ""
        for entry in sorted(entries, key=lambda one: one.number(_NUMBER[SOURCE])):
            digest = hashlib.sha256((digest + entry.event_id).encode()).hexdigest()
            decision = decisions.get(entry.event_id)
            if decision is None:
                continue
            if decision.content(_STATE_EVENT_ID).decode() != decision.cause:
                yield Finding("contradiction", _where(decision), "it names another event than its cause")
            if decision.content(_DIGEST).decode() != digest:
                yield Finding("state", _where(decision), "its digest is not that of its run's events")
                break  # Every later one of the run is wrong with it.


def _predecessors(log: Log) -> Iterator[Finding]:
    """What a successor says that its predecessor had acknowledged stands in the log: offset, sequence and MAC."""
    for started in _all(log, OPERATIONS):
        predecessor = started.content(3).decode()
        for link in started.fields.get(4, []):
            assert isinstance(link, bytes), "a link is a message"
            said = {number: value for number, value, _ in wire_fields(link)}
            topic, partition, offset = bytes(said[1]).decode(), int(said.get(2, 0)), int(said.get(4, 0))
            entry = log.entries.get((topic, partition), {}).get(offset)
            if entry is None or (entry.producer, entry.sequence, entry.mac) != (predecessor, said[3], said[5]):
                where = f"{topic}-{partition}-{offset}"
                yield Finding("lost", where, f"the last acknowledged record of {predecessor} is not there")


def judge_tables(log: Log, path: Path) -> list[Finding]:
    """Compare the file of the projection `runs`: one disposition for each record, one row for each event."""
    findings = []
    with duckdb.connect(str(path), read_only=True) as database:
        for topic, table in _TABLES.items():
            ledger = database.execute(
                "select topic_partition, record_offset, disposition from esper.records where topic = ?", [topic]
            ).fetchall()
            found = Counter((partition, offset, disposition) for partition, offset, disposition in ledger)
            firsts = {(entry.partition, entry.offset) for entry in log.events.get(topic, {}).values()}
            expected = Counter(
                (
                    entry.partition,
                    entry.offset,
                    "applied" if (entry.partition, entry.offset) in firsts else "deduplicated",
                )
                for entry in _all(log, topic)
            )
            findings += [Finding("tables", topic, f"{row} is not in the ledger") for row in expected - found]
            findings += [Finding("tables", topic, f"{row} is too much in the ledger") for row in found - expected]
            rows = database.execute(f"select topic_partition, record_offset from {table}").fetchall()  # noqa: S608 - our own table names
            surplus, missing = Counter(rows) - Counter(firsts), Counter(firsts) - Counter(rows)
            findings += [Finding("tables", table, f"{row} is too much in the table") for row in surplus]
            findings += [Finding("tables", table, f"{row} is not in the table") for row in missing]
    return findings
