"""What newer code wrote, on a real broker: it proves, it is set aside, and it stops nobody."""

from __future__ import annotations

from esper.core.ids import new_event_id
from esper.leyline import messages as ly
from esper.oona import Fabric, show_dead_letter
from esper.oona.proof._judge import fabric_judge
from tests.oona.log import append, fresh_group, poll_until, read_run, signed_record


def test_an_event_of_a_newer_version_is_set_aside_and_passes_proof(fabric: Fabric) -> None:
    """Goal: authentic, not understood. Method: one report of version 2 before one of today's; reader, group, judge."""
    key = f"run-{new_event_id()[:12]}"
    newer = signed_record(fabric, ly.FieldReport(report_id="new"), key=key, source="tamiyo", schema_version=2)
    (stored,) = append(fabric, [newer])
    with fabric.publisher("tamiyo") as publisher:
        ours = publisher.publish(ly.FieldReport(report_id="now"), key=key)
    assert [event.meta.event_id for event in read_run(fabric, "field-reports", key)] == [ours.event_id]
    seen: list[str] = []
    with fabric.consumer(
        group=fresh_group(),
        instance="reads-0",
        topics=["field-reports"],
        handlers={ly.FieldReport: lambda event: seen.append(event.meta.event_id)},
        publisher=fabric.publisher("tamiyo"),
    ) as consumer:
        poll_until(consumer, lambda: ours.event_id in seen)
    assert stored.offset >= 0
    letter = show_dead_letter(fabric, "field-reports", stored.partition, stored.offset)
    assert (letter.reason, letter.record_type) == ("UNKNOWN_VERSION", "FieldReport")
    assert "this installation knows up to 1" in letter.detail
    assert fabric_judge(fabric)(stored).schema_version == 2
