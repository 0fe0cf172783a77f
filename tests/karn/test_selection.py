"""What may be selected: tiers, the conservative set, and what people approved or withdrew."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.core.approvals import Approvals, descriptor_digest, fold
from esper.karn import Blueprint, BlueprintError, BlueprintRefused, KarnCatalog, UnknownBlueprint, catalogue
from esper.leyline import messages as ly

_MODEL = catalogue()["BP005"]
_FLAGS = {
    "SAFE": {},
    "EXPERIMENTAL": {"approval_required": True},
    "HIGH_RISK": {"approval_required": True, "quarantine_only": True},
}


def small_catalogue() -> dict[str, Blueprint]:
    """Return twelve SAFE, two EXPERIMENTAL and two HIGH_RISK blueprints, BP901 to BP916."""
    tiers = ["SAFE"] * 12 + ["EXPERIMENTAL"] * 2 + ["HIGH_RISK"] * 2
    names = [f"BP{901 + number}" for number in range(len(tiers))]
    return {
        name: replace(_MODEL, blueprint_id=name, tier=tier, **_FLAGS[tier])
        for name, tier in zip(names, tiers, strict=True)
    }


KARN = KarnCatalog(small_catalogue())
CONTEXTS = [f"context {number}" for number in range(200)]


def approved(blueprint_id: str, approvals: Approvals | None = None) -> Approvals:
    """Return the approvals after somebody approved the blueprint as it is."""
    digest = descriptor_digest(KARN.get(blueprint_id).descriptor())
    event = ly.BlueprintApproved(blueprint_id=blueprint_id, descriptor_digest=digest, approved_by="ann")
    return fold(KARN.approvals() if approvals is None else approvals, event)


def withdrawn(blueprint_id: str, approvals: Approvals | None = None) -> Approvals:
    """Return the approvals after somebody withdrew the blueprint."""
    event = ly.BlueprintWithdrawn(blueprint_id=blueprint_id, withdrawn_by="bob", reason="it diverged")
    return fold(KARN.approvals() if approvals is None else approvals, event)


def chosen(approvals: Approvals | None = None, **wish: object) -> set[str]:
    """Return everything that any of many contexts selects."""
    return {KARN.select(context, approvals=approvals, **wish).blueprint_id for context in CONTEXTS}  # type: ignore[arg-type]  # the wish is spread


def test_high_risk_only_where_it_is_asked_for() -> None:
    """Goal: nobody gets a hazard by chance. Method: any tier, with and without `adversarial`, over many contexts."""
    safe = {f"BP{number}" for number in range(901, 913)}
    assert chosen(tier=None) == safe
    assert chosen(tier=None, adversarial=True) == safe | {"BP915", "BP916"}
    assert chosen(tier="HIGH_RISK", adversarial=True) == {"BP915", "BP916"}
    with pytest.raises(BlueprintError, match="none of tier HIGH_RISK"):
        KARN.select("x", tier="HIGH_RISK")


def test_experimental_waits_for_its_approval() -> None:
    """Goal: approval_required is enforced at selection. Method: select before, after, and after it changed."""
    with pytest.raises(BlueprintRefused, match=r"approval_required: nobody has approved BP913.*approve BP913"):
        KARN.select("x", tier="EXPERIMENTAL")
    assert chosen(approved("BP914"), tier="EXPERIMENTAL") == {"BP914"}
    changed = small_catalogue() | {"BP914": replace(KARN.get("BP914"), risk=0.9)}
    stale = approved("BP914", KARN.approvals())
    descriptor = changed["BP914"].descriptor()
    event = ly.BlueprintRegistered(descriptor=descriptor, descriptor_digest=descriptor_digest(descriptor))
    with pytest.raises(BlueprintRefused, match="approval_required"):
        KarnCatalog(changed).select("x", tier="EXPERIMENTAL", approvals=fold(stale, event))
    with pytest.raises(BlueprintRefused, match="approval_outdated"):
        KarnCatalog(changed).allowed("BP914", fold(stale, event))


def test_quarantine_only_is_never_lifted() -> None:
    """Goal: an approval makes no hazard graftable. Method: approve one, ask for it to graft and to contain."""
    with pytest.raises(BlueprintRefused, match="quarantine_only"):
        KARN.allowed("BP915", approved("BP915"))
    assert KARN.allowed("BP915", KARN.approvals(), quarantine=True).blueprint_id == "BP915"


def test_withdrawal_beats_every_tier() -> None:
    """Goal: a withdrawn SAFE blueprint is selected by no context. Method: withdraw, approve, withdraw a hazard."""
    assert "BP901" in chosen()
    assert "BP901" not in chosen(withdrawn("BP901"))
    assert KARN.select("", approvals=withdrawn("BP901")).blueprint_id == "BP902"
    assert "BP901" in chosen(approved("BP901", withdrawn("BP901")))
    assert chosen(withdrawn("BP915"), tier="HIGH_RISK", adversarial=True) == {"BP916"}
    with pytest.raises(BlueprintRefused, match="bob withdrew"):
        KARN.allowed("BP915", withdrawn("BP915"), quarantine=True)


def test_conservative_set_is_the_first_ten_safe_ones() -> None:
    """Goal: in conservative mode only the simplest come into question. Method: select by many contexts, and withdraw
    one: the set shrinks, no other takes its place.
    """
    first_ten = {f"BP{number}" for number in range(901, 911)}
    assert chosen(tier=None, conservative=True, adversarial=True) == first_ten
    assert chosen(withdrawn("BP903"), tier=None, conservative=True) == first_ten - {"BP903"}
    with pytest.raises(BlueprintError):
        KARN.select("x", tier="EXPERIMENTAL", conservative=True, approvals=approved("BP914"))


@given(
    context=st.text(max_size=40),
    withdrawn_ids=st.lists(st.sampled_from(sorted(small_catalogue())), max_size=8),
    adversarial=st.booleans(),
)
def test_same_context_same_choice(context: str, withdrawn_ids: list[str], adversarial: bool) -> None:
    """Goal: a replay repeats every choice, and none may not be used. Method: any context and withdrawals, twice."""
    approvals = KARN.approvals()
    for blueprint_id in withdrawn_ids:
        approvals = withdrawn(blueprint_id, approvals)
    try:
        first = KARN.select(context, tier=None, adversarial=adversarial, approvals=approvals)
    except BlueprintRefused:
        assert {f"BP{number}" for number in range(901, 913)} <= set(withdrawn_ids)
        return
    again = KarnCatalog(dict(reversed(small_catalogue().items())))
    second = again.select(context, tier=None, adversarial=adversarial, approvals=approvals)
    assert second.blueprint_id == first.blueprint_id
    assert first.blueprint_id not in withdrawn_ids
    assert first.tier in ({"SAFE", "HIGH_RISK"} if adversarial else {"SAFE"})


def test_unknown_id_is_named_before_it_is_judged() -> None:
    """Goal: an unknown id is no refusal. Method: ask whether one may be used."""
    with pytest.raises(UnknownBlueprint, match="BP999"):
        KARN.allowed("BP999", KARN.approvals())
