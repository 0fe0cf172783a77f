"""The catalogue: listing, choosing, and what the log is told about a blueprint."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from esper.core.kernel import make_request
from esper.karn import (
    BlueprintError,
    KarnCatalog,
    MissingParameter,
    UnknownBlueprint,
    UnsupportedLayout,
    catalogue,
    descriptor_digest,
)
from esper.leyline import messages as ly
from tests.karn.contract import CONTRACT, lowest


def tier(name: str) -> list[str]:
    """Return the ids of one tier of the old catalogue."""
    return sorted(blueprint_id for blueprint_id, row in CONTRACT.items() if row.tier == name)


def test_get_and_list() -> None:
    """Every blueprint is found by id and listed in id order; tier and layout narrow the list."""
    karn = KarnCatalog()
    assert [each.blueprint_id for each in karn.list()] == sorted(CONTRACT)
    assert [len(karn.list(tier=name)) for name in ("SAFE", "EXPERIMENTAL", "HIGH_RISK")] == [35, 7, 8]
    assert [each.blueprint_id for each in karn.list(tier="SAFE", layout="vector")] == tier("SAFE")
    assert karn.list(tier="SAFE", layout="graph") == []
    assert karn.get("BP009").name == "residual_block"


@pytest.mark.parametrize("blueprint_id", ["BP000", "BP051", "BP999", "", "bp002", "../x"])
def test_unknown_blueprint_is_named(blueprint_id: str) -> None:
    """An unknown id is refused with the ids that exist."""
    with pytest.raises(UnknownBlueprint, match="BP002"):
        KarnCatalog().get(blueprint_id)


def test_selection_is_decided_by_the_context() -> None:
    """The same context always selects the same blueprint, contexts spread over all, none selects the first."""
    karn = KarnCatalog()
    safe = tier("SAFE")
    assert karn.select().blueprint_id == "BP001"
    # First four bytes of SHA-256("run-1"), big-endian, modulo 35 candidates.
    assert karn.select("run-1").blueprint_id == safe[int(hashlib.sha256(b"run-1").hexdigest()[:8], 16) % 35]
    chosen = [karn.select(f"context {n}").blueprint_id for n in range(1_000)]
    assert chosen == [KarnCatalog().select(f"context {n}").blueprint_id for n in range(1_000)]
    assert set(chosen) == set(safe)


def test_selection_among_none_is_refused() -> None:
    """Nothing is never selected: ask for a tier and a layout that no blueprint has."""
    with pytest.raises(BlueprintError, match="HIGH_RISK"):
        KarnCatalog().select("x", tier="HIGH_RISK")
    with pytest.raises(BlueprintError, match="graph"):
        KarnCatalog().select("x", layout="graph")


def test_request_becomes_the_blueprints_spec() -> None:
    """The port of the forge: the spec of a request is that of its blueprint, and bad requests are refused by name."""
    karn = KarnCatalog()
    request = make_request("BP021", {"hidden_multiple": 2.0}, layout="vector", in_shape=[40], out_shape=[8])
    assert karn.build_spec(request) == catalogue()["BP021"].spec(
        layout="vector", shape=[40], out_shape=[8], parameters={"hidden_multiple": 2.0}
    )
    with pytest.raises(UnknownBlueprint):
        karn.build_spec(make_request("BP900", {}, layout="vector", in_shape=[4]))
    with pytest.raises(MissingParameter):
        karn.build_spec(make_request("BP021", {}, layout="vector", in_shape=[4]))
    unsupported = make_request("BP050", {"epsilon": 0.1}, layout="vector", in_shape=[4])
    unsupported.layout = "graph"
    with pytest.raises(UnsupportedLayout):
        karn.build_spec(unsupported)


@pytest.mark.parametrize("blueprint_id", sorted(CONTRACT))
def test_descriptor_says_what_the_blueprint_is(blueprint_id: str) -> None:
    """The descriptor in the log carries every field of the blueprint: compare, and describe in more than its name."""
    blueprint, row = catalogue()[blueprint_id], CONTRACT[blueprint_id]
    descriptor = blueprint.descriptor()
    bounds = {name: (each.min_value, each.max_value) for name, each in descriptor.allowed_parameters.items()}
    assert bounds == row.parameters
    assert (descriptor.blueprint_id, descriptor.name) == (blueprint_id, row.name)
    tier_name = ly.BlueprintTier.Name(descriptor.tier).removeprefix("BLUEPRINT_TIER_")
    assert (tier_name, descriptor.risk, descriptor.stage) == (row.tier, row.risk, row.stage)
    assert (descriptor.quarantine_only, descriptor.approval_required) == ("Q" in row.flags, "A" in row.flags)
    assert list(descriptor.layouts) == list(blueprint.layouts)
    assert len(descriptor.description) > 40
    assert all(f"`{name}`" in descriptor.description for name in row.parameters)


def test_descriptor_digest_covers_every_field() -> None:
    """A registration is old news only if nothing changed: change each field in turn and compare digests."""
    original = catalogue()["BP021"].descriptor()
    digests = {descriptor_digest(original)}
    for change in (
        {"blueprint_id": "BP999"},
        {"name": "other"},
        {"tier": ly.BLUEPRINT_TIER_EXPERIMENTAL},
        {"risk": 0.6},
        {"stage": 3},
        {"quarantine_only": True},
        {"approval_required": True},
        {"description": "other"},
        {"layouts": ["vector", "sequence"]},
        {"allowed_parameters": {"hidden_multiple": ly.BlueprintParameterBounds(min_value=2.0, max_value=6.5)}},
    ):
        fields = {field.name: getattr(original, field.name) for field in original.DESCRIPTOR.fields}
        digests.add(descriptor_digest(ly.BlueprintDescriptor(**(fields | change))))
    assert len(digests) == 11
    assert descriptor_digest(catalogue()["BP021"].descriptor()) in digests


def test_catalogue_starts_without_torch() -> None:
    """Listing blueprints is quick: import Karn, list and describe all in a fresh process, and look for torch."""
    script = (
        "import sys; from esper.karn import KarnCatalog; [b.descriptor() for b in KarnCatalog().list()]; "
        "KarnCatalog().get('BP005').spec(layout='vector', shape=[4], parameters={}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"


def test_catalogue_cannot_be_changed() -> None:
    """The catalogue is the same for all: writing to it fails."""
    with pytest.raises(TypeError):
        catalogue()["BP002"] = catalogue()["BP003"]  # type: ignore[index]  # that it fails is the point
    assert lowest("BP002") == {"scale": 0.5}
