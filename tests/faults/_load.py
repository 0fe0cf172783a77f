"""The processes that the kill campaign kills: producers of state packets, and members of a group that answers them.

Run as a program, this file is one of them: `feed` or `follow`. What they say on stdout is for the campaign alone:
`ready`, `ack INDEX PARTITION OFFSET` for each event whose delivery was confirmed, `assigned N`.
"""

from __future__ import annotations

import faulthandler
import hashlib
import logging
import random
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal, cast

from esper.core.clock import SYSTEM_CLOCK
from esper.core.errors import EsperError, OperationFailed
from esper.core.ids import derive_id
from esper.core.rng import derive_seed
from esper.core.settings import load_settings
from esper.leyline import messages as ly
from esper.oona import Event, Fabric, Pending, Position

GROUP: Final = "campaign.kills"
SOURCE: Final = "system-state"
DECISIONS: Final = "decisions"
COMMANDS: Final = "adaptation-commands"
#: Events of one lane that may wait for their acknowledgement at a time.
_IN_FLIGHT_MAX: Final = 400
_BURST_MAX: Final = 120
_REPLAY_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Lane:
    """All that one line of producers is to publish; a function of its fields alone."""

    seed: int
    number: int
    events: int
    runs: int

    def run_id(self, index: int) -> str:
        """Return the key of a run of this lane."""
        return f"run-{derive_seed(self.seed, 'run', self.number, index):016x}"

    def event_id(self, index: int) -> str:
        """Return the id of the event with this index, whoever publishes it."""
        return derive_id("campaign", self.seed, self.number, index)

    def steps(self) -> Iterator[tuple[str, int]]:
        """Give run and number of each event: a run's numbers count from 1, often several of a run in a row."""
        chooser = random.Random(derive_seed(self.seed, "lane", self.number))  # noqa: S311 - a seeded campaign
        last: dict[str, int] = {}
        given = 0
        while given < self.events:
            run_id = self.run_id(chooser.randrange(self.runs))
            for _ in range(min(chooser.randint(1, 4), self.events - given)):
                last[run_id] = last.get(run_id, 0) + 1
                given += 1
                yield run_id, last[run_id]


