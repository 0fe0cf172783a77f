"""What people decide about a blueprint: appended once, refused where nobody would know what he approves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from esper.core.approvals import Approvals, descriptor_digest, fold
from esper.core.clock import Deadline
from esper.core.errors import NotReadyError, UsageError
from esper.core.ids import new_event_id
from esper.karn import Blueprint, KarnCatalog, UnknownBlueprint, approve, build_service, catalogue, withdraw
from esper.karn._decisions import decide_approval, decide_withdrawal, standing_of
from esper.leyline import messages as ly
from esper.oona import BlueprintBoard, Fabric
from tests.urza.harness import running


def experimental(blueprint_id: str = "BP950") -> dict[str, Blueprint]:
    """Return a catalogue of one blueprint that needs an approval."""
    model = catalogue()["BP005"]
    return {blueprint_id: replace(model, blueprint_id=blueprint_id, tier="EXPERIMENTAL", approval_required=True)}


def registered(fabric: Fabric) -> dict[str, Blueprint]:
    """Register one blueprint that no other test knows, and return its catalogue."""
    known = experimental(f"acme.{new_event_id()[:12]}")
    with fabric.publisher("karn") as publisher:
        build_service(fabric, catalog=KarnCatalog(known)).register(publisher)
    return known


def decisions(fabric: Fabric, blueprint_id: str) -> list[ly.BlueprintApproved | ly.BlueprintWithdrawn]:
    """Return what people said of the blueprint, in order."""
    kinds = ly.BlueprintApproved | ly.BlueprintWithdrawn
    with fabric.reader({("blueprints", 0): "begin"}) as reader:
        messages = [event.message for event in reader.read_to_end() if isinstance(event.message, kinds)]
    return [message for message in messages if message.blueprint_id == blueprint_id]


def test_approved_withdrawn_and_approved_again(fabric: Fabric) -> None:
    """Goal: an event per decision that changes something, signed as cli. Method: decide each twice, read the log."""
    known = registered(fabric)
    (name,) = known
    first = approve(fabric, known, name, who="ann", reason="looked at it")
    assert (first.changed, first.refused_before.split(":")[0], first.refused_now) == (True, "approval_required", "")
    again = approve(fabric, known, name, who="eve", reason="me too")
    assert (again.changed, again.event_id, again.refused_now) == (False, "", "")
    gone = withdraw(fabric, known, name, who="bob", reason="it diverged")
    assert (gone.changed, gone.refused_before, gone.refused_now.split(":")[0]) == (True, "", "withdrawn")
    assert not withdraw(fabric, known, name, who="eve", reason="me too").changed
    assert approve(fabric, known, name, who="ann", reason="mended").changed
    said = decisions(fabric, name)
    assert [(type(each).__name__, each.reason) for each in said] == [
        ("BlueprintApproved", "looked at it"),
        ("BlueprintWithdrawn", "it diverged"),
        ("BlueprintApproved", "mended"),
    ]
    assert {each.meta.source for each in said} == {"cli"}
    assert said[0].meta.event_id == first.event_id
    assert {each.descriptor_digest for each in said} == {descriptor_digest(known[name].descriptor())}


def test_changed_blueprint_has_to_be_looked_at_again(fabric: Fabric) -> None:
    """Goal: an approval holds for one descriptor. Method: approve, change, decide, register, decide."""
    known = registered(fabric)
    (name,) = known
    approve(fabric, known, name, who="ann", reason="")
    changed = {name: replace(known[name], risk=0.9)}
    with pytest.raises(NotReadyError, match=f"{name} is another one in the log than here"):
        approve(fabric, changed, name, who="ann", reason="")
    with fabric.publisher("karn") as publisher:
        build_service(fabric, catalog=KarnCatalog(changed)).register(publisher)
    renewed = approve(fabric, changed, name, who="ann", reason="")
    assert renewed.refused_before.startswith("approval_outdated")
    assert renewed.refused_now == ""


def test_blueprint_of_the_log_alone_can_be_withdrawn(fabric: Fabric) -> None:
    """Goal: what another machine registered can be stopped from here. Method: decide with an empty catalogue."""
    (name,) = registered(fabric)
    assert withdraw(fabric, {}, name, who="bob", reason="").changed


def test_unknown_blueprint_is_named(fabric: Fabric) -> None:
    """Goal: a misspelt id changes nothing. Method: decide about one that nobody has, and look for events."""
    for decide in (approve, withdraw):
        with pytest.raises(UnknownBlueprint, match=r"BP000.*BP950"):
            decide(fabric, experimental(), "BP000", who="ann", reason="")
    assert decisions(fabric, "BP000") == []


def test_decisions_are_functions_of_the_standing() -> None:
    """Goal: what is appended follows from the log alone. Method: the decisions about each tier, without a broker."""
    safe = standing_of({}, dict(catalogue()), "BP005")
    assert decide_approval("BP005", safe, who="ann", reason="") is None, "a SAFE blueprint needs no approval"
    hazard = replace(catalogue()["BP005"], tier="HIGH_RISK", approval_required=True, quarantine_only=True)
    known = {"BP005": hazard}
    with pytest.raises(UsageError, match=r"BP005 cannot be approved: it runs in quarantine only"):
        decide_approval("BP005", standing_of({}, known, "BP005"), who="ann", reason="")
    gone: Approvals = fold({}, ly.BlueprintWithdrawn(blueprint_id="BP005", withdrawn_by="bob"))
    standing = standing_of(gone, known, "BP005")
    assert decide_withdrawal("BP005", standing, who="ann", reason="") is None
    assert decide_approval("BP005", standing, who="ann", reason="") is not None, "it may be contained again"


@pytest.mark.parametrize("words", ["\udcff", "gone\x1b[2J", "two\nlines", "\u202egnorw"], ids=ascii)
@pytest.mark.parametrize("field", ["who", "reason"])
def test_words_that_nobody_can_keep_or_print_are_refused(field: str, words: str) -> None:
    """Goal: what is appended can be written down, and commands no terminal. Method: both decisions, without a broker,
    with such words as the decider's name and as the reason; each is a mistake of the caller's.
    """
    waiting = standing_of({}, experimental(), "BP950")
    said = {"who": "ann", "reason": "mended"} | {field: words}
    for decide in (decide_approval, decide_withdrawal):
        with pytest.raises(UsageError, match=f"the decision's {field} .* cannot be kept"):
            decide("BP950", waiting, **said)


def test_member_counts_what_may_be_grafted(fabric: Fabric) -> None:
    """Goal: `karn.*` tells how the catalogue stands. Method: run Karn, approve one, and wait for its gauges to move."""
    known = registered(fabric)
    (name,) = known
    service = build_service(fabric, catalog=KarnCatalog(known))
    gauges = service.metrics
    with BlueprintBoard(fabric) as board, running(service):
        deadline = Deadline(60.0)
        while gauges.value("karn.blueprints.registered") == 0.0:
            assert not deadline.expired, "no gauge was set"
        waiting = gauges.value("karn.blueprints.refused", reason="approval_required")
        assert waiting >= 1.0
        approve(fabric, known, name, who="ann", reason="")
        while gauges.value("karn.blueprints.refused", reason="approval_required") != waiting - 1.0:
            assert not deadline.expired, "the approval was not counted"
        described = [standing for standing in board.read().values() if standing.descriptor is not None]
        assert len(described) == gauges.value("karn.blueprints.registered")
        assert 1.0 <= gauges.value("karn.blueprints.allowed") <= len(described)
