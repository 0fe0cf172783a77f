"""What the fabric of one process counts, emitted at intervals by that process."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Self

from esper.core.errors import EsperError
from esper.oona.housekeeping._metrics import metrics_packet
from esper.oona.topics._acls import principal_of, principals

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric
    from esper.oona.publishing._publisher import Publisher

_logger = logging.getLogger("esper.oona.emission")


class Emission:
    """A thread that emits this process's `oona.*` figures every `settings.metrics_seconds`, as the member's own source.

    Queue depths are not among them: one member, the housekeeper, asks the cluster for those. What fails is logged and
    tried again at the next turn. Leaving the block ends the thread.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._source = principal_of(fabric.member, principals(fabric.topics))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="emission", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        publisher: Publisher | None = None
        while not self._stop.wait(self._fabric.settings.metrics_seconds):
            try:
                # Opened at the first turn: a process that is done before never pays for the connection.
                publisher = publisher or self._fabric.publisher(self._source)
                self._emit(publisher)
            except EsperError as error:
                _logger.warning("the metrics were not emitted: %s", error)
                publisher = None  # One that failed is dead; the fabric closes it.

    def _emit(self, publisher: Publisher) -> None:
        packet = metrics_packet(self._fabric.metrics(), None, source=self._source, member=self._fabric.member)
        publisher.submit(packet, key=self._source)
