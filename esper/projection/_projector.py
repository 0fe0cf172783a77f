"""The projector: the one process that keeps a home's projections up to date and answers SQL meanwhile."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from esper.core.errors import Busy, UsageError
from esper.oona import Fabric
from esper.projection._admission import Admission
from esper.projection._control import announced, new_token
from esper.projection._database import UnreadableFile
from esper.projection._decoder import ProtobufDecoder
from esper.projection._definition import Definition, load_definitions
from esper.projection._folder import ProjectionFolder
from esper.projection._folding import Folding
from esper.projection._letters import DeadLetters
from esper.projection._projections import WritableProjections
from esper.projection._server import Routes, serving
from esper.projection._source import KafkaSource

_log = logging.getLogger("esper.projection.projector")

#: How long a read waits for the next record, and so the longest that an order or a stop waits.
_POLL_SECONDS: Final = 0.1
#: Another process may be folding by itself just now; that ends with the log.
WRITER_SECONDS: Final = 60.0
_ORDER_SECONDS: Final = 60.0
#: Files that may turn out to be damaged in one life before something else must be wrong.
_DAMAGED_MAX: Final = 3

Order = tuple[Callable[[], None], "Future[None]"]


class Projector:
    """Folds every projection of a home, and serves queries over all of them on loopback.

    A file that cannot be read is set aside and built again. Each commit holds rows, offsets and dispositions
    together, so that a process that dies loses nothing and repeats nothing.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set.

        Raises:
            IntegrityError: a topic is not the one that was folded, or lacks records that were not.
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
            Busy: another process writes the projections.
        """
        definitions = load_definitions(self._fabric.settings, self._fabric.topics)
        folder = ProjectionFolder(self._fabric.home.projections)
        with folder.writing(seconds=WRITER_SECONDS):
            folder.remove_abandoned()
            for damaged in range(1, _DAMAGED_MAX + 1):
                try:
                    self._serve(stop, folder, definitions)
                except UnreadableFile as error:
                    if damaged == _DAMAGED_MAX:
                        raise
                    folder.set_aside(error.path)
                else:
                    return

    def _serve(self, stop: threading.Event, folder: ProjectionFolder, definitions: tuple[Definition, ...]) -> None:
        token = new_token()
        with opened(folder, definitions, self._fabric) as (projections, folding), ExitStack() as stack:
            folding.start()
            port = stack.enter_context(serving(self._routes(projections, folding, folder), token))
            stack.enter_context(announced(self._fabric.home, port=port, token=token))
            _log.info("projector listens on port %d", port)
            self._fabric.announce_ready()
            while not stop.is_set():
                self._obey()
                folding.step(_POLL_SECONDS)
            folding.commit()

    def _routes(self, projections: WritableProjections, folding: Folding, folder: ProjectionFolder) -> Routes:
        def query(request: dict[str, Any]) -> object:
            return projections.query(_text(request, "sql"), request.get("parameters") or [])

        def contents(request: dict[str, Any]) -> object:
            return [one.as_dict() for one in projections.contents(request.get("names"))]

        def progress(_: dict[str, Any]) -> object:
            files = list(projections.files.items())
            return {name: [asdict(one) for one in file.progress.values()] for name, file in files}

        def adopt(request: dict[str, Any]) -> object:
            name, built = _text(request, "name"), folder.path / Path(_text(request, "file")).name
            if name not in projections.files or not built.is_file():
                raise UsageError(
                    f"the projector cannot go on with {built.name} for {name!r}", cause="there is no such file"
                )
            projections.examine(name, built)
            self._order(lambda: _exchange(projections, folding, name, built))
            return {}

        return {"/query": query, "/contents": contents, "/progress": progress, "/adopt": adopt}

    def _order(self, work: Callable[[], None]) -> None:
        """Have the folding thread do `work` between two steps, and wait until it is done."""
        done: Future[None] = Future()
        self._orders.put((work, done))
        try:
            done.result(timeout=_ORDER_SECONDS)
        except TimeoutError as error:
            raise Busy("the projector is busy", cause=f"an order waited {_ORDER_SECONDS:g} seconds") from error

    def _obey(self) -> None:
        while not self._orders.empty():  # this thread alone takes orders out
            work, done = self._orders.get()
            try:
                work()
            except BaseException as error:
                done.set_exception(error)
                raise
            done.set_result(None)


@contextmanager
def opened(
    folder: ProjectionFolder, definitions: tuple[Definition, ...], fabric: Fabric
) -> Iterator[tuple[WritableProjections, Folding]]:
    """Open a home's projections for writing, with the loop that folds the cluster's log into them."""
    source = KafkaSource(fabric, sorted({topic for one in definitions for topic in one.topics}))
    projections = WritableProjections(folder, definitions, fabric.settings)
    try:
        yield (
            projections,
            Folding(
                source=source,
                admission=admission(fabric, definitions),
                files=projections.files,
                catalog=fabric.topics,
                letters=DeadLetters(fabric),
                relieve=projections.interrupts.expel_all,
            ),
        )
    finally:
        source.close()
        projections.close()


def admission(fabric: Fabric, definitions: tuple[Definition, ...]) -> Admission:
    """Return what verifies and decodes the records of these projections."""
    return Admission(
        keyring=fabric.keyring,
        allowed=fabric.topics.allowed,
        wanted={type_name for one in definitions for type_name in one.types},
        decoder=ProtobufDecoder(),
    )


def build_service(fabric: Fabric) -> Projector:
    """Return the member `projector`."""
    return Projector(fabric)


def _exchange(projections: WritableProjections, folding: Folding, name: str, built: Path) -> None:
    folding.commit()
    projections.adopt(name, built)
    folding.start()


def _text(request: dict[str, Any], field: str) -> str:
    value = request.get(field)
    if not isinstance(value, str):
        raise UsageError("the request cannot be read", cause=f"its field {field!r} is no text")
    return value
