"""Blueprints of other packages: found by entry point, checked like those that are shipped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from esper.core.errors import EsperError
from esper.karn import Blueprint, BlueprintError, Body, catalogue, check_own
from esper.karn._own import BrokenPlugin, load_own

GROUP = "esper.blueprints"


def _body(features: int, _parameters: Mapping[str, float]) -> Body:
    return Body(
        {"op": "sequential", "children": [{"op": "layer_norm", "features": features, "epsilon": 1e-5}]}, features
    )


OWN = Blueprint(
    "acme.norm",
    "acme_norm",
    "SAFE",
    risk=0.1,
    stage=0,
    description="The features of each sample brought to mean 0 and variance 1.",
    bodies={"vector": _body},
)


def _raises(_features: int, _parameters: Mapping[str, float]) -> Body:
    raise ZeroDivisionError("a bug of the plugin")


BROKEN: dict[str, tuple[Blueprint, str]] = {
    "reserved": (replace(OWN, blueprint_id="BP007"), "reserved"),
    "reserved later": (replace(OWN, blueprint_id="bp999"), "reserved"),
    "strange id": (replace(OWN, blueprint_id="../x"), "letters"),
    "empty id": (replace(OWN, blueprint_id=""), "letters"),
    "no name": (replace(OWN, name=""), "no name"),
    "no meaning": (replace(OWN, description="norm"), "too little"),
    "risk": (replace(OWN, risk=float("nan")), "risk"),
    "stage": (replace(OWN, stage=-1), "stage"),
    "tier": (replace(OWN, tier="HARMLESS"), "no tier 'HARMLESS'"),
    "unapproved": (replace(OWN, tier="EXPERIMENTAL"), "approval_required"),
    "loose hazard": (replace(OWN, tier="HIGH_RISK", approval_required=True), "quarantine_only"),
    "no layout": (replace(OWN, bodies={}), "no layout"),
    "strange layout": (replace(OWN, bodies={"graph": _body}), "'graph'"),
    "bounds": (replace(OWN, parameters={"scale": (2.0, 1.0)}), "bounds of 'scale'"),
    "endless bounds": (replace(OWN, parameters={"scale": (0.0, float("inf"))}), "bounds of 'scale'"),
    "unknown word": (replace(OWN, bodies={"vector": lambda features, _: Body({"op": "eval"}, features)}), "eval"),
    "hidden hazard": (
        replace(catalogue()["BP045"], blueprint_id="acme.x", tier="SAFE", quarantine_only=False),
        "is a hazard",
    ),
    "wrong width": (
        replace(OWN, bodies={"vector": lambda features, _: Body({"op": "identity"}, features + 1)}),
        "cannot be built",
    ),
}


@pytest.mark.parametrize("what", sorted(BROKEN))
def test_what_says_too_little_or_too_much_is_refused(what: str) -> None:
    """Goal: own blueprints pass the same checks. Method: one fault each, refused by name with what is wrong."""
    blueprint, cause = BROKEN[what]
    with pytest.raises(EsperError, match=cause):
        check_own(blueprint, catalogue())


def test_good_one_passes() -> None:
    """Goal: what is whole is accepted, hazards with their flags too. Method: check one of each tier."""
    check_own(OWN, catalogue())
    check_own(replace(OWN, tier="EXPERIMENTAL", approval_required=True), catalogue())
    check_own(replace(OWN, tier="HIGH_RISK", approval_required=True, quarantine_only=True), catalogue())
    with pytest.raises(BlueprintError, match="taken"):
        check_own(OWN, {"acme.norm"})


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a module that entry points can name."""
    module = ModuleType("acme_blueprints")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def points(**values: str) -> list[EntryPoint]:
    """Return entry points of the group."""
    return [EntryPoint(name, f"acme_blueprints:{value}", GROUP) for name, value in values.items()]


def test_broken_plugin_costs_only_itself(plugin: ModuleType) -> None:
    """Goal: one bad package harms nobody else. Method: good ones among one that is missing, one that raises, one
    that is no blueprint, one that takes another's id, and a list of which one member is bad.
    """
    plugin.good = OWN
    plugin.several = (replace(OWN, blueprint_id="acme.b"), replace(OWN, blueprint_id="acme.c"))
    plugin.raises = replace(OWN, blueprint_id="acme.d", bodies={"vector": _raises})
    plugin.number = 7
    plugin.again = replace(OWN, name="other")
    plugin.half = [replace(OWN, blueprint_id="acme.e"), replace(OWN, blueprint_id="BP001")]
    names = ["good", "several", "raises", "number", "again", "half", "absent"]
    found, broken = load_own(points(**{name: name for name in names}), catalogue())
    assert [blueprint.blueprint_id for blueprint in found] == ["acme.norm", "acme.b", "acme.c"]
    causes = {each.entry_point.split(" ")[0]: each.cause for each in broken}
    assert set(causes) == {"raises", "number", "again", "half", "absent"}
    assert "ZeroDivisionError: a bug of the plugin" in causes["raises"]
    assert "int is no esper.karn.Blueprint" in causes["number"]
    assert "taken" in causes["again"]
    assert "BP001" in causes["half"]
    assert "absent" in causes["absent"]
    assert "is not offered" in str(BrokenPlugin("x = y", "z"))


PACKAGE = """
from esper.karn import Blueprint, Body


def body(features, parameters):
    hidden = round(parameters["width"] * features)
    return Body(
        {"op": "sequential", "children": [
            {"op": "linear", "in": features, "out": hidden, "bias": True},
            {"op": "gelu"},
        ]},
        hidden, mixed=True,
    )


wide = Blueprint(
    "acme.wide", "acme_wide", "EXPERIMENTAL", risk=0.6, stage=2, approval_required=True,
    description="A GELU layer of `width` times the features, into a projection.",
    bodies={"vector": body}, parameters={"width": (1.0, 4.0)},
)
bad = "no blueprint"
"""


def test_installed_package_joins_the_catalogue(tmp_path: Path) -> None:
    """Goal: an entry point is all it takes. Method: a package's metadata on the path of a fresh process, beside
    a broken entry point; build the blueprint, and see that the shipped ones are all there.
    """
    (tmp_path / "acme_wide.py").write_text(PACKAGE)
    metadata = tmp_path / "acme_wide-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-wide\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\nwide = acme_wide:wide\nbad = acme_wide:bad\n")
    script = (
        "import torch; from esper.karn import broken_plugins, catalogue, KarnCatalog\n"
        "seed = catalogue()['acme.wide'].build(layout='vector', shape=[6], parameters={'width': 2.0},"
        " generator=torch.Generator().manual_seed(1))\n"
        "assert torch.equal(seed(torch.ones(3, 6)), torch.zeros(3, 6))\n"
        "print(len(catalogue()), [each.entry_point for each in broken_plugins()])\n"
        "KarnCatalog().select('x', tier='EXPERIMENTAL', approvals={})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
    )
    shipped = len(catalogue())
    assert done.stdout.strip() == f"{shipped + 1} ['bad = acme_wide:bad']", done.stderr
    assert "BlueprintRefused" in done.stderr
    assert "is not offered" in done.stderr, "a process without logging set up still says it"
