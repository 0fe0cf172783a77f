"""The fabric's own member: looks at every record of every topic, so that none escapes judgement."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from esper.oona._service import Service

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric

GROUP: Final = "esper.oona"
SOURCE: Final = "oona"


class Warden:
    """Verifies every record of every topic and sets aside those that must not be believed.

    It handles nothing: a topic that no other member reads has its hostile records listed all the same.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric

    def run(self, stop: threading.Event) -> None:
        """Judge records until `stop` is set; raises as `Consumer.run` does."""
        publisher = self._fabric.publisher(SOURCE)
        try:
            self._fabric.consumer(
                group=GROUP,
                instance=self._fabric.member,
                topics=[spec.name for spec in self._fabric.topics],
                handlers={},
                publisher=publisher,
            ).run(stop)
        finally:
            publisher.close()


def build_service(fabric: Fabric) -> Service:
    """Return the warden as a member service."""
    return Warden(fabric)
