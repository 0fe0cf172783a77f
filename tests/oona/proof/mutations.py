"""Six ways to alter a recorded log, and an oracle that says where proof must break. Uses none of the prover's code."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from esper.leyline import SIGNATURE_HEADER, Envelope, KeyRing, Record
from esper.leyline import messages as ly
from esper.oona._cluster import Position
from esper.oona.proof import ListLog

#: Kinds of mutation, as the issue names them.
KINDS = ("flip", "drop", "swap", "duplicate", "insert", "truncate")
STRANGER = KeyRing.from_secrets(b"a secret that this home does not know")


@dataclass(frozen=True)
class Mutation:
    """A log with one thing wrong."""

    what: str
    place: Position
    log: ListLog
    #: Offset at which the altered partition first differs from the recorded one.
    differs_at: int
    #: Offset at which evidence first breaks: where proof must say that something is wrong.
    breaks_at: int


def signed_ends(log: ListLog) -> dict[Position, list[int]]:
    """Return the offsets up to which the recorded checkpoints signed each partition, in order."""
    ends: dict[Position, list[int]] = {}
    for record in log.partitions[("operations", 0)]:
        content = ly.LogCheckpointContent.FromString(ly.LogCheckpoint.FromString(record.value or b"").content)
        for one in content.partitions:
            ends.setdefault((one.topic, one.partition), []).append(one.next_offset)
    return {place: sorted(found) for place, found in ends.items()}


def mutate(log: ListLog, kind: str, rng: random.Random) -> Mutation:
    """Return `log` with one random mutation of `kind` before its last checkpoint."""
    ends = signed_ends(log)
    places = sorted(place for place in ends if may(kind, place, log, ends))
    place = rng.choices(places, weights=[ends[place][-1] for place in places])[0]
    original = list(log.partitions[place])
    covered = ends[place][-1]
    what, altered, spoilt = ALTER[kind](original, covered, rng)
    ends_of = {place: _ends_of(altered, original)} if not altered or altered[0].offset > 0 else {}
    mutated = replace(log, partitions={**log.partitions, place: altered}, ends=ends_of)
    differs = next(
        (index for index, (one, other) in enumerate(zip(original, altered, strict=False)) if one != other),
        min(len(original), len(altered)),
    )
    differs_at = original[differs].offset if differs < len(original) else len(original)
    breaks = breaking_offset(original, altered, ends[place], spoilt)
    if place == ("operations", 0):
        breaks = min(breaks, _number_gap(altered, breaks))
    return Mutation(f"{what} in {place[0]}-{place[1]}", place, mutated, differs_at, breaks)


def may(kind: str, place: Position, log: ListLog, ends: dict[Position, list[int]]) -> bool:
    """Return whether a kind of mutation of a partition is one that proof claims to find."""
    if ends[place][-1] < 3:
        return False
    if kind == "truncate":
        # Cutting the checkpoints off is a documented limit; deleting old telemetry is what its topic's file says.
        return place[0] != "operations" and place[0] not in log.passing
    return True


def renumbered(records: Sequence[Record]) -> list[Record]:
    """Return records with offsets that run from 0 without a gap, as after a rewrite of the whole partition."""
    return [replace(record, offset=offset) for offset, record in enumerate(records)]


Altered = tuple[str, list[Record], int | None]


def flip(original: list[Record], covered: int, rng: random.Random) -> Altered:
    """Turn one bit of something that Kafka holds of a record."""
    index = rng.randrange(covered)
    record = original[index]
    part = rng.choice(["value", "key", "signature", "type", "append time", "a header that is not signed"])
    altered, spoilt = record, True
    if part == "value":
        altered = replace(record, value=_flipped(record.value or b"", rng))
    elif part == "key":
        altered = replace(record, key=_flipped(record.key or b"", rng))
    elif part in ("signature", "type"):
        headers = tuple(
            (name, _flipped(content or b"", rng) if name == part else content) for name, content in record.headers
        )
        altered = replace(record, headers=headers)
    elif part == "append time":
        # By less than clocks may differ, so that the record by itself is still believed.
        altered, spoilt = replace(record, append_time_ms=record.append_time_ms ^ (1 << rng.randrange(18))), False
    else:
        altered, spoilt = replace(record, headers=(*record.headers, ("traceparent", b"00-1-2-01"))), False
    return f"flip of {part} at {index}", [*original[:index], altered, *original[index + 1 :]], index if spoilt else None


def drop(original: list[Record], covered: int, rng: random.Random) -> Altered:
    """Take a record out, leaving its offset empty or closing the row."""
    index = rng.randrange(covered)
    left = [*original[:index], *original[index + 1 :]]
    if rng.random() < 0.5:
        return f"drop of {index} with a hole", left, index
    return f"drop of {index}, renumbered", renumbered(left), None


def swap(original: list[Record], covered: int, rng: random.Random) -> Altered:
    """Exchange two records."""
    first, second = sorted(rng.sample(range(covered), 2)) if rng.random() < 0.5 else _neighbours(covered, rng)
    altered = list(original)
    altered[first], altered[second] = altered[second], altered[first]
    return f"swap of {first} and {second}", renumbered(altered), None


def duplicate(original: list[Record], covered: int, rng: random.Random) -> Altered:
    """Put a record in a second time, anywhere before the last checkpoint."""
    index, at = rng.randrange(covered), rng.randrange(covered)
    return f"copy of {index} at {at}", renumbered([*original[:at], original[index], *original[at:]]), None


def insert(original: list[Record], covered: int, rng: random.Random) -> Altered:
    """Put a record in that nobody signed, or that a stranger signed, or that belongs elsewhere."""
    at = rng.randrange(covered)
    pattern = original[rng.randrange(len(original))]
    way = rng.choice(["unsigned", "signed by a stranger", "moved from another partition"])
    altered = replace(pattern, headers=())
    if way == "signed by a stranger":
        altered = resigned(pattern, STRANGER, partition=pattern.partition)
    elif way == "moved from another partition":
        # Its signature is genuine for the partition that it stood in.
        altered = replace(pattern, key=b"another-key")
    return f"insert of a record {way} at {at}", renumbered([*original[:at], altered, *original[at:]]), at


def truncate(original: list[Record], covered: int, rng: random.Random) -> Altered:
    """Cut the partition's end or beginning off."""
    if rng.random() < 0.3:
        cut = rng.randrange(1, covered)
        return f"cut of the first {cut}", original[cut:], 0
    left = rng.randrange(covered)
    return f"cut down to {left}", original[:left], left


