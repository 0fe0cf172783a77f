"""The kill campaign: what runs, what is done to it, and when."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from confluent_kafka import Consumer, TopicPartition

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import NotReadyError
from esper.core.rng import derive_seed
from esper.projection.serving._control import find_projector
from tests.conftest import RunningBroker
from tests.faults._load import COMMANDS, DECISIONS, GROUP, SOURCE, Lane
from tests.faults._members import Member

FEEDERS: Final = 2
FOLLOWERS: Final = 2
_TICK_SECONDS: Final = 0.02
#: How long after it was due a fault may come.
_WAIT_SECONDS_MAX: Final = 0.5
#: A member that stands still is gone from its group after its session of 6 seconds.
_STANDSTILL_SECONDS: Final = (7.0, 10.0)
_REBALANCE_SECONDS: Final = (2.0, 5.0)
#: Longer than any member waits for a broker (`BROKER_RETRY_SECONDS`).
_OUTAGE_SECONDS: Final = 25.0
BROKER_RETRY_SECONDS: Final = 15.0
#: What is read and answered after the last event: by members that may all have just been killed.
_DRAIN_SECONDS: Final = 600.0


@dataclass(frozen=True)
class Scale:
    """How much is published, and how often which fault comes."""

    events: int
    runs: int
    #: Events a second of each producer, at most.
    rate: float
    #: Kind of fault -> how often.
    faults: dict[str, int]
    seconds_max: float


WHOLE_SCALE: Final = Scale(
    events=100_000,
    runs=4_000,
    rate=90.0,
    faults={"producer": 22, "consumer": 20, "broker": 10, "projector": 8, "standstill": 5, "outage": 2},
    seconds_max=2_400.0,
)
CUT_SCALE: Final = Scale(
    events=3_000,
    runs=300,
    rate=75.0,
    faults={"producer": 3, "consumer": 2, "broker": 1, "projector": 1, "standstill": 1},
    seconds_max=450.0,
)


class Campaign:
    """Two producers, a group of two members and guests, a projector and a broker, under faults drawn from a seed."""

    def __init__(self, broker: RunningBroker, scale: Scale, seed: int, folder: Path) -> None:
        self.scale = scale
        self.seed = seed
        #: Event id -> partition and offset of its receipt.
        self.acknowledged: dict[str, tuple[int, int]] = {}
        self.faults: Counter[str] = Counter()
        self.guests = 0
        #: How often each member of the group was given partitions.
        self.assignments: Counter[str] = Counter()
        self.seconds_under_faults = self.seconds_to_settle = 0.0
        self._broker = broker
        self._folder = folder
        self._environment = {
            "ESPER_HOME": str(broker.settings.home),
            "ESPER_BROKER_RETRY_SECONDS": str(BROKER_RETRY_SECONDS),
            "ESPER_LOG_LEVEL": "INFO",
        }
        self._random = random.Random(derive_seed(seed, "faults"))  # noqa: S311 - a seeded campaign
        half = scale.events // FEEDERS
        self._lanes = [Lane(seed, number, half, scale.runs // FEEDERS) for number in range(FEEDERS)]
        self._told: list[set[int]] = [set() for _ in self._lanes]
        self._feeders = [self._feeder(number) for number in range(FEEDERS)]
        self._followers = [self._follower(f"tamiyo-{number}") for number in range(FOLLOWERS)]
        self._projector = self._projector_member()
        self._guest: Member | None = None
        self._gone: list[Member] = []
        self._broker_back_at: float | None = None
        self._guest_due = SYSTEM_CLOCK.monotonic() + self._between(_REBALANCE_SECONDS)

    # What runs -----------------------------------------------------------------------------------------------

    @property
    def members(self) -> list[Member]:
        """Everybody that may live, guests included."""
        guests = [self._guest] if self._guest is not None else []
        return [*self._feeders, *self._followers, self._projector, *guests, *self._gone]

    def _member(self, name: str, command: Callable[[], list[str]], hear: Callable[[list[str]], None]) -> Member:
        return Member(name, command, environment=self._environment, folder=self._folder, hear=hear)

    def _projector_member(self) -> Member:
        words = ["esper.cli", "run", "projector"]
        return Member(
            "projector",
            lambda: words,
            environment=self._environment,
            folder=self._folder,
            hear=lambda _: None,
            lives_to_tell=False,
        )

    def _feeder(self, number: int) -> Member:
        lane, told = self._lanes[number], self._told[number]
        words = [str(lane.seed), str(number), str(lane.events), str(lane.runs)]

        def command() -> list[str]:
            """Go on with the first event that is not known to be confirmed; some behind it may be published again."""
            start = next(index for index in range(lane.events + 1) if index not in told)
            return ["tests.faults._load", "feed", f"tolaria-{number}", *words, str(start), str(self.scale.rate)]

        def hear(words: list[str]) -> None:
            if words[0] == "ack":
                index, partition, offset = map(int, words[1:])
                # A confirmed event that was published again keeps its first receipt: that one must hold, too.
                self.acknowledged.setdefault(lane.event_id(index), (partition, offset))
                told.add(index)

        return self._member(f"tolaria-{number}", command, hear)

    def _follower(self, name: str) -> Member:
        def hear(words: list[str]) -> None:
            self.assignments[name] += words[0] == "assigned"

        return self._member(name, lambda: ["tests.faults._load", "follow", name], hear)

    # Its course ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until everything is published and answered, and everybody has ended cleanly."""
        deadline, began = Deadline(self.scale.seconds_max), SYSTEM_CLOCK.monotonic()
        points = self._points()
        try:
            while not all(feeder.finished for feeder in self._feeders):
                self._tick(deadline, "the producers are not done")
                if points and len(self.acknowledged) >= points[0][0] and self._broker_back_at is None:
                    self._inject(points.pop(0)[1])
                self._rebalance()
            assert not points, f"{points} were not reached"
            self.seconds_under_faults = SYSTEM_CLOCK.monotonic() - began
            self._settle()
            self.seconds_to_settle = SYSTEM_CLOCK.monotonic() - began - self.seconds_under_faults
        finally:
            for member in self.members:
                member.end()

    def _points(self) -> list[tuple[int, str]]:
        """Draw after how many acknowledged events each fault comes; the order of kinds is drawn, too.

        Early enough that producers still publish when the last has come, even if all were due at once after an outage.
        """
        kinds = [kind for kind, count in self.scale.faults.items() for _ in range(count)]
        self._random.shuffle(kinds)
        last = int(self.scale.events - len(self._feeders) * self.scale.rate * _WAIT_SECONDS_MAX * len(kinds))
        return list(zip(sorted(self._random.randint(0, last) for _ in kinds), kinds, strict=True))

    def _tick(self, deadline: Deadline, what: str) -> None:
        if self._broker_back_at is not None and SYSTEM_CLOCK.monotonic() >= self._broker_back_at:
            self._broker.local.start()
            self._broker_back_at = None
        for member in self.members:
            member.tend()
        self._gone = [member for member in self._gone if not member.finished]
        assert not deadline.expired, "\n".join([what, *(member.last_words() for member in self.members)])
        SYSTEM_CLOCK.sleep(_TICK_SECONDS)

    def _inject(self, kind: str) -> None:
        """Do one fault to somebody that lives; a random moment after it was due."""
        self._wait(self._random.uniform(0.0, _WAIT_SECONDS_MAX))
        if kind in ("broker", "outage"):
            away = _OUTAGE_SECONDS if kind == "outage" else self._random.uniform(0.0, 1.0)
            assert self._broker.local.kill(), "the broker ran"
            self._broker_back_at = SYSTEM_CLOCK.monotonic() + away
        else:
            victims = {"producer": self._feeders, "projector": [self._projector]}.get(kind, self._followers)
            victim = self._victim(victims)
            if kind == "standstill":
                victim.stop(self._between(_STANDSTILL_SECONDS))
            else:
                victim.kill(restart_after=self._random.uniform(0.0, 1.0))
        self.faults[kind] += 1

    def _victim(self, among: list[Member]) -> Member:
        deadline = Deadline(60.0)
        while not (living := [one for one in among if one.alive and not one.stopped and not one.finished]):
            self._tick(deadline, f"none of {[one.name for one in among]} lives")
        return self._random.choice(living)

    def _wait(self, seconds: float) -> None:
        until = SYSTEM_CLOCK.monotonic() + seconds
        while SYSTEM_CLOCK.monotonic() < until:
            self._tick(Deadline(60.0), "")

    def _rebalance(self) -> None:
        """Let a further member join the group, or the one that joined end: by SIGTERM or SIGKILL."""
        now = SYSTEM_CLOCK.monotonic()
        if now < self._guest_due:
            return
        self._guest_due = now + self._between(_REBALANCE_SECONDS)
        guest = self._guest
        if guest is None:
            self.guests += 1
            self._guest = self._follower(f"tamiyo-guest-{self.guests}")
            return
        if not guest.alive or not self.assignments[guest.name]:
            return
        if self._random.random() < 0.5:
            guest.leaving = True
            guest.kill()
            self.faults["guest of the group"] += 1
        else:
            guest.leave()
            self._gone.append(guest)
        self._guest = None

    # Its end -------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Wait until everything published is answered, let everybody end, and the projector when it has folded it all.

        A member that takes over from one that leaves may publish an answer again: a copy, which the projector must see.
        """
        deadline = Deadline(_DRAIN_SECONDS)
        if self._guest is not None:
            self._guest.leave()
        watcher = Consumer(
            {"bootstrap.servers": self._broker.bootstrap, "group.id": GROUP, "enable.auto.commit": False}
        )
        try:
            while not self._answered(watcher):
                self._tick(deadline, "the group does not come to the end")
            self._let_end([member for member in self.members if member is not self._projector], deadline)
            while not self._folded(watcher):
                self._tick(deadline, "the projector does not come to the end")
        finally:
            watcher.close()
        self._let_end([self._projector], deadline)

    def _let_end(self, members: list[Member], deadline: Deadline) -> None:
        for member in members:
            member.leave()
        while not all(member.finished for member in members):
            self._tick(deadline, "somebody does not end")

    def _answered(self, watcher: Consumer) -> bool:
        ends = _ends(watcher, SOURCE)
        committed = watcher.committed([TopicPartition(SOURCE, partition) for partition in ends], timeout=30)
        return all(one.offset >= ends[one.partition] for one in committed if ends[one.partition])

    def _folded(self, watcher: Consumer) -> bool:
        ends = {(topic, p): end for topic in (SOURCE, DECISIONS, COMMANDS) for p, end in _ends(watcher, topic).items()}
        try:
            projector = find_projector(self._broker.home)
            progress = projector.progress()["runs"] if projector is not None else []
        except NotReadyError:
            return False
        folded = {one.place: one.next_offset for one in progress}
        return all(folded.get(place, 0) >= end for place, end in ends.items())

    def _between(self, bounds: tuple[float, float]) -> float:
        return self._random.uniform(*bounds)

    def figures(self) -> dict[str, object]:
        """Return what was done and what it did to the members."""
        ended = Counter[int]()
        for member in (*self._feeders, *self._followers, self._projector):
            ended += member.ended_by_themselves
        return {
            "seed": self.seed,
            "acknowledged": len(self.acknowledged),
            "faults": sum(self.faults.values()),
            "faults_by_kind": dict(sorted(self.faults.items())),
            "guests_that_joined_and_left": self.guests,
            "assignments": self.assignments.total(),
            "producer_processes": sum(feeder.lives for feeder in self._feeders),
            "consumer_processes": sum(follower.lives for follower in self._followers),
            "ended_because_the_broker_was_away": ended[3],
            "seconds_under_faults": round(self.seconds_under_faults, 1),
            "seconds_to_settle": round(self.seconds_to_settle, 1),
        }


def _ends(watcher: Consumer, topic: str) -> dict[int, int]:
    partitions = watcher.list_topics(topic, timeout=30).topics[topic].partitions
    return {p: watcher.get_watermark_offsets(TopicPartition(topic, p), timeout=30)[1] for p in partitions}
