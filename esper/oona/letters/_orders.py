"""What a person orders about parked records: have them handled again, or give them up. Both are events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from esper.core.errors import UsageError
from esper.core.ids import derive_id
from esper.leyline import messages as ly
from esper.oona.letters._board import LetterBoard
from esper.oona.letters._dead_letters import Reference, reference_key
from esper.oona.letters._parking import ParkState, order_id

if TYPE_CHECKING:
    from esper.oona.publishing._publisher import Publisher


@dataclass(frozen=True)
class LetterOrder:
    """An order that the log holds now."""

    topic: str
    partition: int
    offset: int
    #: Group that it is for; empty: for all of them.
    group: str
    #: Records of its key that wait behind it and go on with it.
    waiting: int
    event_id: str


def redrive(
    board: LetterBoard, publisher: Publisher, reference: Reference, *, group: str | None = None, note: str = ""
) -> LetterOrder:
    """Order that a group handles a parked record again, and after it those of its key that wait, in their order.

    The member that holds the partition obeys when it sees the order; what fails again is parked again. Given
    twice, the order counts once. `group` may be left out where one group only has the record parked.

    Raises:
        UsageError: the record is not parked, waits for another one, or several groups have it parked.
        BrokerUnavailable: the order was not acknowledged.
    """
    chosen = _group(board, reference, group)
    if not chosen:
        raise UsageError(
            f"{reference_key(*reference)} cannot be redriven",
            cause="it was set aside because it must not be believed",
            next_step="`esper dlq discard` gives it up",
        )
    record, head = board.parked(chosen, reference), board.head(chosen, reference)
    assert record is not None, "the group has it parked"
    assert head is not None, "a parked record has a first one of its key"
    if record.state is ParkState.WAITS:
        raise UsageError(
            f"{reference_key(*reference)} cannot be redriven by itself",
            cause=f"it waits in group {chosen} for the record at offset {head.offset}",
            next_step=f"Redrive or discard offset {head.offset}; this one follows in its order",
        )
    topic, partition, offset = reference
    order = ly.Redriven(
        topic=topic,
        partition=partition,
        offset=offset,
        letter_id=record.letter_id,
        consumer_group=chosen,
        note=note,
    )
    identity = order_id(record.letter_id)
    publisher.publish(order, key=reference_key(*reference), event_id=identity)
    return LetterOrder(*reference, group=chosen, waiting=board.waiting_behind(chosen, reference), event_id=identity)


def discard(
    board: LetterBoard, publisher: Publisher, reference: Reference, *, group: str | None = None, note: str = ""
) -> LetterOrder:
    """Give up a record that is parked or set aside; the records of its key that wait for it go on.

    Raises:
        UsageError: nothing holds the record, or several groups do.
        BrokerUnavailable: the order was not acknowledged.
    """
    chosen = _group(board, reference, group)
    record, letter = board.parked(chosen, reference), board.set_aside(reference)
    given_up = record.letter_id if record else (letter.meta.event_id if letter else "")
    topic, partition, offset = reference
    order = ly.Discarded(
        topic=topic, partition=partition, offset=offset, letter_id=given_up, consumer_group=chosen, note=note
    )
    identity = derive_id("discarded", *reference, chosen)
    publisher.publish(order, key=reference_key(*reference), event_id=identity)
    waiting = board.waiting_behind(chosen, reference) if chosen else 0
    return LetterOrder(*reference, group=chosen, waiting=waiting, event_id=identity)


def _group(board: LetterBoard, reference: Reference, wanted: str | None) -> str:
    """Return the group whose parked record is meant; empty for a record that is set aside for all of them."""
    groups, what = board.groups(reference), reference_key(*reference)
    if wanted is not None and wanted not in groups:
        raise UsageError(
            f"group {wanted} has not parked {what}",
            cause=f"it is parked by {', '.join(groups)}" if groups else "no group has it parked now",
            next_step="`esper dlq list` shows what is parked",
        )
    if wanted is not None:
        return wanted
    if len(groups) > 1:
        raise UsageError(
            f"it is not clear whose {what} is meant",
            cause=f"the groups {', '.join(groups)} have it parked",
            next_step="Name one with --group",
        )
    if groups:
        return groups[0]
    if board.set_aside(reference) is None:
        raise UsageError(
            f"nothing is to be done about {what}",
            cause="it is neither parked nor set aside now",
            next_step="`esper dlq list --all` shows how each record ended",
        )
    return ""
