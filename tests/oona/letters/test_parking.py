"""The parked set as a fold of letters, orders and ends; no broker is needed to say what follows from them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.core.breaker import CircuitBreaker
from esper.core.clock import ManualClock
from esper.core.ids import new_event_id
from esper.leyline import messages as ly
from esper.oona.letters._guard import ConsumeBreaker
from esper.oona.letters._parking import ParkedPartition, ParkState, end_id, letter_id, order_id, parking_key

FAILED, WAITS = ly.DEAD_LETTER_REASON_HANDLER_FAILED, ly.DEAD_LETTER_REASON_WAITS_FOR_KEY


class Log:
    """Events about one partition of one group, folded as they are written."""

    def __init__(self) -> None:
        self.events: list[tuple[ly.DeadLetter | ly.Redriven | ly.Discarded, ly.EventMeta]] = []
        self.fold = ParkedPartition()

    def letter(self, offset: int, key: bytes, reason: ly.DeadLetterReason = FAILED) -> str:
        known = self.fold.records.get(offset)
        identity = letter_id("t", 0, offset, group="g", previous=known.letter_id if known else "")
        letter = ly.DeadLetter(topic="t", offset=offset, key=key, reason=reason, consumer_group="g", attempts=5)
        return self._append(letter, identity)

    def order(self, offset: int) -> str:
        letter = self.fold.records[offset].letter_id
        return self._append(ly.Redriven(topic="t", offset=offset, letter_id=letter), order_id(letter))

    def handled(self, offset: int) -> str:
        record = self.fold.records[offset]
        cause = self.fold.cause(record.key) or record.letter_id
        end = ly.Redriven(topic="t", offset=offset, letter_id=record.letter_id)
        return self._append(end, end_id(record.letter_id), causation_id=cause)

    def discard(self, offset: int) -> str:
        return self._append(ly.Discarded(topic="t", offset=offset), new_event_id())

    def _append(
        self, message: ly.DeadLetter | ly.Redriven | ly.Discarded, event_id: str, *, causation_id: str = ""
    ) -> str:
        meta = ly.EventMeta(event_id=event_id, causation_id=causation_id)
        self.events.append((message, meta))
        self.fold.fold(message, meta)
        return event_id


def test_a_failed_record_blocks_its_key_and_no_other() -> None:
    """Followers wait, strangers do not: park one of two keys."""
    log = Log()
    log.letter(3, b"a")
    log.letter(5, b"a", WAITS)
    assert log.fold.holds(b"a")
    assert not log.fold.holds(b"b")
    assert list(log.fold.runnable()) == []
    assert [log.fold.records[offset].state for offset in (3, 5)] == [ParkState.PARKED, ParkState.WAITS]


def test_an_order_frees_the_key_in_its_order() -> None:
    """A redrive goes first to last and only then frees the key: order, handle, look after each step."""
    log = Log()
    log.letter(3, b"a")
    for offset in (5, 8):
        log.letter(offset, b"a", WAITS)
    order = log.order(3)
    assert list(log.fold.runnable()) == [3, 5, 8]
    assert [log.fold.may_go(offset) for offset in (3, 5, 8)] == [True, False, False]
    for offset in (3, 5, 8):
        assert log.fold.may_go(offset)
        assert log.fold.holds(b"a"), "what comes meanwhile waits"
        assert log.fold.cause(b"a") == order
        log.handled(offset)
    assert not log.fold.holds(b"a")
    assert log.fold.ended == dict.fromkeys((3, 5, 8), ParkState.REDRIVEN)


def test_what_fails_again_is_parked_again_and_old_orders_count_no_more() -> None:
    """An order answers one letter: fail again, give the first order once more, then a new one."""
    log = Log()
    first = log.letter(3, b"a")
    log.order(3)
    again = log.letter(3, b"a")
    assert again != first
    stale = ly.Redriven(topic="t", offset=3, letter_id=first)
    log.fold.fold(stale, ly.EventMeta(event_id=order_id(first)))
    assert list(log.fold.runnable()) == []
    log.order(3)
    assert list(log.fold.runnable()) == [3]


def test_a_follower_that_fails_blocks_what_stands_behind_it() -> None:
    """Poison behind poison: the second of three fails in the redrive of the first."""
    log = Log()
    log.letter(3, b"a")
    log.letter(5, b"a", WAITS)
    log.letter(8, b"a", WAITS)
    log.order(3)
    log.handled(3)
    log.letter(5, b"a")
    assert list(log.fold.runnable()) == []
    head = log.fold.head(b"a")
    assert head is not None
    assert head.offset == 5
    log.order(5)
    assert list(log.fold.runnable()) == [5, 8]


def test_a_discarded_record_frees_its_followers_and_is_never_parked_again() -> None:
    """Giving up is final: discard the first of two, then let a late letter about it come."""
    log = Log()
    late = log.letter(3, b"a")
    log.letter(5, b"a", WAITS)
    gone = log.discard(3)
    assert list(log.fold.runnable()) == [5]
    assert log.fold.cause(b"a") == gone
    log.fold.fold(log.events[0][0], ly.EventMeta(event_id=late))
    assert 3 not in log.fold.records
    log.discard(5)
    assert not log.fold.holds(b"a")


def test_a_discarded_follower_leaves_the_key_blocked() -> None:
    """Only the first one holds the key: discard the second of two."""
    log = Log()
    log.letter(3, b"a")
    log.letter(5, b"a", WAITS)
    log.discard(5)
    assert list(log.fold.runnable()) == []
    assert log.fold.holds(b"a")


def test_letters_of_bad_records_park_nothing() -> None:
    """What must not be believed blocks nobody: fold a letter about a forged record."""
    log = Log()
    log.letter(3, b"a", ly.DEAD_LETTER_REASON_BAD_SIGNATURE)
    assert not log.fold.holds(b"a")
    assert log.fold.records == {}


def test_ids_say_what_they_follow_from() -> None:
    """Groups park apart, and a second failure is another letter: compare ids."""
    ids = [
        letter_id("t", 0, 3, group="g"),
        letter_id("t", 0, 3, group="h"),
        letter_id("t", 0, 3, group="g", previous="x"),
    ]
    assert len(set(ids)) == 3
    assert letter_id("t", 0, 3, group="g") == ids[0]
    assert order_id(ids[0]) != end_id(ids[0])
    assert parking_key(None) == b""
    assert len(parking_key(b"k" * 1000)) == 256


@given(st.lists(st.tuples(st.sampled_from("pwohd"), st.integers(0, 11)), max_size=60), st.data())
def test_any_history_keeps_order_and_repeats_change_nothing(steps: list[tuple[str, int]], data: st.DataObject) -> None:
    """Whatever is written, a key's records end in order unless discarded, and a fold of repeats is the same fold.

    Three keys over twelve offsets; random letters, orders, ends and discards as a member and people may write them.
    """
    log, ends = Log(), list[int]()
    for kind, offset in steps:
        key = b"abc"[offset % 3 : offset % 3 + 1]
        last = max((one for one in {*log.fold.records, *log.fold.ended} if one % 3 == offset % 3), default=-1)
        if kind == "p" and offset > last and not log.fold.holds(key):
            log.letter(offset, key)
        elif kind == "w" and offset > last and log.fold.holds(key):
            log.letter(offset, key, WAITS)
        elif kind == "o" and offset in log.fold.records:
            log.order(offset)
        elif kind == "h" and log.fold.may_go(offset):
            log.handled(offset)
            ends.append(offset)
        elif kind == "d" and offset in log.fold.records:
            log.discard(offset)
    for residue in range(3):
        mine = [offset for offset in ends if offset % 3 == residue]
        assert mine == sorted(mine)
    assert max(Counter(ends).values(), default=1) == 1
    again = ParkedPartition()
    for message, meta in log.events:
        again.fold(message, meta)
        if data.draw(st.booleans()) and not isinstance(message, ly.DeadLetter):
            again.fold(message, meta)
    assert again.records == log.fold.records
    assert again.ended == log.fold.ended
    assert list(again.runnable()) == list(log.fold.runnable())


def test_consume_breaker_opens_probes_and_closes(caplog: pytest.LogCaptureFixture) -> None:
    """Different keys that fail in a row open it; let three fail, wait, fail the probe, wait, handle the next."""
    clock = ManualClock()
    breaker = ConsumeBreaker("member m of g", failures_max=3, open_seconds=30.0, clock=clock)
    for key in (b"a", b"a", b"b"):
        breaker.failed(key)
    assert breaker.state() == ly.CIRCUIT_STATE_CLOSED, "the same key fails once"
    breaker.failed(b"c")
    assert breaker.state() == ly.CIRCUIT_STATE_OPEN
    assert "member m of g takes no records for 30 seconds" in caplog.text
    assert not breaker.admits()
    clock.advance(30.0)
    assert breaker.state() == ly.CIRCUIT_STATE_HALF_OPEN
    assert breaker.admits()
    assert breaker.admits(), "until the probe has an outcome records are taken"
    breaker.failed(b"d")
    assert not breaker.admits()
    clock.advance(30.0)
    assert breaker.admits()
    breaker.succeeded()
    assert breaker.state() == ly.CIRCUIT_STATE_CLOSED
    assert not breaker.strained
    assert CircuitBreaker(3, 30.0).state(0.0) == breaker.state()
