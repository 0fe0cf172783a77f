"""Golden records of every type, altered in any way at all, for whoever parses them without a broker."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from esper.core.settings import Settings
from esper.leyline import SIGNATURE_HEADER, TYPE_HEADER, Envelope, KeyRing, Record, Revocations, fingerprint
from esper.leyline.v1.meta_pb2 import AnyEvent
from esper.oona import TopicCatalog, partition_for
from tests.faults._hostile import golden_values

_FORMER = b"an older secret of the same test, also long"
RING = KeyRing.from_secrets(b"a secret of this test, long enough to sign", [_FORMER])
#: The older key was revoked from some offset on in one partition, and everywhere else from the first.
RING.revocations = Revocations(boundaries={fingerprint(_FORMER): {("runs", 0): 1 << 40}})
_RINGS = [RING, RING, RING, KeyRing.from_secrets(_FORMER)]
TOPICS = TopicCatalog.load(Settings(_env_file=None))
_APPENDED_MS = 1_800_000_000_000
_ALTERATIONS_MAX = 3


@dataclass(frozen=True)
class Altered:
    """One record, and whether somebody who holds the key signed what it is now."""

    record: Record
    #: Signed again by a holder of the key, or not altered in what its signature covers.
    may_be_believed: bool


class Forge:
    """Alters golden records by a random generator."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._golden = [_signed(name, value) for name, value in sorted(golden_values().items())]
        self._alterations: list[Callable[[Record], Record]] = [
            self._turn_bits,
            self._turn_bits,
            self._cut,
            self._splice,
            self._insert,
            self._repeat,
            self._replace_header,
            self._replace_key,
            self._move,
        ]

    def altered(self) -> Altered:
        """Return a golden record altered once or more."""
        golden = record = self._rng.choice(self._golden)
        for _ in range(self._rng.randint(1, _ALTERATIONS_MAX)):
            record = self._rng.choice(self._alterations)(record)
        if self._rng.random() < 0.4:
            return Altered(_sign(record, self._rng.choice(_RINGS)), may_be_believed=True)
        return Altered(record, may_be_believed=_covered(record) == _covered(golden))

    def _turn_bits(self, record: Record) -> Record:
        content = bytearray(record.value or b"\0")
        for _ in range(self._rng.choice([1, 1, 1, 2, 8, 64])):
            place = self._rng.randrange(8 * len(content))
            content[place // 8] ^= 1 << place % 8
        return replace(record, value=bytes(content))

    def _cut(self, record: Record) -> Record:
        value = record.value or b""
        return replace(record, value=value[: self._rng.randrange(len(value) + 1)])

    def _splice(self, record: Record) -> Record:
        mine, other = record.value or b"", self._rng.choice(self._golden).value or b""
        at, begin = self._rng.randrange(len(mine) + 1), self._rng.randrange(len(other) + 1)
        return replace(record, value=mine[:at] + other[begin:])

    def _insert(self, record: Record) -> Record:
        value = record.value or b""
        at = self._rng.randrange(len(value) + 1)
        return replace(record, value=value[:at] + self._rng.randbytes(self._rng.randrange(1, 20)) + value[at:])

    def _repeat(self, record: Record) -> Record:
        return replace(record, value=(record.value or b"") * self._rng.choice([0, 2, 3]))

    def _replace_header(self, record: Record) -> Record:
        name = self._rng.choice([SIGNATURE_HEADER, TYPE_HEADER, "traceparent", ""])
        length = self._rng.choice([0, 1, 8, 39, 40, 41, 72, 300])
        content = self._rng.choice([None, self._rng.randbytes(length), *(value for _, value in record.headers)])
        kept = tuple(header for header in record.headers if header[0] != name or self._rng.random() < 0.2)
        return replace(record, headers=(*kept, (name, content)))

    def _replace_key(self, record: Record) -> Record:
        keys = [None, b"", self._rng.randbytes(self._rng.randrange(300)), "\ud7ff\U0010ffff".encode(), b"\xed\xa0\x80"]
        return replace(record, key=self._rng.choice(keys))

    def _move(self, record: Record) -> Record:
        topic = self._rng.choice(list(TOPICS)).name
        partition = self._rng.choice([record.partition, 0, 7, 2**31 - 1])
        append_time_ms = self._rng.choice([-1, 0, 1, _APPENDED_MS, 2**62])
        offset = self._rng.choice([record.offset, 0, 1 << 41, 2**63 - 1])
        return replace(record, topic=topic, partition=partition, offset=offset, append_time_ms=append_time_ms)


def _covered(record: Record) -> tuple[object, ...]:
    """Return what a signature covers, and the signature."""
    headers = [record.header(SIGNATURE_HEADER), record.header(TYPE_HEADER)]
    return (record.topic, record.partition, record.key, record.value, *headers)


def _signed(type_name: str, value: bytes) -> Record:
    """Return a golden value as its producer would have appended it."""
    spec = TOPICS.topic_of(type_name)
    event = AnyEvent.FromString(value)
    meta = event.meta
    meta.type, meta.source, meta.subject, meta.event_id = type_name, spec.writers[0], "golden-key", "0" * 32
    begin = len(AnyEvent(meta=AnyEvent.FromString(value).meta).SerializeToString())
    partition = partition_for(meta.subject, spec.partitions)
    headers = ((SIGNATURE_HEADER, b""), (TYPE_HEADER, type_name.encode()))
    whole = AnyEvent(meta=meta).SerializeToString() + value[begin:]
    return _sign(Record(spec.name, partition, 5, meta.subject.encode(), whole, headers, _APPENDED_MS))


def _sign(record: Record, ring: KeyRing = RING) -> Record:
    """Sign what a record is now, as far as it can be signed at all."""
    try:
        key = (record.key or b"").decode()
        type_name = (record.header(TYPE_HEADER) or b"").decode()
    except UnicodeDecodeError:
        return record
    signature = ring.sign(Envelope(record.topic, record.partition, key, type_name, record.value or b""))
    others = tuple(header for header in record.headers if header[0] != SIGNATURE_HEADER)
    return replace(record, headers=((SIGNATURE_HEADER, signature), *others))
