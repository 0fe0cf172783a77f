"""One record and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from esper.leyline import BadRecord, Record
from esper.leyline import messages as ly
from esper.oona import Position

_REASON_PREFIX: Final = "DEAD_LETTER_REASON_"


@dataclass(frozen=True)
class Judged:
    """Either `bad` says why a record must not be believed, or it is authentic and `type_name`, `event_id` hold."""

    record: Record
    type_name: str = ""
    event_id: str = ""
    #: The run's attempt, for events that have one: two attempts name their events alike on purpose.
    attempt: int | None = None
    #: Its row in the batch's table of its type; None where nobody wanted it decoded.
    row: int | None = None
    bad: BadRecord | None = None
    producer_id: str = ""
    #: From 1 within its producer and partition.
    sequence: int = 0

    @property
    def place(self) -> Position:
        """Topic and partition."""
        return (self.record.topic, self.record.partition)

    @property
    def reason(self) -> str:
        """The contract's word for what is wrong, without its prefix; empty for an authentic record."""
        return "" if self.bad is None else ly.DeadLetterReason.Name(self.bad.reason).removeprefix(_REASON_PREFIX)
