"""Runs kernel members in threads on the real broker and reads what they say."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from google.protobuf.message import Message

from esper.core.clock import Deadline
from esper.core.ids import new_event_id
from esper.core.kernel import kernel_id, make_request
from esper.karn import KarnCatalog
from esper.leyline import messages as ly
from esper.oona import Event, Fabric, Reader, Service
from esper.tezzeret import build_service as build_forge
from esper.urza import build_service as build_urza

M = TypeVar("M", bound=Message)

#: A first join of a group takes some three seconds on an idle machine.
DEADLINE_SECONDS = 60.0
_SCALES = itertools.count(1)


def fresh_request(blueprint_id: str = "BP002", **parameters: float) -> ly.KernelRequestSpec:
    """Return a request for a kernel that no other test asks for."""
    if blueprint_id == "BP002" and not parameters:
        # The random part keeps apart test sessions that share a broker, the counter the tests of one session.
        parameters = {"scale": 0.5 + int(new_event_id()[:6], 16) / (1 << 24) + next(_SCALES) * 1e-6}
    return make_request(blueprint_id, parameters, layout="vector", in_shape=[5], out_shape=[3])


@contextmanager
def running(service: Service) -> Iterator[None]:
    """Run a member in a thread; stop it, and fail when it failed."""
    stop, failures = threading.Event(), []

    def run() -> None:
        try:
            service.run(stop)
        except BaseException as error:  # noqa: BLE001 - whatever ended the member fails the test
            failures.append(error)

    thread = threading.Thread(target=run, name=type(service).__name__)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive(), f"{service} did not stop"
    if failures:
        raise failures[0]


@contextmanager
def forge(fabric: Fabric) -> Iterator[None]:
    """Run Tezzeret with Karn's blueprints."""
    with running(build_forge(fabric, blueprints=KarnCatalog())):
        yield


@contextmanager
def urza(fabric: Fabric) -> Iterator[None]:
    """Run Urza."""
    with running(build_urza(fabric)):
        yield


class Log:
    """Everything that the kernel topics hold about one kernel, in the order of each topic."""

    TOPICS = ("kernel-requests", "kernel-catalog", "kernel-replies")

    def __init__(self, fabric: Fabric, request: ly.KernelRequestSpec) -> None:
        self.fabric = fabric
        self.request = request
        self.name = kernel_id(request)
        self._events: list[Event] = []
        self._reader: Reader = fabric.reader({(topic, 0): "begin" for topic in self.TOPICS})

    def of(self, kind: type[M]) -> list[M]:
        """Return the kernel's events of one type so far."""
        self._events += [event for event in self._reader.read_to_end() if event.meta.subject == self.name]
        return [event.message for event in self._events if isinstance(event.message, kind)]

    def wait(self, kind: type[M], count: int = 1) -> list[M]:
        """Return the kernel's events of one type once there are `count` of them."""
        return self.until(lambda: found if len(found := self.of(kind)) >= count else None, f"{count} {kind.__name__}")

    def until(self, look: Callable[[], list[M] | None], what: str) -> list[M]:
        """Call `look` until it returns something, or fail after the deadline."""
        deadline = Deadline(DEADLINE_SECONDS)
        while not deadline.expired:
            if (found := look()) is not None:
                return found
            self._events += [event for event in self._reader.read(0.1) if event.meta.subject == self.name]
        raise AssertionError(f"no {what} within {DEADLINE_SECONDS} seconds")

    def words(self, topic: str = "kernel-catalog") -> list[str]:
        """Return the types of the kernel's events on one topic, in order; measurements are asked for with `of`."""
        self.of(ly.CompileStarted)
        here = [event.message for event in self._events if event.topic == topic]
        return [type(each).__name__ for each in here if not isinstance(each, ly.BenchmarkReport)]

    def publish(self, message: Message, *, source: str, event_id: str | None = None, causation_id: str = "") -> str:
        """Append an event about this kernel and return its id."""
        with self.fabric.publisher(source) as publisher:
            receipt = publisher.publish(
                message,  # type: ignore[arg-type]  # every event message has a meta
                key=self.name,
                event_id=event_id,
                causation_id=causation_id,
            )
        return receipt.event_id

    def prefetch(self, request_id: str | None = None, **changes: object) -> str:
        """Append a request for this kernel as Kasmina would, and return its id."""
        request_id = request_id or new_event_id()
        fields = {
            "request_id": request_id,
            "blueprint_id": self.request.blueprint_id,
            "training_run_id": "run-test",
            "kernel_id": self.name,
            "request": self.request,
        } | changes
        self.publish(ly.KernelPrefetchRequest(**fields), source="kasmina", event_id=request_id)  # type: ignore[arg-type]  # as the message has them
        return request_id

    def ask_forge(self, event_id: str | None = None, **changes: object) -> str:
        """Append a request for a compilation as Urza would, and return its event id."""
        fields = {"kernel_id": self.name, "request": self.request} | changes
        return self.publish(ly.CompileRequested(**fields), source="urza", event_id=event_id)  # type: ignore[arg-type]  # as the message has them
