"""What the topic `blueprints` says now, for whoever selects, compiles, grafts or shows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Self

from esper.core import approvals
from esper.core.approvals import Approvals

if TYPE_CHECKING:
    from esper.oona._events import Event
    from esper.oona._fabric import Fabric

_TOPIC: Final = "blueprints"


class BlueprintBoard:
    """Follows the topic `blueprints` and folds it (`esper.core.approvals`); one thread at a time."""

    def __init__(self, fabric: Fabric) -> None:
        partitions = range(fabric.topics[_TOPIC].partitions)
        self._reader = fabric.reader({(_TOPIC, partition): "begin" for partition in partitions})
        self._approvals: Approvals = {}
        self._caught_up = False

    def read(self) -> Approvals:
        """Return the approvals as the log has them at the time of the call.

        Raises:
            NotReadyError, BrokerUnavailable: the topic could not be read to its end.
        """
        self._fold(self._reader.read_to_end())
        self._caught_up = True
        return self._approvals

    def latest(self) -> Approvals:
        """Return the approvals as far as they have arrived; waits for nothing, once they were read to the end.

        For whoever decides often and is not the last to check; raises as `read`.
        """
        if not self._caught_up:
            return self.read()
        self._fold(self._reader.read(0.0))
        return self._approvals

    def close(self) -> None:
        """Release the connection; closing twice does nothing."""
        self._reader.close()

    def _fold(self, events: Iterable[Event]) -> None:
        for event in events:
            self._approvals = approvals.fold(self._approvals, event.message)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
