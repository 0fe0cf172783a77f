"""What a person decides about a blueprint: approving it, or withdrawing it from use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from esper.core.approvals import (
    Approvals,
    Standing,
    descriptor_digest,
    fold,
    is_quarantine_only,
    refusal,
    registered,
)
from esper.core.errors import NotReadyError, UsageError
from esper.core.text import shown, unprintable
from esper.karn._blueprint import Blueprint
from esper.karn._errors import UnknownBlueprint
from esper.leyline import messages as ly
from esper.oona import BlueprintBoard, Fabric

#: The source that people's decisions are signed as.
PERSON: Final = "cli"


@dataclass(frozen=True)
class Decided:
    """What came of a decision."""

    blueprint_id: str
    name: str
    #: Whether an event was appended; without one everything is as it was.
    changed: bool
    #: Why the blueprint could not be grafted before, and why it cannot now; empty where it could or can.
    refused_before: str
    refused_now: str
    descriptor_digest: str
    #: Who decided, why, and the event that says so; empty where nothing changed.
    decided_by: str = ""
    reason: str = ""
    event_id: str = ""


def standing_of(approvals: Approvals, known: Mapping[str, Blueprint], blueprint_id: str) -> Standing:
    """Return what the log says of a blueprint, described as in `known` where the log has no description yet; pure.

    Raises:
        UnknownBlueprint: neither has it.
        NotReadyError: what is installed here is not what the log holds: nobody would know what he decides about.
    """
    standing = approvals.get(blueprint_id, Standing())
    if blueprint_id not in known:
        if standing.descriptor is None:
            raise UnknownBlueprint(
                f"there is no blueprint {shown(blueprint_id)}",
                cause=f"known are {', '.join(known)}",
                next_step="`esper blueprints list` shows what each does",
            )
        return standing
    here = known[blueprint_id].descriptor()
    digest = descriptor_digest(here)
    if standing.descriptor is None:
        return registered([here], approvals)[blueprint_id]
    if standing.digest != digest:
        raise NotReadyError(
            f"blueprint {blueprint_id} is another one in the log than here",
            cause=f"the log has descriptor {standing.digest[:12]}, here is {digest[:12]}",
            next_step="start karn (`esper run karn`), which registers it as it is here",
        )
    return standing


def decide_approval(blueprint_id: str, standing: Standing, *, who: str, reason: str) -> ly.BlueprintApproved | None:
    """Return the event that approves the blueprint as it is described; None where that changes nothing. Pure.

    Raises:
        UsageError: it runs in quarantine only, which no approval lifts, or who decides or why cannot be written down.
    """
    _check_words(who=who, reason=reason)
    found = refusal({blueprint_id: standing}, blueprint_id)
    if found is None:
        return None
    assert standing.descriptor is not None, "who decides has looked the blueprint up"
    if is_quarantine_only(standing.descriptor) and not standing.withdrawn:
        raise UsageError(
            f"blueprint {blueprint_id} cannot be approved",
            cause="it runs in quarantine only, and no approval lifts that",
            next_step="nothing is needed for its quarantine",
        )
    return ly.BlueprintApproved(
        blueprint_id=blueprint_id, descriptor_digest=standing.digest, approved_by=who, reason=reason
    )


def decide_withdrawal(blueprint_id: str, standing: Standing, *, who: str, reason: str) -> ly.BlueprintWithdrawn | None:
    """Return the event that withdraws the blueprint; None where it is withdrawn. Pure.

    Raises:
        UsageError: who decides or why cannot be written down.
    """
    _check_words(who=who, reason=reason)
    if standing.withdrawn:
        return None
    return ly.BlueprintWithdrawn(
        blueprint_id=blueprint_id, descriptor_digest=standing.digest, withdrawn_by=who, reason=reason
    )


def approve(fabric: Fabric, known: Mapping[str, Blueprint], blueprint_id: str, *, who: str, reason: str) -> Decided:
    """Append that `who` vouches for the blueprint as it is described now; nothing where that changes nothing.

    Raises:
        UnknownBlueprint, NotReadyError, UsageError: as `standing_of` and `decide_approval`.
        BrokerUnavailable: the log could not be read or written.
    """
    approvals, standing = _look_up(fabric, known, blueprint_id)
    event = decide_approval(blueprint_id, standing, who=who, reason=reason)
    return _append(fabric, approvals, standing, blueprint_id, event)


def withdraw(fabric: Fabric, known: Mapping[str, Blueprint], blueprint_id: str, *, who: str, reason: str) -> Decided:
    """Append that nobody may use the blueprint any more, of whatever tier; nothing where it is withdrawn already.

    Raises:
        UnknownBlueprint, NotReadyError, UsageError: as `standing_of` and `decide_withdrawal`.
        BrokerUnavailable: the log could not be read or written.
    """
    approvals, standing = _look_up(fabric, known, blueprint_id)
    event = decide_withdrawal(blueprint_id, standing, who=who, reason=reason)
    return _append(fabric, approvals, standing, blueprint_id, event)


def _check_words(**words: str) -> None:
    """Refuse words that the log cannot hold, or that would command the terminal of whoever reads them."""
    for name, text in words.items():
        if strange := unprintable(text):
            raise UsageError(
                f"the decision's {name} {shown(text)} cannot be kept",
                cause=f"it holds {strange}, which is a control character or none that UTF-8 can hold",
                next_step="write it on one line in plain characters",
            )


def _look_up(fabric: Fabric, known: Mapping[str, Blueprint], blueprint_id: str) -> tuple[Approvals, Standing]:
    with BlueprintBoard(fabric) as board:
        approvals = board.read()
    standing = standing_of(approvals, known, blueprint_id)
    return {**approvals, blueprint_id: standing}, standing


def _append(
    fabric: Fabric,
    approvals: Approvals,
    standing: Standing,
    blueprint_id: str,
    event: ly.BlueprintApproved | ly.BlueprintWithdrawn | None,
) -> Decided:
    assert standing.descriptor is not None, "who decides has looked the blueprint up"
    name, before = standing.descriptor.name, str(refusal(approvals, blueprint_id) or "")
    if event is None:
        return Decided(blueprint_id, name, False, before, before, standing.digest)
    with fabric.publisher(PERSON) as publisher:
        receipt = publisher.publish(event, key=blueprint_id)
    now = str(refusal(fold(approvals, event), blueprint_id) or "")
    who = event.approved_by if isinstance(event, ly.BlueprintApproved) else event.withdrawn_by
    return Decided(blueprint_id, name, True, before, now, standing.digest, who, event.reason, receipt.event_id)
