"""Which blueprints may be chosen, and which one a context always gets; pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from esper.core.approvals import Approvals, Refusal, refusal
from esper.core.text import printable, shown
from esper.karn._blueprint import Blueprint
from esper.karn._errors import BlueprintError, BlueprintRefused

#: The conservative set is the first so many SAFE blueprints, in id order: the simplest ones.
CONSERVATIVE_COUNT: Final = 10
_SAFE, _HIGH_RISK = "SAFE", "HIGH_RISK"
_INDEX_BYTES: Final = 4


@dataclass(frozen=True)
class Wish:
    """Which blueprints come into question; None means any."""

    tier: str | None = _SAFE
    layout: str | None = None
    #: Whether HIGH_RISK ones do, which run in quarantine only.
    adversarial: bool = False
    #: Whether only the conservative set does.
    conservative: bool = False


def conservative_ids(blueprints: Mapping[str, Blueprint]) -> frozenset[str]:
    """Return the ids of the conservative set."""
    safe = sorted(name for name, blueprint in blueprints.items() if blueprint.tier == _SAFE)
    return frozenset(safe[:CONSERVATIVE_COUNT])


def candidates(blueprints: Mapping[str, Blueprint], wish: Wish) -> list[Blueprint]:
    """Return what answers the wish, in id order, whether or not it may be used."""
    kept = conservative_ids(blueprints) if wish.conservative else frozenset(blueprints)
    return [
        blueprint
        for name, blueprint in sorted(blueprints.items())
        if name in kept
        and wish.tier in (None, blueprint.tier)
        and wish.layout in (None, *blueprint.layouts)
        and (wish.adversarial or blueprint.tier != _HIGH_RISK)
    ]


def refusal_of(blueprint: Blueprint, approvals: Approvals, wish: Wish) -> Refusal | None:
    """Return why a candidate may not be chosen; with `adversarial` a HIGH_RISK one is chosen for its quarantine."""
    quarantine = wish.adversarial and blueprint.tier == _HIGH_RISK
    return refusal(approvals, blueprint.blueprint_id, quarantine=quarantine)


def choose(context: str, found: Sequence[Blueprint], approvals: Approvals, wish: Wish) -> Blueprint:
    """Return the candidate that `context` always gives: an even spread over contexts, the same one on a replay.

    The index is the first four bytes of SHA-256(context), big-endian, modulo the number of candidates that may be
    used. Without a context it is the first.

    Raises:
        BlueprintRefused: there are candidates, and none may be used.
        BlueprintError: there are none, or UTF-8 cannot hold the context.
    """
    if not found:
        raise BlueprintError(
            "no blueprint to select",
            cause=f"the catalogue has none of tier {printable(str(wish.tier))} for layout {shown(wish.layout)}",
            next_step="ask for another tier or layout",
        )
    refusals = [refusal_of(blueprint, approvals, wish) for blueprint in found]
    allowed = [blueprint for blueprint, refused in zip(found, refusals, strict=True) if refused is None]
    if not allowed:
        raise BlueprintRefused(next(refused for refused in refusals if refused is not None))
    if not context:
        return allowed[0]
    try:
        digest = hashlib.sha256(context.encode()).digest()
    except UnicodeEncodeError as error:
        raise BlueprintError(
            f"nothing is selected for the context {shown(context)}",
            cause=f"UTF-8 cannot hold it: {error.reason}",
            next_step="give a context that can be written down",
        ) from error
    return allowed[int.from_bytes(digest[:_INDEX_BYTES], "big") % len(allowed)]
