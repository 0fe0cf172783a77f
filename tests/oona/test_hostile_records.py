"""Hostile records on every topic: none stops a consumer, none is applied, each is listed with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import pytest

from esper.core.ids import new_event_id
from esper.leyline import EVENT_TYPES, SIGNATURE_HEADER, TYPE_HEADER, EventMessage, KeyRing, Record, full_name
from esper.oona import DeadLetterRow, Event, Fabric, TopicSpec, list_dead_letters, show_dead_letter
from tests.oona.log import append, fresh_group, poll_to_end, poll_until, read_run, signed_record

STRANGER = KeyRing.from_secrets(b"a secret that this home does not know")


@dataclass(frozen=True)
class Target:
    """One topic under attack, and a genuine record of it to start from."""

    fabric: Fabric
    spec: TopicSpec
    genuine: Record
    key: str

    @property
    def source(self) -> str:
        """A source that may write the topic."""
        return self.spec.writers[0]

    def message(self) -> EventMessage:
        """Return a fresh message that the topic carries."""
        return message_of(self.spec)

    def signed(self, **wrong: object) -> Record:
        """Return a record signed with the home's own key, with something wrong."""
        fields: dict[str, object] = {"key": self.key, "source": self.source, **wrong}
        return signed_record(self.fabric, self.message(), **fields)  # type: ignore[arg-type]


def message_of(spec: TopicSpec) -> EventMessage:
    """Return an empty message of the topic's first type."""
    return cast("EventMessage", EVENT_TYPES[full_name(spec.messages[0])]())


def with_headers(record: Record, **changed: bytes | None) -> Record:
    """Return `record` with headers replaced, or left out where None is given."""
    headers = {name: value for name, value in record.headers if name not in changed}
    headers |= {name: value for name, value in changed.items() if value is not None}
    return replace(record, headers=tuple(headers.items()))


def flipped(content: bytes, at: int) -> bytes:
    """Return `content` with one bit turned."""
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def other_topic(target: Target) -> TopicSpec:
    """Return a topic that is not the target's and has messages of its own."""
    return next(spec for spec in target.fabric.topics if spec.name not in (target.spec.name, "telemetry"))


#: Name -> (how to make it from a topic's genuine record, the reason it must be listed with).
HOSTILE: dict[str, tuple[Callable[[Target], Record], str]] = {
    "unsigned": (lambda t: with_headers(t.genuine, signature=None), "UNSIGNED"),
    "foreign": (lambda t: Record(t.spec.name, t.genuine.partition, -1, b"\xff\x00", b'{"hello": "world"}'), "UNSIGNED"),
    "signed twice": (lambda t: replace(t.genuine, headers=(*t.genuine.headers, *t.genuine.headers)), "UNSIGNED"),
    "null value": (lambda t: replace(t.genuine, value=None), "EMPTY"),
    "zero bytes": (lambda t: replace(t.genuine, value=b""), "EMPTY"),
    "forged with another key": (lambda t: t.signed(keyring=STRANGER), "UNKNOWN_KEY"),
    "truncated": (lambda t: replace(t.genuine, value=(t.genuine.value or b"")[:-1]), "BAD_SIGNATURE"),
    "tampered": (lambda t: replace(t.genuine, value=flipped(t.genuine.value or b"", 20)), "BAD_SIGNATURE"),
    "tampered signature": (
        lambda t: with_headers(t.genuine, signature=flipped(t.genuine.header(SIGNATURE_HEADER) or b"", 39)),
        "BAD_SIGNATURE",
    ),
    "truncated signature": (
        lambda t: with_headers(t.genuine, signature=(t.genuine.header(SIGNATURE_HEADER) or b"")[:39]),
        "BAD_SIGNATURE",
    ),
    "another key of the record": (lambda t: replace(t.genuine, key=b"run-other"), "BAD_SIGNATURE"),
    "another type": (lambda t: with_headers(t.genuine, type=b"esper.leyline.v1.FieldReport2"), "BAD_SIGNATURE"),
    "moved from another topic": (
        lambda t: replace(
            signed_record(t.fabric, message_of(other_topic(t)), key=t.key, source=other_topic(t).writers[0]),
            topic=t.spec.name,
            partition=t.genuine.partition,
        ),
        "BAD_SIGNATURE",
    ),
    "no key": (lambda t: replace(t.genuine, key=None), "INCONSISTENT"),
    "no type": (lambda t: with_headers(t.genuine, type=None), "INCONSISTENT"),
    "subject is not the key": (lambda t: t.signed(subject="another"), "INCONSISTENT"),
    "meta of another type": (lambda t: t.signed(type="esper.leyline.v1.EventMeta"), "INCONSISTENT"),
    "no event id": (lambda t: t.signed(event_id=""), "INCONSISTENT"),
    "no sequence": (lambda t: t.signed(sequence=0), "INCONSISTENT"),
    "signed nonsense": (lambda t: t.signed(value=b"\xff\xff\xff\xff"), "UNDECODABLE"),
    "type that nobody knows": (lambda t: t.signed(type_name="esper.leyline.v1.Unheard"), "UNKNOWN_TYPE"),
    "source that may not write": (lambda t: t.signed(source="stranger"), "NOT_ALLOWED"),
    "type of another topic": (
        lambda t: signed_record(
            t.fabric, message_of(other_topic(t)), key=t.key, source=other_topic(t).writers[0], topic=t.spec.name
        ),
        "NOT_ALLOWED",
    ),
}


