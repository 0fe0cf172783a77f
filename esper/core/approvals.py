"""What may be done with a blueprint: a pure fold of the topic `blueprints`, and the one judgement made from it.

Everybody who selects, compiles or grafts asks `refusal`, so that all answer alike. The topic has one partition, whose
order decides. A person's word holds for one descriptor, named by its digest: a blueprint that changes has to be looked
at again. A withdrawal holds against every tier, until the descriptor that is registered is approved again. What is
only for quarantine stays so, whoever approves it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from google.protobuf.message import Message

from esper.core.ids import Digest, sha256_hex
from esper.core.kernel import canonical_json
from esper.leyline import messages as ly

#: Why a blueprint is refused, in a word.
UNREGISTERED: Final = "unregistered"
WITHDRAWN: Final = "withdrawn"
QUARANTINE_ONLY: Final = "quarantine_only"
APPROVAL_REQUIRED: Final = "approval_required"
APPROVAL_OUTDATED: Final = "approval_outdated"


@dataclass(frozen=True)
class Word:
    """What a person said of a blueprint: who, why, and the event that holds it."""

    who: str
    reason: str = ""
    event_id: str = ""


@dataclass(frozen=True)
class Standing:
    """What the log says of one blueprint."""

    #: As it was registered last; None where somebody spoke of a blueprint that nobody registered.
    descriptor: ly.BlueprintDescriptor | None = None
    digest: str = ""
    registrations: int = 0
    #: Digest of a descriptor -> who approved it, since the last withdrawal.
    approved: Mapping[str, Word] = field(default_factory=dict)
    #: The last withdrawal; it holds unless the registered descriptor stands in `approved`.
    withdrawal: Word | None = None

    @property
    def approval(self) -> Word | None:
        """Who approved the descriptor that is registered now; None when nobody did since the last withdrawal."""
        return self.approved.get(self.digest) if self.descriptor is not None else None

    @property
    def withdrawn(self) -> bool:
        """Whether a withdrawal is in force."""
        return self.withdrawal is not None and self.approval is None


#: Blueprint id -> what the log says of it.
Approvals = Mapping[str, Standing]


@dataclass(frozen=True)
class Refusal:
    """Why a blueprint may not be used, and what to do about it."""

    blueprint_id: str
    #: One of this module's words.
    reason: str
    cause: str
    next_step: str
    #: Whether it may still run in quarantine, on copies.
    quarantine: bool

    def __str__(self) -> str:
        return f"{self.reason}: {self.cause}"


def fold(approvals: Approvals, message: Message) -> Approvals:
    """Return the approvals after one more event of the topic `blueprints`; any other message changes nothing."""
    if isinstance(message, ly.BlueprintRegistered):
        name = message.descriptor.blueprint_id
        known = approvals.get(name, Standing())
        changed = replace(
            known,
            descriptor=message.descriptor,
            digest=message.descriptor_digest,
            registrations=known.registrations + 1,
        )
        return {**approvals, name: changed}
    if isinstance(message, ly.BlueprintApproved):
        name = message.blueprint_id
        known = approvals.get(name, Standing())
        word = Word(message.approved_by, message.reason, message.meta.event_id)
        return {**approvals, name: replace(known, approved={**known.approved, message.descriptor_digest: word})}
    if isinstance(message, ly.BlueprintWithdrawn):
        name = message.blueprint_id
        known = approvals.get(name, Standing())
        word = Word(message.withdrawn_by, message.reason, message.meta.event_id)
        return {**approvals, name: replace(known, approved={}, withdrawal=word)}
    return approvals


def registered(descriptors: Iterable[ly.BlueprintDescriptor], approvals: Approvals | None = None) -> Approvals:
    """Return what holds once these are registered too; what `approvals` describe already stays as it is. Pure.

    Without `approvals` that is what holds where no log says anything: nobody approved any.
    """
    known = dict(approvals or {})
    for descriptor in descriptors:
        standing = known.get(descriptor.blueprint_id, Standing())
        if standing.descriptor is None:
            digest = descriptor_digest(descriptor)
            known[descriptor.blueprint_id] = replace(standing, descriptor=descriptor, digest=digest)
    return known


def is_quarantine_only(descriptor: ly.BlueprintDescriptor) -> bool:
    """Return whether the blueprint never touches a host: by its own word, or because its tier is HIGH_RISK."""
    return bool(descriptor.quarantine_only) or descriptor.tier == ly.BLUEPRINT_TIER_HIGH_RISK


def needs_approval(descriptor: ly.BlueprintDescriptor) -> bool:
    """Return whether a person has to vouch for the blueprint: by its own word, or because its tier is not SAFE."""
    return bool(descriptor.approval_required) or descriptor.tier != ly.BLUEPRINT_TIER_SAFE


def refusal(approvals: Approvals, blueprint_id: str, *, quarantine: bool = False) -> Refusal | None:
    """Return why the blueprint may not be selected, compiled or grafted; None when it may. Pure.

    With `quarantine` the question is whether it may run on copies, contained: what only waits for an approval or is
    only for quarantine may, what was withdrawn or never registered may not.
    """
    standing = approvals.get(blueprint_id, Standing())
    found = _refusal(standing, blueprint_id)
    return None if found is not None and quarantine and found.quarantine else found


def _refusal(standing: Standing, blueprint_id: str) -> Refusal | None:
    descriptor = standing.descriptor
    name = f"{blueprint_id[:80]} ({descriptor.name})" if descriptor is not None else blueprint_id[:80]
    approve = f"`esper blueprints approve {blueprint_id}` allows it"
    if standing.withdrawn and standing.withdrawal is not None:
        said = standing.withdrawal
        cause = f"{said.who or 'somebody'} withdrew {name}: {said.reason or 'no reason given'}"
        return Refusal(blueprint_id, WITHDRAWN, cause, approve, False)
    if descriptor is None:
        cause = f"no blueprint {name!r} is registered"
        return Refusal(blueprint_id, UNREGISTERED, cause, "start karn, which registers what it offers", False)
    if is_quarantine_only(descriptor):
        cause = f"{name} runs in quarantine only, whoever approves it"
        return Refusal(blueprint_id, QUARANTINE_ONLY, cause, "choose another blueprint", True)
    if needs_approval(descriptor) and standing.approval is None:
        if standing.approved:
            cause = f"{name} has changed since it was approved"
            return Refusal(blueprint_id, APPROVAL_OUTDATED, cause, f"look at it again; {approve}", True)
        return Refusal(blueprint_id, APPROVAL_REQUIRED, f"nobody has approved {name}", approve, True)
    return None


def descriptor_digest(descriptor: ly.BlueprintDescriptor) -> Digest:
    """Return the SHA-256 over the descriptor's canonical form, by which a registration is known to be old news."""
    bounds = descriptor.allowed_parameters
    fields = {
        "allowed_parameters": {name: [bounds[name].min_value, bounds[name].max_value] for name in bounds},
        "approval_required": descriptor.approval_required,
        "blueprint_id": descriptor.blueprint_id,
        "description": descriptor.description,
        "layouts": list(descriptor.layouts),
        "name": descriptor.name,
        "quarantine_only": descriptor.quarantine_only,
        "risk": descriptor.risk,
        "stage": descriptor.stage,
        "tier": ly.BlueprintTier.Name(descriptor.tier),
    }
    return sha256_hex(canonical_json(fields))
