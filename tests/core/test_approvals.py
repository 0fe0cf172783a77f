"""What may be done with a blueprint: the fold of its topic, and the judgement made from it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from esper.core.approvals import (
    APPROVAL_OUTDATED,
    APPROVAL_REQUIRED,
    QUARANTINE_ONLY,
    UNREGISTERED,
    WITHDRAWN,
    Approvals,
    descriptor_digest,
    fold,
    refusal,
    registered,
)
from esper.leyline import messages as ly


def described(tier: str = "SAFE", **fields: object) -> ly.BlueprintDescriptor:
    """Return a descriptor with the flags that its tier has in the catalogue."""
    flags = {"approval_required": tier != "SAFE", "quarantine_only": tier == "HIGH_RISK"}
    return ly.BlueprintDescriptor(
        blueprint_id="BP901", name="some_block", tier=f"BLUEPRINT_TIER_{tier}", **{**flags, **fields}
    )


def registration(descriptor: ly.BlueprintDescriptor) -> ly.BlueprintRegistered:
    """Return the event that registers it."""
    return ly.BlueprintRegistered(descriptor=descriptor, descriptor_digest=descriptor_digest(descriptor))


def approval(descriptor: ly.BlueprintDescriptor, who: str = "ann") -> ly.BlueprintApproved:
    """Return the event that approves it as it is described."""
    return ly.BlueprintApproved(
        blueprint_id="BP901", descriptor_digest=descriptor_digest(descriptor), approved_by=who, reason="looked at it"
    )


def withdrawal(who: str = "bob") -> ly.BlueprintWithdrawn:
    """Return the event that withdraws it."""
    return ly.BlueprintWithdrawn(blueprint_id="BP901", withdrawn_by=who, reason="it diverged")


def folded(events: Sequence[Message]) -> Approvals:
    """Return what holds after the events."""
    found: Approvals = {}
    for event in events:
        found = fold(found, event)
    return found


def verdict(*events: Message, quarantine: bool = False) -> str:
    """Return the word of the refusal after the events; empty where there is none."""
    found = refusal(folded(events), "BP901", quarantine=quarantine)
    return found.reason if found else ""


SAFE, TRIED, RISKY = described(), described("EXPERIMENTAL"), described("HIGH_RISK")
CHANGED = described("EXPERIMENTAL", description="another one")


@pytest.mark.parametrize(
    ("events", "grafted", "quarantined"),
    [
        ([], UNREGISTERED, UNREGISTERED),
        ([approval(TRIED)], UNREGISTERED, UNREGISTERED),
        ([registration(SAFE)], "", ""),
        ([registration(TRIED)], APPROVAL_REQUIRED, ""),
        ([registration(TRIED), approval(TRIED)], "", ""),
        ([approval(TRIED), registration(TRIED)], "", ""),
        ([registration(TRIED), approval(TRIED), registration(CHANGED)], APPROVAL_OUTDATED, ""),
        ([registration(TRIED), approval(TRIED), registration(CHANGED), registration(TRIED)], "", ""),
        ([registration(TRIED), approval(CHANGED)], APPROVAL_OUTDATED, ""),
        ([registration(RISKY)], QUARANTINE_ONLY, ""),
        ([registration(RISKY), approval(RISKY)], QUARANTINE_ONLY, ""),
        ([registration(SAFE), withdrawal()], WITHDRAWN, WITHDRAWN),
        ([withdrawal(), registration(SAFE)], WITHDRAWN, WITHDRAWN),
        ([withdrawal()], WITHDRAWN, WITHDRAWN),
        ([registration(SAFE), withdrawal(), approval(SAFE)], "", ""),
        ([registration(SAFE), withdrawal(), approval(TRIED)], WITHDRAWN, WITHDRAWN),
        ([registration(TRIED), approval(TRIED), withdrawal()], WITHDRAWN, WITHDRAWN),
        ([registration(TRIED), withdrawal(), approval(TRIED), withdrawal()], WITHDRAWN, WITHDRAWN),
        ([registration(RISKY), withdrawal()], WITHDRAWN, WITHDRAWN),
        ([registration(RISKY), withdrawal(), approval(RISKY)], QUARANTINE_ONLY, ""),
    ],
)
def test_order_of_events_decides(events: list[Message], grafted: str, quarantined: str) -> None:
    """Goal: every rule of the page. Method: fold short histories and judge grafting and quarantine."""
    assert (verdict(*events), verdict(*events, quarantine=True)) == (grafted, quarantined)


@pytest.mark.parametrize("tier", ["EXPERIMENTAL", "HIGH_RISK", "UNSPECIFIED"])
def test_tier_binds_without_flags(tier: str) -> None:
    """Goal: leaving its flags out frees no descriptor. Method: tiers other than SAFE with both flags false."""
    bare = described(tier, approval_required=False, quarantine_only=False)
    assert verdict(registration(bare)) == (QUARANTINE_ONLY if tier == "HIGH_RISK" else APPROVAL_REQUIRED)


def test_flags_bind_without_tier() -> None:
    """Goal: a SAFE blueprint may still ask for more. Method: SAFE with each flag."""
    assert verdict(registration(described(approval_required=True))) == APPROVAL_REQUIRED
    assert verdict(registration(described(quarantine_only=True))) == QUARANTINE_ONLY


def test_refusal_says_who_why_and_what_next() -> None:
    """Goal: a refusal names thing, cause and next step. Method: read one of a withdrawal, and of an unknown id."""
    found = refusal(folded([registration(SAFE), withdrawal()]), "BP901")
    assert found is not None
    assert str(found) == "withdrawn: bob withdrew BP901 (some_block): it diverged"
    assert "esper blueprints approve BP901" in found.next_step
    unknown = refusal({}, "BP000")
    assert unknown is not None
    assert "BP000" in str(unknown)


def test_word_of_a_person_is_kept() -> None:
    """Goal: who approved and who withdrew stays known. Method: approve, withdraw, approve, and look after each."""
    events: list[Message] = [registration(TRIED), approval(TRIED, "ann")]
    standing = folded(events)["BP901"]
    assert standing.approval is not None
    assert (standing.approval.who, standing.approval.reason, standing.withdrawn) == ("ann", "looked at it", False)
    standing = folded([*events, withdrawal("bob")])["BP901"]
    assert (standing.approval, standing.withdrawn) == (None, True)
    assert standing.withdrawal is not None
    assert standing.withdrawal.who == "bob"
    standing = folded([*events, withdrawal("bob"), approval(TRIED, "eve")])["BP901"]
    assert standing.approval is not None
    assert (standing.approval.who, standing.withdrawn, standing.registrations) == ("eve", False, 1)


def test_without_a_log_nobody_approved_anything() -> None:
    """Goal: a library user without a broker gets SAFE blueprints and no others. Method: judge one of each tier."""
    known = registered([SAFE])
    assert refusal(known, "BP901") is None
    assert refusal(registered([TRIED]), "BP901") == refusal(folded([registration(TRIED)]), "BP901")
    said = folded([approval(TRIED)])
    assert refusal(registered([TRIED], said), "BP901") is None, "what the log says of it holds"
    assert registered([CHANGED], folded([registration(TRIED)])) == folded([registration(TRIED)])


_EVENTS = st.lists(
    st.sampled_from(
        [
            registration(TRIED),
            registration(CHANGED),
            registration(RISKY),
            approval(TRIED),
            approval(CHANGED),
            approval(RISKY),
            withdrawal(),
        ]
    ),
    max_size=12,
)


@given(_EVENTS)
def test_nothing_is_grafted_that_nobody_vouches_for(events: list[Message]) -> None:
    """Goal: no order of events lets an unapproved or withdrawn blueprint pass. Method: any history, and the rule said
    the other way round: the registered descriptor was approved after the last withdrawal, and may be grafted at all.
    """
    registrations = [event for event in events if isinstance(event, ly.BlueprintRegistered)]
    last = max((at for at, event in enumerate(events) if isinstance(event, ly.BlueprintWithdrawn)), default=-1)
    vouched = {event.descriptor_digest for event in events[last + 1 :] if isinstance(event, ly.BlueprintApproved)}
    allowed = (
        bool(registrations)
        and registrations[-1].descriptor_digest in vouched
        and not registrations[-1].descriptor.quarantine_only
    )
    assert (verdict(*events) == "") == allowed


@given(_EVENTS)
def test_saying_it_twice_changes_nothing(events: list[Message]) -> None:
    """Goal: the judgement survives an event that comes again at once. Method: double every event of any history."""
    doubled = [event for event in events for _ in range(2)]
    assert verdict(*doubled) == verdict(*events)
    assert verdict(*doubled, quarantine=True) == verdict(*events, quarantine=True)


def test_foreign_events_change_nothing() -> None:
    """Goal: the fold takes any event of the topic and beyond. Method: one that is no word about blueprints."""
    known = folded([registration(SAFE)])
    assert fold(known, ly.CompileRequested(kernel_id="k")) is known
