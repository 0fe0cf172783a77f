"""Looking for events in the whole log."""

from __future__ import annotations

import pytest

from esper.core.errors import UsageError
from esper.core.ids import new_event_id, new_run_id
from esper.leyline import Record
from esper.leyline import messages as ly
from esper.oona import AtEvent, Fabric, Receipt, Selection, find_events
from esper.oona.reading import _find
from tests.oona.log import append, packet


@pytest.fixture
def run(fabric: Fabric) -> tuple[str, list[Receipt]]:
    """Two packets and an outcome of a run, in the order packet, outcome, packet, and a forged record."""
    run_id = new_run_id()
    with fabric.publisher("tolaria") as publisher:
        outcome = ly.CommandOutcome(run_id=run_id, epoch=1, result=ly.COMMAND_RESULT_APPLIED)
        receipts = [
            publisher.publish(packet(run_id, 1), key=run_id),
            publisher.publish(outcome, key=run_id),
            publisher.publish(packet(run_id, 2), key=run_id),
        ]
    partition = fabric.partition_of("runs", run_id)
    append(fabric, [Record("runs", partition, -1, run_id.encode(), receipts[0].event_id.encode())])
    return run_id, receipts


def test_an_id_is_found_wherever_it_stands(fabric: Fabric, run: tuple[str, list[Receipt]]) -> None:
    """One id, no topic named: find each event of a run by its id alone; forged bytes with the id do not count."""
    _, receipts = run
    for receipt in receipts:
        (found,) = find_events(fabric, Selection(), event_id=receipt.event_id)
        assert (found["topic"], found["partition"], found["offset"]) == (
            receipt.topic,
            receipt.partition,
            receipt.offset,
        )
    assert find_events(fabric, Selection(), event_id=new_event_id()) == []


def test_a_run_is_told_across_topics_in_the_order_of_its_time(fabric: Fabric, run: tuple[str, list[Receipt]]) -> None:
    """Keys, types, fields, times and limits narrow one another: ask for parts of a run in two topics."""
    run_id, receipts = run
    ids = [receipt.event_id for receipt in receipts]

    def found(selection: Selection, **more: object) -> list[str]:
        return [event["event_id"] for event in find_events(fabric, selection, **more)]  # type: ignore[arg-type]

    assert sorted(found(Selection(key=run_id))) == sorted(ids)
    assert found(Selection(key=run_id), limit=1)[0] in ids
    assert found(Selection(key=run_id), types=["CommandOutcome"]) == [ids[1]]
    assert found(Selection(key=run_id), types=["esper.leyline.v1.CommandOutcome"]) == [ids[1]]
    assert found(Selection(key=run_id), topics=["system-state"]) == [ids[0], ids[2]]
    assert found(Selection(key=run_id, where=["current_epoch=2"])) == [ids[2]]
    assert found(Selection(key=run_id, where=["result=COMMAND_RESULT_APPLIED"])) == [ids[1]]
    assert found(Selection(key=run_id, begin=AtEvent(ids[2])), topics=["system-state"]) == [ids[2]]
    assert found(Selection(key=run_id, end=AtEvent(ids[2])), topics=["system-state"]) == [ids[0]]


def test_questions_that_cannot_be_answered_are_refused(
    fabric: Fabric, run: tuple[str, list[Receipt]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No question, unknown words and floods are errors: ask each."""
    run_id, _ = run
    with pytest.raises(UsageError, match="nothing to look for"):
        find_events(fabric, Selection())
    with pytest.raises(UsageError, match="there is no event type 'Nonsense': the contract has AdaptationCommand"):
        find_events(fabric, Selection(), types=["Nonsense"])
    with pytest.raises(UsageError, match="no topic called 'nowhere'"):
        find_events(fabric, Selection(), topics=["nowhere"])
    with pytest.raises(UsageError, match="runs carry no FieldReport"):
        find_events(fabric, Selection(), topics=["runs"], types=["FieldReport"])
    monkeypatch.setattr(_find, "FOUND_MAX", 2)
    with pytest.raises(UsageError, match="more than 2 events match"):
        find_events(fabric, Selection(key=run_id))
    assert len(find_events(fabric, Selection(key=run_id), limit=2)) == 2
