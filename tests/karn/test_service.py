"""Karn on the real broker: the log is told once what may be grafted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from esper.core.approvals import Approvals, fold
from esper.core.ids import new_event_id
from esper.karn import (
    BlueprintQuery,
    BlueprintRefused,
    KarnCatalog,
    approve,
    build_service,
    catalogue,
    descriptor_digest,
    withdraw,
)
from esper.karn._service import decide
from esper.leyline import messages as ly
from esper.oona import Fabric
from tests.urza.harness import running


def registrations(fabric: Fabric) -> list[ly.BlueprintRegistered]:
    """Return everything that the topic holds."""
    with fabric.reader({("blueprints", 0): "begin"}) as reader:
        return [event.message for event in reader.read_to_end() if isinstance(event.message, ly.BlueprintRegistered)]


def register(fabric: Fabric, catalog: KarnCatalog) -> int:
    """Register a catalogue as a member does at start, and return how many were news."""
    with fabric.publisher("karn") as publisher:
        return len(build_service(fabric, catalog=catalog).register(publisher))


def test_log_is_told_once(fabric: Fabric) -> None:
    """Start the member twice: the log ends with one registration of each blueprint as it is, and gains no second."""
    with running(build_service(fabric)):
        pass
    register(fabric, KarnCatalog())
    once = registrations(fabric)
    last = {each.descriptor.blueprint_id: each for each in once}
    for blueprint_id, blueprint in catalogue().items():
        assert last[blueprint_id].descriptor == blueprint.descriptor()
        assert last[blueprint_id].descriptor_digest == descriptor_digest(blueprint.descriptor())
        assert last[blueprint_id].meta.subject == blueprint_id
    with running(build_service(fabric)):
        pass
    assert len(registrations(fabric)) == len(once)


def test_changes_are_told_and_taken_back(fabric: Fabric) -> None:
    """A blueprint that changes is registered again, and again when it changes back: each with an id of its own."""
    original = replace(catalogue()["BP005"], blueprint_id="BP905")
    changed = replace(original, risk=0.4)
    news = [register(fabric, KarnCatalog({"BP905": each})) for each in (original, original, changed, changed, original)]
    assert news == [1, 0, 1, 0, 1]
    told = [each for each in registrations(fabric) if each.descriptor.blueprint_id == "BP905"]
    assert [each.descriptor.risk for each in told] == [0.1, 0.4, 0.1]
    assert len({each.meta.event_id for each in told}) == 3


def test_decision_is_a_function_of_the_log() -> None:
    """What is due depends on the last digest alone; two lives name the same registration alike."""
    descriptors = [blueprint.descriptor() for blueprint in catalogue().values()]
    due = decide({}, descriptors)
    assert [event.descriptor for _, event in due] == descriptors
    assert [event_id for event_id, _ in due] == [event_id for event_id, _ in decide({}, descriptors)]
    known: Approvals = {}
    for _, event in due:
        known = fold(known, event)
    assert decide(known, descriptors) == []
    first = descriptors[0]
    standing = known[first.blueprint_id]
    assert (standing.digest, standing.registrations) == (descriptor_digest(first), 1)


def test_member_answers_queries_by_what_the_log_says(fabric: Fabric) -> None:
    """Goal: a withdrawal reaches the next query, and what is counted is the member's own. Method: ask the service
    before it runs, after a withdrawal, and after an approval, on the broker.
    """
    name = f"acme.{new_event_id()[:12]}"
    known = {name: replace(catalogue()["BP005"], blueprint_id=name)}
    service = build_service(fabric, catalog=KarnCatalog(known))
    query = BlueprintQuery(context="run-1")
    assert service.queries.handle_query(query).blueprint_id == name, "what it is about to register counts"
    withdraw(fabric, known, name, who="bob", reason="a test")
    with pytest.raises(BlueprintRefused, match="bob withdrew"):
        service.queries.handle_query(query)
    register(fabric, KarnCatalog(known))
    approve(fabric, known, name, who="ann", reason="a test")
    assert service.queries.handle_query(query).blueprint_id == name
    assert service.metrics.value("karn.selection.safe") == 2.0
    assert service.metrics.value("karn.requests.failed") == 1.0
