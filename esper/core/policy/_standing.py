"""Which learned versions there are and which one decides: a pure fold of the topic `policy`.

Everybody who decides, trains, promotes or shows asks this fold, so that all answer alike. The topic has one partition,
whose order decides. What cannot be let stand changes nothing and has its reason: a version that cannot be decided
with, a promotion without evidence, a word from a source that has no say in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from google.protobuf.message import Message

from esper.core.policy._specification import PolicyRefused
from esper.leyline import messages as ly

#: The line of versions that Tamiyo decides by: `policy_id` of its events and key of their records.
POLICY_ID: Final = "tamiyo"
#: Where a version has no offset because it comes with the package.
SHIPPED: Final = -1
_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
#: A person speaks through the command line; nobody else may promote without evidence.
_PERSONS: Final = "cli"
_SOURCES: Final[Mapping[type[Message], frozenset[str]]] = {
    ly.PolicyUpdate: frozenset({"simic", "cli"}),
    ly.PolicyValidated: frozenset({"simic", "cli"}),
    ly.PolicyPromoted: frozenset({"simic", "cli"}),
    ly.PolicyRolledBack: frozenset({"tamiyo", "simic", "cli"}),
}


@dataclass(frozen=True)
class Version:
    """A version that was made and can be decided with; its weights stay in the log."""

    name: str
    digest: str
    #: Of its PolicyUpdate in partition 0 of `policy`; SHIPPED where it comes with the package.
    offset: int
    event_id: str = ""


@dataclass(frozen=True)
class Term:
    """How long one version decides: from the event that put it there to the next such event."""

    #: None while nothing that was learned decides.
    version: Version | None
    #: event_id of the PolicyPromoted or PolicyRolledBack; empty where the version comes with the package.
    event_id: str
    #: What decided before, which a rollback of this term brings back.
    previous: Version | None
    promoted: bool


@dataclass(frozen=True)
class Refusal:
    """Why an event changes nothing: a word, and a sentence for a person."""

    reason: str
    cause: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.cause}"


@dataclass(frozen=True)
class Standing:
    """What the log says of the learned versions; some 200 bytes a version, no weights."""

    versions: Mapping[str, Version] = field(default_factory=dict)
    #: event_id of a PolicyValidated that passed -> the digest that it vouches for.
    validated: Mapping[str, str] = field(default_factory=dict)
    term: Term = Term(None, "", None, promoted=False)
    #: Versions that decide or did before: what a rollback may bring back.
    tried: frozenset[str] = frozenset()
    #: Ids of the promotions and rollbacks that counted, so that none counts twice.
    counted: frozenset[str] = frozenset()

    @property
    def current(self) -> Version | None:
        """The version that decides; None while none does."""
        return self.term.version


def shipped_standing(update: ly.PolicyUpdate | None) -> Standing:
    """Return the standing before the log says anything: the package's own version decides, where it has one.

    Raises:
        PolicyRefused: it cannot be decided with.
    """
    if update is None:
        return Standing()
    refusal = _unsound(update)
    if refusal is not None:
        raise PolicyRefused(refusal.reason, refusal.cause)
    version = Version(update.tamiyo_policy_version, update.policy_digest, SHIPPED)
    term = Term(version, "", None, promoted=False)
    return Standing({version.name: version}, term=term, tried=frozenset({version.name}))


def fold(standing: Standing, message: Message, offset: int) -> tuple[Standing, Refusal | None]:
    """Return the standing after one more event of partition 0 of `policy`, and why it was refused if it was. Pure.

    Said again, an event changes nothing and is not refused. Events of other lines and other messages change nothing.
    """
    if type(message) not in _SOURCES or message.policy_id != POLICY_ID:  # type: ignore[attr-defined]  # all four have it
        return standing, None
    meta: ly.EventMeta = message.meta  # type: ignore[attr-defined]  # every event message has a meta
    if meta.source not in _SOURCES[type(message)]:
        return standing, Refusal("source", f"{meta.source!r} has no say in a {type(message).__name__}")
    match message:
        case ly.PolicyUpdate():
            return _made(standing, message, offset)
        case ly.PolicyValidated():
            if not message.passed:
                return standing, None
            return replace(standing, validated={**standing.validated, meta.event_id: message.policy_digest}), None
        case ly.PolicyPromoted():
            return _promoted(standing, message)
        case ly.PolicyRolledBack():
            return _rolled_back(standing, message)
        case _:  # pragma: no cover - _SOURCES lists no other
            return standing, None


def _made(standing: Standing, update: ly.PolicyUpdate, offset: int) -> tuple[Standing, Refusal | None]:
    name = update.tamiyo_policy_version
    known = standing.versions.get(name)
    if known is not None:
        if known.digest == update.policy_digest:
            return standing, None
        return standing, Refusal("version_taken", f"version {name} is {known.digest[:12]}, not another one")
    refusal = _unsound(update)
    if refusal is not None:
        return standing, refusal
    version = Version(name, update.policy_digest, offset, update.meta.event_id)
    return replace(standing, versions={**standing.versions, name: version}), None


def _unsound(update: ly.PolicyUpdate) -> Refusal | None:
    if not _VERSION.fullmatch(update.tamiyo_policy_version):
        return Refusal("version_name", f"{update.tamiyo_policy_version[:40]!r} is no name of a version")
    from esper.core.policy._packed import unpack  # torch comes with it

    try:
        unpack(update)
    except PolicyRefused as refused:
        return Refusal(refused.reason, refused.cause)
    return None


def _promoted(standing: Standing, event: ly.PolicyPromoted) -> tuple[Standing, Refusal | None]:
    if event.meta.event_id in standing.counted:
        return standing, None
    version = _named(standing, event.tamiyo_policy_version, event.policy_digest)
    if isinstance(version, Refusal):
        return standing, version
    if not event.validation_event_id:
        if event.meta.source != _PERSONS or not event.issued_by:
            return standing, Refusal("not_validated", f"only a person may promote {version.name} without its gates")
    elif standing.validated.get(event.validation_event_id) != version.digest:
        said = f"no passed validation {event.validation_event_id[:32]} of {version.digest[:12]} stands before it"
        return standing, Refusal("not_validated", said)
    before = standing.current
    if before == version:
        return standing, Refusal("already_decides", f"version {version.name} decides already")
    if event.previous_policy_version and (before is None or before.name != event.previous_policy_version):
        decides = "none" if before is None else before.name
        cause = f"it follows {event.previous_policy_version[:40]}, but {decides} decides"
        return standing, Refusal("overtaken", cause)
    return _appointed(standing, Term(version, event.meta.event_id, before, promoted=True)), None


def _rolled_back(standing: Standing, event: ly.PolicyRolledBack) -> tuple[Standing, Refusal | None]:
    if event.meta.event_id in standing.counted:
        return standing, None
    before = standing.current
    if before is None or (before.name, before.digest) != (event.tamiyo_policy_version, event.policy_digest):
        decides = "none" if before is None else f"{before.name} ({before.digest[:12]})"
        return standing, Refusal("not_current", f"{event.tamiyo_policy_version[:40]} does not decide, {decides} does")
    if event.meta.source not in ("cli", "simic") and event.meta.causation_id != standing.term.event_id:
        return standing, Refusal("not_current", "it is about an earlier promotion of this version")
    restored: Version | None = None
    if event.restored_policy_version:
        found = _named(standing, event.restored_policy_version, event.restored_policy_digest)
        if isinstance(found, Refusal):
            return standing, found
        if found.name not in standing.tried:
            return standing, Refusal("never_decided", f"version {found.name} never decided: promote it")
        if found == before:
            return standing, Refusal("already_decides", f"version {found.name} decides already")
        restored = found
    return _appointed(standing, Term(restored, event.meta.event_id, before, promoted=False)), None


def _named(standing: Standing, name: str, digest: str) -> Version | Refusal:
    version = standing.versions.get(name)
    if version is None:
        return Refusal("unknown_version", f"no version {name[:40]!r} was made that can be decided with")
    if version.digest != digest:
        return Refusal("digest", f"version {name} is {version.digest[:12]}, not {digest[:12]!r}")
    return version


def _appointed(standing: Standing, term: Term) -> Standing:
    tried = standing.tried if term.version is None else standing.tried | {term.version.name}
    return replace(standing, term=term, tried=tried, counted=standing.counted | {term.event_id})
