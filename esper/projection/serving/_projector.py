"""The projector: the one process that keeps a home's projections up to date and answers SQL meanwhile."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from esper.core.errors import Busy, EsperError, UsageError
from esper.oona import Fabric
from esper.projection.definitions._definition import Definition, load_definitions
from esper.projection.definitions._folder import ProjectionFolder
from esper.projection.definitions._versions import definition_of
from esper.projection.serving._answers import reading_routes, text_of
from esper.projection.serving._control import announced, new_token
from esper.projection.serving._live import LiveFold, kept_version
from esper.projection.serving._server import Routes, serving
from esper.projection.sql._database import UnreadableFile

_log = logging.getLogger("esper.projection.projector")

#: How long a read waits for the next record, and so the longest that an order or a stop waits.
_POLL_SECONDS: Final = 0.1
#: Another process may be folding by itself just now; that ends with the log.
WRITER_SECONDS: Final = 60.0
_ORDER_SECONDS: Final = 60.0
#: Files that may turn out to be damaged in one life before something else must be wrong.
_DAMAGED_MAX: Final = 3

Order = tuple[Callable[[], object], "Future[Any]"]
_T = TypeVar("_T")


class Projector:
    """Folds every projection of a home, and serves queries over all of them on loopback.

    A file that cannot be read is set aside and built again. Each commit holds rows, offsets and dispositions
    together, so that a process that dies loses nothing and repeats nothing. A version that was built beside takes
    over while it runs, also one of a folder that was changed or made after it started.
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
            OperationFailed: another process became the writer of the projections.
        """
        folder = ProjectionFolder(self._fabric.home.projections)
        with folder.writing(seconds=WRITER_SECONDS):
            folder.remove_abandoned()
            for damaged in range(1, _DAMAGED_MAX + 1):
                try:
                    self._serve(stop, folder)
                except UnreadableFile as error:
                    if damaged == _DAMAGED_MAX:
                        raise
                    folder.set_aside(error.path)
                else:
                    return

    def _serve(self, stop: threading.Event, folder: ProjectionFolder) -> None:
        token = new_token()
        with ExitStack() as stack:
            live = stack.enter_context(opened(folder, self._fabric))
            live.folding.start()
            port = stack.enter_context(serving(self._routes(live, folder), token))
            stack.enter_context(announced(self._fabric.home, port=port, token=token))
            _log.info("projector listens on port %d", port)
            self._fabric.announce_ready()
            while not stop.is_set():
                self._obey(live)
                live.folding.step(_POLL_SECONDS)
            live.folding.commit()

    def _routes(self, live: LiveFold, folder: ProjectionFolder) -> Routes:
        projections = live.projections

        def digests(request: dict[str, Any]) -> object:
            return projections.digests(text_of(request, "name"), text_of(request, "table"))

        def reached(request: dict[str, Any]) -> object:
            ends = {(str(topic), int(partition)): int(end) for topic, partition, end in request.get("ends") or []}
            return self._order(lambda: live.folding.reached(ends))

        def adopt(request: dict[str, Any]) -> object:
            name, built = text_of(request, "name"), folder.path / Path(text_of(request, "file")).name
            if not built.is_file():
                raise UsageError(
                    f"the projector cannot go on with {built.name} for {name!r}", cause="there is no such file"
                )
            definition = self._definition(folder, name, text_of(request, "version"))
            projections.examine(definition, built)
            return self._order(lambda: live.adopt(definition, built)).as_dict()

        def roll_back(request: dict[str, Any]) -> object:
            name = text_of(request, "name")
            kept, definition, _ = kept_version(self._fabric, folder, name)
            projections.examine(definition, kept.path)
            return self._order(lambda: live.roll_back(name)).as_dict()

        return {
            **reading_routes(projections, folder.path),
            "/digests": digests,
            "/reached": reached,
            "/adopt": adopt,
            "/rollback": roll_back,
        }

    def _definition(self, folder: ProjectionFolder, name: str, version: str) -> Definition:
        fabric = self._fabric
        return definition_of(folder, name, version, load_definitions(fabric.settings, fabric.topics), fabric.topics)

    def _order(self, work: Callable[[], _T]) -> _T:
        """Have the folding thread do `work` between two steps, and return what it returns.

        A caller that cannot wait any longer takes its order back, unless it was begun.
        """
        done: Future[Any] = Future()
        self._orders.put((work, done))
        try:
            result: _T = done.result(timeout=_ORDER_SECONDS)
        except TimeoutError as error:
            if done.cancel():
                raise Busy("the projector is busy", cause=f"an order waited {_ORDER_SECONDS:g} seconds") from error
            result = done.result()
        return result

    def _obey(self, live: LiveFold) -> None:
        while not self._orders.empty():  # this thread alone takes orders out
            work, done = self._orders.get()
            if not done.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except BaseException as error:
                done.set_exception(error)
                # What went wrong beside the files that count is the caller's alone.
                if live.exchanging or not isinstance(error, EsperError):
                    raise
            else:
                done.set_result(result)


@contextmanager
def opened(folder: ProjectionFolder, fabric: Fabric) -> Iterator[LiveFold]:
    """Open a home's projections for writing, with the loop that folds the cluster's log into them."""
    live = LiveFold(fabric, folder)
    try:
        yield live
    finally:
        live.close()


def build_service(fabric: Fabric) -> Projector:
    """Return the member `projector`."""
    return Projector(fabric)