ALTER = dict(zip(KINDS, (flip, drop, swap, duplicate, insert, truncate), strict=True))


def resigned(record: Record, keyring: KeyRing, *, partition: int, value: bytes | None = None) -> Record:
    """Return `record` signed by `keyring`, with another value if one is given."""
    content = (record.value or b"") if value is None else value
    type_name = (record.header("type") or b"").decode()
    signature = keyring.sign(Envelope(record.topic, partition, (record.key or b"").decode(), type_name, content))
    return replace(record, value=content, headers=((SIGNATURE_HEADER, signature), ("type", type_name.encode())))


def breaking_offset(original: list[Record], altered: list[Record], ends: list[int], spoilt: int | None) -> int:
    """Return the offset at which evidence first breaks, from the definitions alone.

    Exact evidence is a record that cannot be believed (`spoilt`), a link that does not hold, or an end that came too
    early. Without such evidence before the end of the first signed interval that differs, that interval's beginning.
    """
    broken = [at for at in (spoilt, _first_broken_link(altered)) if at is not None]
    start = 0
    for end in sorted(set(ends)):
        if len(altered) >= end and altered[0].offset == 0 and altered[start:end] != original[start:end]:
            exact = min(broken, default=end)
            return min(exact, start) if exact >= end else exact
        start = end
    if len(altered) < ends[-1]:
        broken.append(len(altered))
    return min(broken)


def _first_broken_link(records: Sequence[Record]) -> int | None:
    """Return the offset of the first authentic record that is not the plain successor of its producer's last one."""
    last: dict[str, tuple[int, bytes]] = {}
    for record in records:
        signature = record.header(SIGNATURE_HEADER)
        if signature is None:
            continue
        meta = ly.AnyEvent.FromString(record.value or b"").meta if _parses(record) else ly.EventMeta()
        if meta.subject.encode() != record.key or not meta.producer_id:
            continue
        sequence, mac = last.get(meta.producer_id, (0, b""))
        if (meta.sequence, meta.previous_mac) != (sequence + 1, mac):
            return record.offset
        last[meta.producer_id] = (meta.sequence, signature[8:])
    return None


def _parses(record: Record) -> bool:
    try:
        ly.AnyEvent.FromString(record.value or b"")
    except Exception:  # noqa: BLE001 - whatever protobuf raises for a flipped bit
        return False
    return True


def _number_gap(altered: Sequence[Record], otherwise: int) -> int:
    """Return the offset of the first checkpoint whose number is not the next one."""
    number = 0
    for record in altered:
        try:
            content = ly.LogCheckpointContent.FromString(ly.LogCheckpoint.FromString(record.value or b"").content)
        except Exception:  # noqa: BLE001 - as above
            return record.offset
        if content.number > number + 1:
            return record.offset
        number = max(number, content.number)
    return otherwise


def _ends_of(altered: Sequence[Record], original: Sequence[Record]) -> tuple[int, int]:
    return (altered[0].offset, altered[-1].offset + 1) if altered else (0, 0)


def _neighbours(covered: int, rng: random.Random) -> list[int]:
    first = rng.randrange(covered - 1)
    return [first, first + 1]


def _flipped(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
