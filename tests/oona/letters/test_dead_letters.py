"""Dead letters as people ask for them, and the housekeeper that judges what nobody else reads."""

from __future__ import annotations

import threading

import pytest

from esper.core.clock import Deadline
from esper.core.errors import UsageError
from esper.core.ids import derive_id, new_event_id
from esper.leyline import Record
from esper.leyline import messages as ly
from esper.oona import DeadLetterRow, Fabric, build_housekeeper, list_dead_letters, show_dead_letter
from esper.oona.letters._dead_letters import letter_for
from tests.conftest import RunningBroker
from tests.oona.log import append


def test_letters_of_several_groups_are_one_event() -> None:
    """Ids follow from the place: make the letters of two groups about one record, and of another record."""
    record = Record("runs", 3, 17, b"\xff\xfekey", b"value")
    letters = [
        letter_for(record, reason=ly.DEAD_LETTER_REASON_EMPTY, detail="d", attempts=1, group=group)
        for group in ("a", "b")
    ]
    assert {letter.meta.event_id for letter in letters} == {derive_id("dead-letter", "runs", 3, 17)}
    assert letters[0].key == b"\xff\xfekey"
    assert letters[0].value_digest == record.value_digest
    moved = letter_for(
        Record("runs", 3, 18, None, None), reason=ly.DEAD_LETTER_REASON_EMPTY, detail="", attempts=1, group="a"
    )
    assert moved.meta.event_id != letters[0].meta.event_id


def test_long_details_are_cut() -> None:
    """A letter stays small whatever an exception says: give a detail of a million characters."""
    letter = letter_for(
        Record("runs", 0, 0, b"k" * 1000, b""),
        reason=ly.DEAD_LETTER_REASON_HANDLER_FAILED,
        detail="x" * 1_000_000,
        attempts=5,
        group="g",
    )
    assert letter.ByteSize() < 2_000


def test_unknown_reference_is_a_usage_error(fabric: Fabric) -> None:
    """Asking for what nobody set aside says so: show a record that has no letter."""
    with pytest.raises(UsageError, match="no dead letter names runs-0-999999999"):
        show_dead_letter(fabric, "runs", 0, 999_999_999)


def test_letter_about_a_record_that_is_gone_says_so(fabric: Fabric) -> None:
    """A letter outlives its record: write letters about an offset beyond the log and an unknown topic, show them."""
    with fabric.publisher("oona") as publisher:
        for topic in ("runs", "no-such-topic"):
            record = Record(topic, 0, 10**12, b"key", b"value")
            letter = letter_for(record, reason=ly.DEAD_LETTER_REASON_UNSIGNED, detail="d", attempts=1, group="g")
            publisher.publish(letter, key=f"{topic}-0-{10**12}")
    for topic in ("runs", "no-such-topic"):
        assert not show_dead_letter(fabric, topic, 0, 10**12).record_unchanged


def test_housekeeper_judges_topics_that_nobody_reads(broker: RunningBroker) -> None:
    """A forged record is listed though no subsystem runs: run the housekeeper, forge one, list."""
    key = f"run-{new_event_id()[:12]}"
    stop = threading.Event()
    with Fabric.open(broker.settings, member="oona-0") as fabric:
        runner = threading.Thread(target=build_housekeeper(fabric).run, args=(stop,))
        runner.start()
        try:
            (forged,) = append(fabric, [Record("decisions", 0, -1, key.encode(), b"forged")])
            deadline = Deadline(30.0)
            rows: list[DeadLetterRow] = []
            while not rows and not deadline.expired:
                rows = [row for row in list_dead_letters(fabric) if row.key == key]
        finally:
            stop.set()
            runner.join(30)
    assert [(row.topic, row.partition, row.offset, row.reason) for row in rows] == [
        ("decisions", 0, forged.offset, "UNSIGNED")
    ]
    assert not runner.is_alive()
