"""A real log under attack: genuine events of every topic, hostile records between them, and whoever reads it."""

from __future__ import annotations

import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from esper.core.clock import SYSTEM_CLOCK, Deadline, ManualClock
from esper.core.home import Home
from esper.core.ids import new_run_id
from esper.core.settings import Settings
from esper.leyline import EVENT_TYPES, KeyRing, Record
from esper.leyline import messages as ly
from esper.oona import Consumer, Event, Fabric, Publisher, revoke_key, rotate_key
from tests.faults._hostile import Hostile, Scene, golden_message
from tests.faults._hostile_kinds import make, make_huge, make_raw
from tests.oona.hostile import Target
from tests.oona.log import append, fresh_group
from tests.oona.wire import append_raw

Place = tuple[str, int, int]
PATIENCE_SECONDS = 120.0
#: Hostile records between two genuine events of the same key; far fewer than a reader remembers payloads of.
PER_ROUND = 250
KEYS_PER_TOPIC = 2


def await_that(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until `condition` holds; fail at the deadline."""
    deadline = Deadline(seconds)
    while not condition():
        assert not deadline.expired, f"not within {seconds:g} seconds: {what}"
        SYSTEM_CLOCK.sleep(0.005)


def place_of(record: Record) -> Place:
    """Return where a record stands."""
    return (record.topic, record.partition, record.offset)


@dataclass(frozen=True)
class Handled:
    """One event that a consumer handled."""

    place: Place
    event_id: str
    #: How far its consumer had gone past it already; 0 unless it was made to wait.
    passed: int


class Judge:
    """A consumer of every topic in a thread of its own, as a member of a group that nobody used before."""

    def __init__(self, settings: Settings, member: str) -> None:
        self.fabric = Fabric.open(settings, member=member)
        self.handled: list[Handled] = []
        #: When each event was handled, by its id.
        self.at_seconds: dict[str, float] = {}
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self.consumer: Consumer = self.fabric.consumer(
            group=fresh_group(),
            instance=member,
            topics=[spec.name for spec in self.fabric.topics],
            handlers=dict.fromkeys(EVENT_TYPES.values(), self._handle),
            publisher=self.fabric.publisher("oona"),
        )
        self._thread = threading.Thread(target=self._run, name=member)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.fabric.close()

    def to_the_end(self) -> None:
        """Wait until it has passed everything; its own letters are events of the log, too."""
        await_that(self._at_end, "the judge passes the end of every partition", seconds=10 * PATIENCE_SECONDS)
        self._stop.set()
        self._thread.join()
        assert self.failure is None, repr(self.failure)

    def _at_end(self) -> bool:
        assert self.failure is None, repr(self.failure)
        places = [place for spec in self.fabric.topics for place in self.fabric.topics.partitions(spec.name)]
        ends = self.fabric.cluster.watermarks(places)
        positions = self.consumer.positions()
        return all(positions.get(place, -1) >= high for place, (_, high) in ends.items())

    def _handle(self, event: Event) -> None:
        place = (event.topic, event.partition)
        passed = self.consumer.positions()[place] - event.offset
        self.handled.append(Handled(place_of(event.record), event.meta.event_id, passed))
        self.at_seconds[event.meta.event_id] = SYSTEM_CLOCK.monotonic()

    def _run(self) -> None:
        try:
            self.consumer.run(self._stop)
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            self.failure = error


@dataclass
class Census:
    """What was appended, by place, and when."""

    genuine: dict[Place, str] = field(default_factory=dict)
    hostile: dict[Place, Hostile] = field(default_factory=dict)
    #: Event ids of each (topic, key), in the order in which they were submitted.
    order: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    submitted: dict[str, float] = field(default_factory=dict)
    #: Every record of the log -> SHA-256 of its value, whoever wrote it.
    digests: dict[Place, str] = field(default_factory=dict)

    def kinds(self) -> dict[str, int]:
        """Return how many hostile records there are of each kind."""
        return dict(sorted(Counter(one.kind for one in self.hostile.values()).items()))

    def first_hostile(self) -> dict[tuple[str, int], int]:
        """Return the first hostile offset of each partition that has one."""
        firsts: dict[tuple[str, int], int] = {}
        for topic, partition, offset in self.hostile:
            firsts[(topic, partition)] = min(offset, firsts.get((topic, partition), offset))
        return firsts


class Attack:
    """Writes genuine events of every topic, and hostile records between them."""

    def __init__(self, fabric: Fabric, rng: random.Random, *, revoked: KeyRing, old: Mapping[str, Record]) -> None:
        self.fabric = fabric
        self.census = Census()
        self._rng = rng
        self._revoked = revoked
        self._old = old
        self._keys = keys_of(fabric)
        self._latest: dict[tuple[str, str], Record] = {}
        self._publishers: dict[str, Publisher] = {}
        everything = {place: 0 for spec in fabric.topics for place in fabric.topics.partitions(spec.name)}
        self._scribe = fabric.reader(everything)

    def genuine_round(self) -> list[str]:
        """Publish an event of every key of every topic; return their ids."""
        pending = []
        for spec in self.fabric.topics:
            for key in self._keys[spec.name]:
                publisher = self._publisher(spec.writers[0])
                sent = publisher.submit(golden_message(spec, self._rng), key=key)
                self.census.submitted[sent.event_id] = SYSTEM_CLOCK.monotonic()
                self.census.order[(spec.name, key)].append(sent.event_id)
                pending.append((spec.name, key, sent))
        keys = {}
        for topic, key, sent in pending:
            receipt = sent.result()
            place = (receipt.topic, receipt.partition, receipt.offset)
            self.census.genuine[place] = sent.event_id
            keys[place] = (topic, key)
        self._latest |= {keys[place]: record for place, record in self._read_on(keys)}
        return [sent.event_id for _, _, sent in pending]

    def hostile_round(self, count: int, *, huge: int = 0, raw: int = 0) -> None:
        """Append hostile records against the latest event of random keys."""
        scenes = [self._scene() for _ in range(count)]
        made = [make(scene) for scene in scenes[huge + raw :]] + [make_huge(scene) for scene in scenes[:huge]]
        self._rng.shuffle(made)
        for one, record in zip(made, append(self.fabric, [one.record for one in made]), strict=True):
            self.census.hostile[place_of(record)] = one
        for scene in scenes[huge : huge + raw]:
            one = make_raw(scene)
            headers = [(name.encode(), value) for name, value in one.record.headers]
            record = append_raw(self.fabric.bootstrap, one.record, [*headers, (b"\xff\xfe", b"")])
            self.census.hostile[place_of(record)] = one

    def finish(self) -> None:
        """Close what writes, and note what the log holds; call it once nobody writes any more."""
        for publisher in self._publishers.values():
            publisher.close()
        ends = self.fabric.cluster.watermarks(self._scribe.positions())
        await_that(lambda: not list(self._read_on({})) and self._read_to(ends), "the scribe reads the log")
        self._scribe.close()

    def _read_to(self, ends: Mapping[tuple[str, int], tuple[int, int]]) -> bool:
        return all(self._scribe.positions()[place] >= high for place, (_, high) in ends.items())

    def _read_on(self, wanted: Mapping[Place, object]) -> Iterator[tuple[Place, Record]]:
        """Read on, at least until every wanted record was seen; yield those."""
        missing = set(wanted)
        while True:  # ends: what is acknowledged is there to be read
            records = self._scribe.read_raw(1.0 if missing else 0.2)
            for record in records:
                place = place_of(record)
                self.census.digests[place] = record.value_digest
                if place in missing:
                    missing.discard(place)
                    yield place, record
            if not missing:
                return

    def _scene(self) -> Scene:
        (topic, key), record = self._rng.choice(list(self._latest.items()))
        target = Target(self.fabric, self.fabric.topics[topic], record, key)
        return Scene(target, list(self._latest.values()), self._rng, self._revoked, self._old[topic])

    def _publisher(self, source: str) -> Publisher:
        if source not in self._publishers:
            self._publishers[source] = self.fabric.publisher(source)
        return self._publishers[source]


def keys_of(fabric: Fabric) -> dict[str, list[str]]:
    """Return the keys of each topic; a run has the same partition in every topic of runs."""
    runs = [new_run_id() for _ in range(KEYS_PER_TOPIC)]
    return {
        spec.name: runs if spec.key == "run_id" else [f"{spec.name}-{number}" for number in range(KEYS_PER_TOPIC)]
        for spec in fabric.topics
    }


def revoke_first_key(settings: Settings) -> tuple[KeyRing, dict[str, Record]]:
    """Sign an event of every topic with the home's first key, replace that key and revoke it.

    Return a ring that goes on to sign with it, and those records.
    """
    first = Home.open(settings).keyring(settings)
    ring = KeyRing(first.keys)
    old: dict[str, Record] = {}
    with Fabric.open(settings, member="before") as fabric:
        for spec in fabric.topics:
            with fabric.publisher(spec.writers[0]) as publisher:
                receipt = publisher.publish(golden_message(spec, random.Random(0)), key=f"{spec.name}-old")  # noqa: S311 - seeded, for a test
            with fabric.reader({(spec.name, receipt.partition): receipt.offset}) as reader:
                (event,) = reader.read_to_end()
                old[spec.name] = event.record
    rotate_key(settings)
    # Nobody else runs here, so that nobody need be given the time to notice the new key.
    later = ManualClock(wall_ns=SYSTEM_CLOCK.now_ns() + 10**12)
    revoke_key(settings, ring.signing_key_id, reason="a campaign", clock=later)
    return ring, old


def dead_letters(fabric: Fabric) -> dict[Place, list[str]]:
    """Return the reasons of all letters about each record, as the topic holds them one by one."""
    found: dict[Place, list[str]] = defaultdict(list)
    with fabric.reader({("dead-letters", 0): "begin"}) as reader:
        for event in reader.read_to_end(PATIENCE_SECONDS):
            letter = event.message
            if isinstance(letter, ly.DeadLetter) and letter.topic:
                reason = ly.DeadLetterReason.Name(letter.reason).removeprefix("DEAD_LETTER_REASON_")
                found[(letter.topic, letter.partition, letter.offset)].append(reason)
    return found