def attack(fabric: Fabric, spec: TopicSpec) -> tuple[dict[tuple[str, int, int], str], list[str]]:
    """Append every hostile kind between genuine neighbours; return what must be listed and the genuine ids."""
    key = f"run-{new_event_id()[:12]}"
    expected: dict[tuple[str, int, int], str] = {}
    genuine_ids = []
    with fabric.publisher(spec.writers[0]) as publisher:
        genuine_ids.append(publisher.publish(message_of(spec), key=key).event_id)
        (first,) = read_run(fabric, spec.name, key)
        target = Target(fabric, spec, first.record, key)
        for make, reason in HOSTILE.values():
            (hostile,) = append(fabric, [make(target)])
            expected[(hostile.topic, hostile.partition, hostile.offset)] = reason
            genuine_ids.append(publisher.publish(message_of(spec), key=key).event_id)
        append(fabric, [first.record])
        genuine_ids.append(publisher.publish(message_of(spec), key=key).event_id)
    return expected, genuine_ids


def rows_by_reference(fabric: Fabric) -> dict[tuple[str, int, int], DeadLetterRow]:
    """Return the list of dead letters; no record may be in it twice."""
    rows = list_dead_letters(fabric)
    found = {(row.topic, row.partition, row.offset): row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.campaign
def test_every_kind_on_every_topic(fabric: Fabric, record_property: Callable[[str, object], None]) -> None:
    """Nothing hostile gets through or holds up: 23 kinds between genuine records on every topic, two groups."""
    expected: dict[tuple[str, int, int], str] = {}
    genuine: list[str] = []
    for spec in list(fabric.topics):
        hostile, ids = attack(fabric, spec)
        expected |= hostile
        genuine += ids
    assert len(expected) == len(fabric.topics) * len(HOSTILE)
    for _ in range(2):
        handled = judge_everything(fabric, until=set(genuine))
        assert {handled[event_id] for event_id in genuine} == {1}
        rows = rows_by_reference(fabric)
        assert {reference: rows[reference].reason for reference in expected} == expected
        assert {rows[reference].attempts for reference in expected} == {1}
    record_property("hostile_records", len(expected))


def judge_everything(fabric: Fabric, *, until: set[str]) -> Counter[str]:
    """Read every topic to its end in a new group, and past the events `until`; return how often each was handled."""
    handled: Counter[str] = Counter()

    def handler(event: Event) -> None:
        handled[event.meta.event_id] += 1

    with fabric.consumer(
        group=fresh_group(),
        instance="judge-0",
        topics=[spec.name for spec in fabric.topics],
        handlers=dict.fromkeys(EVENT_TYPES.values(), handler),
        publisher=fabric.publisher("oona"),
    ) as consumer:
        poll_until(consumer, lambda: until <= handled.keys(), seconds=60.0)
        poll_to_end(consumer, fabric)
    return handled


def test_hostile_dead_letters_cause_one_letter_each_and_no_loop(scratch: Fabric) -> None:
    """The topic of the dead may be attacked, too: hostile records there, judged three times."""
    expected, _ = attack(scratch, scratch.topics["dead-letters"])
    listed_without_consumer = rows_by_reference(scratch)
    assert {reference: listed_without_consumer[reference].reason for reference in expected} == expected
    before = scratch.cluster.watermarks([("dead-letters", 0)])[("dead-letters", 0)][1]
    for _ in range(3):
        with scratch.consumer(
            group=fresh_group(),
            instance="judge-0",
            topics=["dead-letters"],
            handlers={},
            publisher=scratch.publisher("oona"),
        ) as consumer:
            poll_to_end(consumer, scratch)
            poll_to_end(consumer, scratch)
    after = scratch.cluster.watermarks([("dead-letters", 0)])[("dead-letters", 0)][1]
    assert after - before == len(expected)
    rows = rows_by_reference(scratch)
    assert {reference: rows[reference].reason for reference in expected} == expected


def test_oversized_record_is_set_aside_unread(fabric: Fabric) -> None:
    """A value beyond the cap is never parsed: append 9.5 MiB, signed by nobody, between genuine records."""
    key = f"run-{new_event_id()[:12]}"
    spec = fabric.topics["seed-events"]
    seen: list[str] = []
    partition = fabric.partition_of(spec.name, key)
    (huge,) = append(fabric, [Record(spec.name, partition, -1, key.encode(), bytes(9 * 1024 * 1024 + 512 * 1024))])
    with fabric.publisher("kasmina") as publisher:
        genuine = publisher.publish(message_of(spec), key=key).event_id
    with fabric.consumer(
        group=fresh_group(),
        instance="judge-0",
        topics=[spec.name],
        handlers=dict.fromkeys(
            [EVENT_TYPES[name] for name in spec.types], lambda event: seen.append(event.meta.event_id)
        ),
        publisher=fabric.publisher("oona"),
    ) as consumer:
        poll_until(consumer, lambda: genuine in seen)
    details = show_dead_letter(fabric, spec.name, partition, huge.offset)
    assert (details.reason, details.value_bytes, details.key) == ("TOO_LARGE", 9_961_472, key)
    assert details.record_unchanged
    assert details.value_digest == huge.value_digest


def test_letter_names_what_it_can_and_never_the_payload(fabric: Fabric) -> None:
    """A letter is a reference: set aside a record with a long key and a secret in its value, and look at the letter."""
    key, secret = b"k" * 400, b"a secret payload"
    (record,) = append(
        fabric, [Record("telemetry", 0, -1, key, secret, ((TYPE_HEADER, b"esper.leyline.v1.TelemetryPacket"),))]
    )
    groups = [fresh_group(), fresh_group()]
    with (
        fabric.publisher("oona") as publisher,
        fabric.reader({("telemetry", 0): record.offset}, rejects=publisher) as reader,
    ):
        reader.read_to_end()
    for group in groups:
        with fabric.consumer(
            group=group, instance="judge-0", topics=["telemetry"], handlers={}, publisher=fabric.publisher("oona")
        ) as consumer:
            poll_to_end(consumer, fabric)
    details = show_dead_letter(fabric, "telemetry", 0, record.offset)
    assert details.key == "k" * 256
    assert (details.reason, details.record_type, details.value_bytes) == ("UNSIGNED", "TelemetryPacket", len(secret))
    assert details.consumer_groups == ("esper.reader",)
    assert details.record_unchanged
    with fabric.reader({("dead-letters", 0): "begin"}) as reader:
        letters = [event.record.value or b"" for event in reader.read_to_end()]
    assert all(secret not in letter for letter in letters)
