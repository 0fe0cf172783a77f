"""What the fabric of one process counts, emitted at intervals by that process."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from esper.core.errors import EsperError
from esper.oona.housekeeping._every import Every
from esper.oona.housekeeping._metrics import metrics_packet
from esper.oona.topics._acls import principal_of, principals

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric
    from esper.oona.publishing._publisher import Publisher


def emission(fabric: Fabric) -> AbstractContextManager[object]:
    """Return a block in which this process's `oona.*` figures are emitted every `settings.metrics_seconds`.

    They are published as the source that the member writes as. Queue depths are not among them: one member, the
    housekeeper, asks the cluster for those. What fails is logged and tried again at the next turn.
    """
    emitter = _Emitter(fabric)
    seconds = fabric.settings.metrics_seconds
    return Every(seconds, emitter.emit, name="emission", failure="the metrics were not emitted")


class _Emitter:
    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._source = principal_of(fabric.member, principals(fabric.topics))
        self._publisher: Publisher | None = None

    def emit(self) -> None:
        """Submit one packet; raises EsperError."""
        fabric, source = self._fabric, self._source
        try:
            # Opened at the first turn: a process that is done before never pays for the connection.
            self._publisher = self._publisher or fabric.publisher(source)
            packet = metrics_packet(fabric.metrics(), None, source=source, member=fabric.member)
            self._publisher.submit(packet, key=source)
        except EsperError:
            self._publisher = None  # One that failed is dead; the fabric closes it.
            raise