def say(*words: object) -> None:
    """Tell the campaign one line."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")


class Feeder:
    """One life of a producer: publishes its lane from an index on, in order, in bursts at a mean rate."""

    def __init__(self, fabric: Fabric, lane: Lane, stop: threading.Event) -> None:
        self._publisher = fabric.publisher("tolaria")
        self._lane = lane
        self._stop = stop
        self._flight: deque[tuple[int, Pending]] = deque()

    def run(self, start: int, *, rate: float) -> None:
        """Publish until the lane is at its end or a stop comes; all that was confirmed is told in either case."""
        lane = self._lane
        chooser = random.Random(derive_seed(lane.seed, "bursts", lane.number, start))  # noqa: S311 - a seeded campaign
        began, burst = SYSTEM_CLOCK.monotonic(), 0
        try:
            for index, (run_id, number) in enumerate(islice(lane.steps(), start, None), start):
                if self._stop.is_set():
                    break
                packet = ly.SystemStatePacket(training_run_id=run_id, current_epoch=number, global_step=index)
                event_id = lane.event_id(index)
                self._flight.append((index, self._publisher.submit(packet, key=run_id, event_id=event_id)))
                burst -= 1
                if burst <= 0 or len(self._flight) >= _IN_FLIGHT_MAX:
                    burst = chooser.randint(1, _BURST_MAX)
                    self._rest(began + (index - start) / rate)
            self._publisher.flush()
            self._tell()
        finally:
            self._tell_what_was_confirmed()
            self._publisher.close()

    def _rest(self, until: float) -> None:
        """Tell what is confirmed until the time has come and there is room for more."""
        while not self._stop.is_set():
            self._tell()
            wait = until - SYSTEM_CLOCK.monotonic()
            if wait <= 0 and len(self._flight) < _IN_FLIGHT_MAX:
                return
            self._stop.wait(0.005)

    def _tell(self) -> None:
        """Tell the confirmed events at the head of the flight; raises what ended the publisher."""
        told = False
        while self._flight and self._flight[0][1].done:
            index, pending = self._flight.popleft()
            receipt = pending.result()
            say("ack", index, receipt.partition, receipt.offset)
            told = True
        if told:
            sys.stdout.flush()

    def _tell_what_was_confirmed(self) -> None:
        """Tell the confirmed events of a publisher that failed: others of its flight were not."""
        for index, pending in self._flight:
            try:
                receipt = pending.result(0.0)
            except EsperError:
                continue
            say("ack", index, receipt.partition, receipt.offset)
        self._flight.clear()
        sys.stdout.flush()


class Follower:
    """One life of a group's member with two effects for each packet, each in a way of the system's own subsystems.

    The decision has state: a digest over all packets of the run so far, folded from the log of decisions, which is
    read to its end before anything is handled. What was lost, doubled or swapped anywhere shows in every later one.
    The command has none: it is appended as often as the packet is handled, under an id that follows from the packet.
    """

    def __init__(self, fabric: Fabric, name: str) -> None:
        self._fabric = fabric
        self._name = name
        self._publisher = fabric.publisher("tamiyo")
        self._runs: dict[str, tuple[int, str]] = {}
        self._folded: dict[Position, int] = {}

    def run(self, stop: threading.Event) -> None:
        """Handle packets until `stop` is set."""
        consumer = self._fabric.consumer(
            group=GROUP,
            instance=self._name,
            topics=[SOURCE],
            handlers={ly.SystemStatePacket: self._handle},
            publisher=self._publisher,
            on_assign=self._assigned,
        )
        consumer.run(stop)
        self._publisher.close()

    def _assigned(self, places: Sequence[Position]) -> None:
        starts: dict[Position, int | Literal["begin", "end"]] = {
            (DECISIONS, partition): self._folded.get((DECISIONS, partition), "begin") for _, partition in places
        }
        with self._fabric.reader(starts) as reader:
            for event in reader.read_to_end(_REPLAY_SECONDS):
                self._fold(cast("ly.DecisionMade", event.message))
            self._folded |= reader.positions()
        say("assigned", len(places))
        sys.stdout.flush()

    def _fold(self, decision: ly.DecisionMade) -> None:
        if decision.epoch > self._runs.get(decision.run_id, (0, ""))[0]:
            self._runs[decision.run_id] = (decision.epoch, decision.policy_digest)

    def _handle(self, event: Event) -> None:
        packet, cause = cast("ly.SystemStatePacket", event.message), event.meta.event_id
        run_id, number = packet.training_run_id, packet.current_epoch
        last, digest = self._runs.get(run_id, (0, ""))
        if number > last + 1:
            raise OperationFailed(f"packet {number} of {run_id} came", cause=f"the one before it is {last}")
        if number == last + 1:
            decision = ly.DecisionMade(run_id=run_id, epoch=number, state_event_id=cause)
            decision.policy_digest = hashlib.sha256((digest + cause).encode()).hexdigest()
            event_id = derive_id(GROUP, "decision", cause)
            self._publisher.publish(decision, key=run_id, causation_id=cause, event_id=event_id)
            self._fold(decision)
        command = ly.AdaptationCommand(training_run_id=run_id, epoch=number, command_type=ly.COMMAND_CONTINUE)
        event_id = derive_id(GROUP, "command", cause)
        self._publisher.publish(command, key=run_id, causation_id=cause, event_id=event_id)


def main(role: str, name: str, *words: str) -> None:
    """Be one process of the campaign until SIGTERM; the home and its settings come by environment."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    faulthandler.register(signal.SIGUSR1)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with Fabric.open(load_settings(_env_file=None), member=name) as fabric:
        say("ready")
        sys.stdout.flush()
        if role == "feed":
            seed, number, events, runs, start, rate = words
            lane = Lane(seed=int(seed), number=int(number), events=int(events), runs=int(runs))
            Feeder(fabric, lane, stop).run(int(start), rate=float(rate))
        else:
            Follower(fabric, name).run(stop)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except EsperError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
