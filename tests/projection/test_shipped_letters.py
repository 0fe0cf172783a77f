"""The projection `dead_letters` says what `esper dlq` says: both are folds of one topic."""

from __future__ import annotations

import random
from typing import cast

import pytest
from google.protobuf.message import Message

from esper.core.ids import derive_id
from esper.leyline import EVENT_TYPES, Record
from esper.leyline import messages as ly
from esper.oona._events import Event
from esper.oona.letters._board import LetterBoard
from tests.projection.conftest import OpenWorkbench
from tests.projection.log import Log

_GROUPS = ("esper.tamiyo", "esper.tolaria")
_KEYS = ("run-a", "run-b")
_ROWS = (
    "select topic, topic_partition, record_offset, key, reason, attempts, state, consumer_group from dead_letters"
    " order by all"
)


class Clerk:
    """Writes letters, orders and ends as members and people do, and as they should not, at random."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a test's own reproducible choices
        self.log = Log()
        self._letters: dict[tuple[str, int], str] = {}
        self._written = 0

    def work(self, events: int) -> None:
        """Write so many events about twelve records."""
        for _ in range(events):
            offset, group = self.random.randrange(12), self.random.choice(_GROUPS)
            choice = self.random.random()
            if choice < 0.25:
                self._bad(offset)
            elif choice < 0.6:
                self._parked(offset, group)
            elif choice < 0.85:
                self._redriven(offset, group)
            else:
                self._discarded(offset, self.random.choice((*_GROUPS, "")))

    def _bad(self, offset: int) -> None:
        letter = self._letter(offset, "", self.random.choice(("UNSIGNED", "BAD_SIGNATURE", "UNDECODABLE")))
        self._append(letter, offset, derive_id("bad", offset, letter.reason))

    def _parked(self, offset: int, group: str) -> None:
        letter = self._letter(offset, group, self.random.choice(("HANDLER_FAILED", "WAITS_FOR_KEY")))
        previous = self._letters.get((group, offset), "")
        event_id = derive_id("letter", offset, group, previous)
        self._letters[(group, offset)] = event_id
        self._append(letter, offset, event_id)

    def _redriven(self, offset: int, group: str) -> None:
        letter = self._letters.get((group, offset), "none")
        redriven = ly.Redriven(topic="runs", partition=0, offset=offset, consumer_group=group, letter_id=letter)
        if self.random.random() < 0.5:
            redriven.meta.causation_id = derive_id("cause", self._written)
        self._append(redriven, offset)

    def _discarded(self, offset: int, group: str) -> None:
        self._append(ly.Discarded(topic="runs", partition=0, offset=offset, consumer_group=group), offset)

    def _letter(self, offset: int, group: str, reason: str) -> ly.DeadLetter:
        return ly.DeadLetter(
            topic="runs", partition=0, offset=offset, key=_KEYS[offset % 2].encode(), consumer_group=group,
            attempts=self.random.randrange(1, 4), reason=ly.DeadLetterReason.Value(f"DEAD_LETTER_REASON_{reason}"),
        )  # fmt: skip

    def _append(self, message: ly.DeadLetter | ly.Redriven | ly.Discarded, offset: int, event_id: str = "") -> None:
        self._written += 1
        #: One in twenty stands under a key that is not its record's, where nobody looks for it.
        key = f"runs-0-{offset}" if self.random.random() < 0.95 else "runs-0-999"
        self.log.append(message, key=key, event_id=event_id or derive_id("clerk", self._written))


def board_of(records: list[Record]) -> LetterBoard:
    """Return what `esper dlq` makes of the records, each event id taken once as every reader does."""
    events, seen = [], set[str]()
    for record in records:
        name = next(value for key, value in record.headers if key == "type")
        assert name is not None
        message = cast("Message", EVENT_TYPES[name.decode()].FromString(record.value or b""))
        meta = cast("ly.DeadLetter", message).meta
        if meta.event_id not in seen:
            seen.add(meta.event_id)
            events.append(Event(record, meta, message))
    return LetterBoard(events)


@pytest.mark.parametrize("seed", range(8))
def test_the_projection_says_what_the_board_says(open_workbench: OpenWorkbench, seed: int) -> None:
    """Two folds of one topic must agree: 120 random letters, orders and ends; compare with `esper dlq list`."""
    clerk = Clerk(seed)
    clerk.work(120)
    bench = open_workbench(clerk.log)
    bench.fold()
    board = board_of(list(clerk.log.source.records))
    expected = [
        (row.topic, row.partition, row.offset, row.key, row.reason, row.attempts, row.state, row.group)
        for row in board.rows()
    ]
    assert bench.rows(_ROWS) == sorted(expected)
    heads = {(row.group, row.key) for row in board.rows() if row.group and not row.ended}
    assert set(bench.rows("select consumer_group, key from parked_keys")) == heads
