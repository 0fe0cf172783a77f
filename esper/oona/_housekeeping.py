"""The housekeeper: the one member that reads every topic, so that no bad record lies anywhere unnoticed."""

from __future__ import annotations

import threading
from typing import Final

from esper.oona._fabric import Fabric

GROUP: Final = "esper.housekeeping"
SOURCE: Final = "oona"
#: A bad record hurts nobody before it is named; half a second later is soon enough.
_GATHER_SECONDS: Final = 0.5


class Housekeeper:
    """Member of the group `esper.housekeeping` on all topics; handles nothing, sets aside what must not be believed.

    Topics whose readers only tail them, or that nobody reads yet, are watched like all others.
    """

    def __init__(self, fabric: Fabric, *, instance: str) -> None:
        self._fabric = fabric
        self._instance = instance

    def run(self, stop: threading.Event) -> None:
        """Watch until `stop` is set.

        Raises:
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
        """
        with self._fabric.publisher(SOURCE) as publisher:
            consumer = self._fabric.consumer(
                group=GROUP,
                instance=self._instance,
                topics=[spec.name for spec in self._fabric.topics],
                handlers={},
                publisher=publisher,
                gather_seconds=_GATHER_SECONDS,
            )
            consumer.run(stop)


def build_housekeeper(fabric: Fabric, *, instance: str = "housekeeper-0") -> Housekeeper:
    """Return the service; `instance` is its stable name in its group."""
    return Housekeeper(fabric, instance=instance)
