"""The worker's side of the control loop on a real broker, around a scripted run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar, cast

from google.protobuf.message import Message

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.leyline import messages as ly
from esper.oona import Event, Fabric
from esper.tamiyo import TamiyoService
from tests.tamiyo.scripted_run import ScriptedRun

_M = TypeVar("_M", bound=Message)

RUN_TOPICS = ("run-requests", "system-state", "runs", "decisions", "adaptation-commands", "field-reports")
#: A loaded machine may take seconds to give a group its partitions; a lost command is a failure either way.
ANSWER_SECONDS = 30.0


class Log:
    """Everything that the log holds of one run, read by position."""

    def __init__(self, fabric: Fabric, run_id: str) -> None:
        self.run_id = run_id
        places = {(topic, fabric.partition_of(topic, run_id)) for topic in RUN_TOPICS}
        self._reader = fabric.reader(dict.fromkeys(places, "begin"))
        self.events: list[Event] = []

    def read(self, timeout: float = 0.05) -> None:
        """Take in what came since."""
        self.events += [event for event in self._reader.read(timeout) if event.meta.subject == self.run_id]

    def of(self, kind: type[_M]) -> list[_M]:
        """Return the run's messages of one type, in order."""
        return [event.message for event in self.events if isinstance(event.message, kind)]

    def wait_for(self, found: Callable[[], object], *, seconds: float = ANSWER_SECONDS, what: str = "it") -> None:
        """Read until `found()` is true."""
        deadline = Deadline(seconds)
        while not found():
            assert not deadline.expired, f"{what} did not come within {seconds:g} seconds"
            self.read()

    def read_up(self) -> None:
        """Read whatever the log holds by now."""
        self.events += [event for event in self._reader.read_to_end() if event.meta.subject == self.run_id]

    def command(self, epoch: int) -> ly.AdaptationCommand | None:
        """Return the command for an epoch, if it is there."""
        return next((command for command in self.of(ly.AdaptationCommand) if command.epoch == epoch), None)


@dataclass
class Worker:
    """Publishes what a worker publishes; every call returns when the log has acknowledged it."""

    fabric: Fabric
    run: ScriptedRun
    log: Log = field(init=False)
    latencies_ms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log = Log(self.fabric, self.run.run_id)
        self._tolaria = self.fabric.publisher("tolaria")
        self._cli = self.fabric.publisher("cli")

    def request(self) -> None:
        """Ask for the run and claim it."""
        self._cli.publish(self.run.request(), key=self.run.run_id)
        claim = ly.TrainingRunClaimed(run_id=self.run.run_id, attempt=1, worker="tolaria-0")
        self._tolaria.publish(claim, key=self.run.run_id)

    def packet(self) -> ly.SystemStatePacket:
        """Train an epoch and append its packet."""
        packet = self.run.next_packet()
        self._tolaria.publish(packet, key=self.run.run_id)
        return packet

    def answered_epoch(self) -> ly.CommandOutcome:
        """Go through one epoch with its command."""
        packet = self.packet()
        began = SYSTEM_CLOCK.monotonic()
        self.log.wait_for(lambda: self.log.command(packet.current_epoch), what=f"command {packet.current_epoch}")
        self.latencies_ms.append((SYSTEM_CLOCK.monotonic() - began) * 1000.0)
        return self.outcome(self.log.command(packet.current_epoch))

    def silent_epoch(self) -> ly.CommandOutcome:
        """Go through one epoch without waiting for a command, as with an open breaker."""
        self.packet()
        return self.outcome(None)

    def outcome(self, command: ly.AdaptationCommand | None) -> ly.CommandOutcome:
        """Apply a command and append the epoch's outcome."""
        outcome = self.run.apply(command)
        self._tolaria.publish(outcome, key=self.run.run_id)
        return outcome

    def finish(self) -> None:
        """Append the end of the run."""
        self._tolaria.publish(self.run.finished(), key=self.run.run_id)

    def reported(self, count: int) -> list[ly.FieldReport]:
        """Return the run's reports once there are `count`."""
        self.log.wait_for(lambda: len(self.log.of(ly.FieldReport)) >= count, what=f"report {count}")
        return self.log.of(ly.FieldReport)


@contextmanager
def serving(fabric_of: Callable[[], Fabric], *, instance: str = "tamiyo-0") -> Iterator[TamiyoService]:
    """Run the service in a thread on a fabric of its own; an error of its ends the block with it."""
    stop = threading.Event()
    failures: list[BaseException] = []
    with fabric_of() as fabric:
        service = TamiyoService(fabric, instance=instance)

        def serve() -> None:
            try:
                service.run(stop)
            except BaseException as error:  # noqa: BLE001 - handed on below
                failures.append(error)

        thread = threading.Thread(target=serve, name="tamiyo", daemon=True)
        thread.start()
        try:
            yield service
        finally:
            stop.set()
            thread.join(timeout=30.0)
            assert not thread.is_alive(), "the service did not stop"
    if failures:
        raise cast("BaseException", failures[0])
