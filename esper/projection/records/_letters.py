"""Sets records aside that must not be believed."""

from __future__ import annotations

from collections.abc import Sequence

from esper.oona import DeadLetterWriter, Fabric
from esper.projection.records._judged import Judged

SOURCE = "projection"


class DeadLetters:
    """Writes a dead letter for each bad record, by reference; opens its publisher with the first one."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._writer: DeadLetterWriter | None = None

    def set_aside(self, judged: Sequence[Judged]) -> None:
        """Return once the log holds a letter for each; raises BrokerUnavailable when it cannot be had."""
        if self._writer is None:
            self._writer = DeadLetterWriter(self._fabric, self._fabric.publisher(SOURCE), group="esper.projection")
        for one in judged:
            assert one.bad is not None, "only bad records are set aside"
            self._writer.write(one.record, reason=one.bad.reason, detail=one.bad.detail, attempts=1)
        self._writer.settle()
