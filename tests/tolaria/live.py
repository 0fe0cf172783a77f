"""A worker on the real broker, someone who answers its packets, and a look at what the log then holds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from google.protobuf.message import Message

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.ids import derive_id, new_run_id
from esper.kasmina import RunCommandVerifier
from esper.leyline import messages as ly
from esper.oona import Event, Fabric
from esper.tolaria import ControllerFactory, TrainingSetup, build_service
from tests.tolaria.small import NudgingController, request

#: Every test uses one name: a static member that comes back under it has its partitions at once.
WORKER = "tolaria-0"
PATIENCE_SECONDS = 90.0
_T = TypeVar("_T")
_M = TypeVar("_M", bound=Message)


def eventually(probe: Callable[[], _T | None], *, what: str, seconds: float = PATIENCE_SECONDS) -> _T:
    """Return the first true answer of `probe`; fail when none comes in time."""
    deadline = Deadline(seconds)
    while True:
        found = probe()
        if found:
            return found
        assert not deadline.expired, f"did not happen in {seconds:g} s: {what}"
        SYSTEM_CLOCK.sleep(0.05)


def nudging(setup: TrainingSetup) -> NudgingController:
    """Make a controller that nudges the host when a seed is commanded."""
    return NudgingController(setup)


def judge(run_id: str) -> RunCommandVerifier:
    """Make the real judge of a run's commands."""
    return RunCommandVerifier(run_id, window_seconds=60.0)


class Log:
    """What the log holds of one run, read anew from the beginning at each look."""

    def __init__(self, fabric: Fabric, run_id: str) -> None:
        self._fabric = fabric
        self._run_id = run_id

    def events(self, topic: str) -> list[Event]:
        place = (topic, self._fabric.partition_of(topic, self._run_id))
        with self._fabric.reader({place: "begin"}) as reader:
            return [event for event in reader.read_to_end() if event.meta.subject == self._run_id]

    def of(self, kind: type[_M]) -> list[_M]:
        topic = self._fabric.topics.topic_of(str(kind.DESCRIPTOR.full_name)).name
        return [event.message for event in self.events(topic) if isinstance(event.message, kind)]

    def end(self) -> ly.TrainingRunFinished | ly.TrainingRunFailed | None:
        ends = [*self.of(ly.TrainingRunFinished), *self.of(ly.TrainingRunFailed)]
        assert len(ends) <= 1, "a run ends once"
        return ends[0] if ends else None

    def finished(self, seconds: float = PATIENCE_SECONDS) -> ly.TrainingRunFinished:
        end = eventually(self.end, what=f"the end of {self._run_id}", seconds=seconds)
        assert isinstance(end, ly.TrainingRunFinished), str(end)
        return end

    def failed(self) -> ly.TrainingRunFailed:
        end = eventually(self.end, what=f"the end of {self._run_id}")
        assert isinstance(end, ly.TrainingRunFailed), str(end)
        return end


def neighbour(fabric: Fabric, run_id: str) -> str:
    """Return a fresh run id whose records stand in the same partitions as those of `run_id`."""
    while True:
        other = str(new_run_id())
        if fabric.partition_of("runs", other) == fabric.partition_of("runs", run_id):
            return other


def ask(fabric: Fabric, *, run_id: str = "", re_executable: bool = True, **fields: object) -> ly.TrainingRunRequested:
    """Append a request for a new run and return it."""
    asked = request(run_id or str(new_run_id()), **fields)
    asked.meta.event_id = ""
    asked.re_executable = re_executable
    with fabric.publisher("cli") as publisher:
        publisher.publish(asked, key=asked.run_id)
    return asked


Answers = Callable[[ly.SystemStatePacket], ly.CommandType | ly.AdaptationCommand | None]


@contextmanager
def responder(fabric: Fabric, run_id: str, answers: Answers) -> Iterator[None]:
    """Answer each packet of the run as Tamiyo would, with the type or order that `answers` gives; None is silence."""
    stop = threading.Event()

    def work() -> None:
        place = ("system-state", fabric.partition_of("system-state", run_id))
        with fabric.reader({place: "begin"}) as reader, fabric.publisher("tamiyo") as publisher:
            while not stop.is_set():
                for event in reader.read(0.1):
                    packet = event.message
                    if not isinstance(packet, ly.SystemStatePacket) or packet.training_run_id != run_id:
                        continue
                    chosen = answers(packet)
                    if chosen is not None:
                        _answer(publisher.publish, packet, chosen)

    thread = threading.Thread(target=work, name="responder")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _answer(
    publish: Callable[..., object], packet: ly.SystemStatePacket, chosen: ly.CommandType | ly.AdaptationCommand
) -> None:
    run_id = packet.training_run_id
    decision = derive_id(run_id, "decision", packet.meta.event_id)
    command_id = derive_id(run_id, "command", decision)
    command = ly.AdaptationCommand()
    if isinstance(chosen, ly.AdaptationCommand):
        command.CopyFrom(chosen)
    else:
        command.command_type = chosen
    named = ly.AdaptationCommand(
        command_id=command_id,
        training_run_id=run_id,
        epoch=packet.current_epoch,
        decision_id=decision,
        issued_by="tamiyo",
    )
    command.MergeFrom(named)
    publish(command, key=run_id, causation_id=packet.meta.event_id, event_id=command_id)


@contextmanager
def worker(
    fabric: Fabric, *, controller_factory: ControllerFactory = nudging, instance: str = WORKER
) -> Iterator[threading.Event]:
    """Run the worker inside the block; yield its stop event; what it raises is raised at the end."""
    stop = threading.Event()
    failures: list[BaseException] = []
    service = build_service(fabric, controller_factory=controller_factory, judge_factory=judge, instance=instance)

    def work() -> None:
        try:
            service.run(stop)
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)

    thread = threading.Thread(target=work, name=instance)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive(), "the worker did not stop"
        if failures:
            raise failures[0]
