"""Blueprints of other packages: found by entry point, checked like those that are shipped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from esper.core.errors import EsperError
from esper.core.text import unprintable
from esper.karn import Blueprint, BlueprintError, Body, catalogue, check_own
from esper.karn._own import BrokenPlugin, load_own
from esper.karn._own_checks import own_copy
from esper.leyline import messages as ly

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


def _only_eight(features: int, parameters: Mapping[str, float]) -> Body:
    if features != 8:
        raise ValueError("eight only")
    return _body(features, parameters)


class _Lively(Blueprint):
    """A blueprint whose descriptor is code of its own."""

    def descriptor(self) -> ly.BlueprintDescriptor:
        """Do anything but answer."""
        raise RuntimeError("boo")


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
    "half a stage": (replace(OWN, stage=1.5), "stage is 1.5"),  # type: ignore[arg-type]  # the fault
    "a stage that is a truth": (replace(OWN, stage=True), "stage is True"),
    "numbered name": (replace(OWN, name=5), "name is 5"),  # type: ignore[arg-type]  # the fault
    "name of a half pair": (replace(OWN, name="x\ud800"), "cannot be printed"),
    "name that clears the screen": (replace(OWN, name="x\x1b[2J"), "cannot be printed"),
    "endless name": (replace(OWN, name="x" * 65), "64 are the most"),
    "description that names the window": (replace(OWN, description=OWN.description + "\x1b]0;x\x07"), "cannot be"),
    "endless description": (replace(OWN, description="x" * 10_000_000), "4000 are the most"),
    "risk of a truth": (replace(OWN, risk=True), "risk is True"),
    "huge risk": (replace(OWN, risk=10**5000), "risk is an integer of 16610 bits"),
    "flag that is none": (replace(OWN, approval_required=1), "approval_required"),  # type: ignore[arg-type]  # the fault
    "numbered parameter": (replace(OWN, parameters={5: (0, 1)}), "name 5"),  # type: ignore[dict-item]  # the fault
    "parameter of a half pair": (replace(OWN, parameters={"p\ud800": (0.0, 1.0)}), "letters, digits"),
    "parameter that no option can name": (replace(OWN, parameters={"a=b": (0.0, 1.0)}), "letters, digits"),
    "one bound": (replace(OWN, parameters={"scale": (1.0,)}), "not two numbers"),  # type: ignore[dict-item]  # the fault
    "bounds too far apart": (replace(OWN, parameters={"scale": (-1.5e308, 1.5e308)}), "bounds of 'scale'"),
    "bounds that no double holds": (replace(OWN, parameters={"scale": (0, 10**5000)}), "not two numbers"),
    "body that is none": (replace(OWN, bodies={"vector": 7}), "not a function"),  # type: ignore[dict-item]  # the fault
    "bodies that are none": (replace(OWN, bodies=[_body]), "not a dict"),  # type: ignore[arg-type]  # the fault
    "body that returns nothing": (replace(OWN, bodies={"vector": lambda *_: None}), "no esper.karn.Body"),  # type: ignore[arg-type,return-value]  # the fault
    "body that leaves": (replace(OWN, bodies={"vector": lambda *_: sys.exit(0)}), "SystemExit: 0"),
    "body that breaks at another size": (replace(OWN, bodies={"vector": _only_eight}), "for 1 features.*eight only"),
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


def test_class_of_its_own_is_refused() -> None:
    """Goal: what was checked is what is registered. Method: a subclass whose descriptor raises."""
    fields = {name: getattr(OWN, name) for name in OWN.__dataclass_fields__}
    with pytest.raises(BlueprintError, match="_Lively cannot be offered"):
        check_own(_Lively(**fields), catalogue())


def test_offered_blueprint_is_a_copy_that_nobody_changes(plugin: ModuleType) -> None:
    """Goal: a plugin cannot change what was checked. Method: change its dicts once it is loaded."""
    bodies, parameters = {"vector": _body}, {"scale": (1, 2)}
    plugin.own = replace(OWN, bodies=bodies, parameters=parameters)
    (own,), broken = load_own(points(own="own"), catalogue())
    assert not broken
    parameters["scale"] = (1, 10**9)
    bodies["graph"] = _body
    assert own.parameters == {"scale": (1.0, 2.0)}
    assert own.layouts == ("vector",)
    assert own.descriptor().allowed_parameters["scale"].max_value == 2.0


def test_body_that_hangs_costs_its_size_alone() -> None:
    """Goal: a size that nobody tried hangs no command and no forge. Method: a body that waits at 7 features; ask for
    them twice, and for others between.
    """
    release, asked = threading.Event(), []

    def body(features: int, parameters: Mapping[str, float]) -> Body:
        asked.append(features)
        if features == 7:
            release.wait()
        return _body(features, parameters)

    own = own_copy(replace(OWN, bodies={"vector": body}), (), seconds=0.5)
    try:
        assert own.spec(layout="vector", shape=[9], parameters={})["in_shape"] == [9]
        for cause in ("within 0.5 s", "before"):
            with pytest.raises(BlueprintError, match=cause):
                own.spec(layout="vector", shape=[7], parameters={})
        assert asked.count(7) == 1, "a thread that hangs is left once"
    finally:
        release.set()


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


RUDE = {
    "leaves": "import sys; sys.exit(0)",
    "interrupts": "raise KeyboardInterrupt",
    "hangs": "import threading; threading.Event().wait()",
    "shouts": "raise RuntimeError('\\x1b[2J\\ud800')",
    "mute": "class Mute(Exception):\n    def __str__(self): raise ValueError\nraise Mute",
    "deep": "def f(): f()\nf()",
    "good": "from tests.karn.test_own import OWN as good",
}


def test_import_that_leaves_hangs_or_interrupts_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: no package can end, silence or hang whoever reads the catalogue. Method: modules that exit, interrupt,
    hang and raise what cannot be printed at import, and a good one behind them; the reasons can all be printed.
    """
    monkeypatch.syspath_prepend(tmp_path)
    for name, source in RUDE.items():
        (tmp_path / f"acme_rude_{name}.py").write_text(source)
    rude = [EntryPoint(name, f"acme_rude_{name}:{name}", GROUP) for name in RUDE]
    found, broken = load_own(rude, catalogue(), seconds=5.0)
    assert [blueprint.blueprint_id for blueprint in found] == ["acme.norm"]
    causes = {each.entry_point.split(" ")[0]: each.cause for each in broken}
    assert set(causes) == set(RUDE) - {"good"}
    assert causes["leaves"] == "SystemExit: 0"
    assert causes["interrupts"] == "KeyboardInterrupt"
    assert causes["hangs"] == "it did not answer within 5 s"
    assert causes["shouts"] == r"RuntimeError: \x1b[2J\ud800"
    assert causes["mute"] == "Mute"
    assert causes["deep"].startswith("RecursionError")
    assert all(unprintable(str(each)) == "" for each in broken)


def test_interrupt_by_a_person_is_not_taken_for_the_plugins(tmp_path: Path) -> None:
    """Goal: Ctrl-C still ends a command while a plugin hangs. Method: SIGINT to a process whose plugin has said that
    it is being imported, and hangs; it ends as interrupted, and offers nothing without it.
    """
    install(tmp_path, "import threading\nprint('importing', flush=True)\nthreading.Event().wait()\n")
    with subprocess.Popen(
        [sys.executable, "-m", "esper.cli", "blueprints", "list"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "is not offered" not in talk


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


def install(folder: Path, source: str) -> None:
    """Install a package with two entry points in a folder, as pip would."""
    (folder / "acme_wide.py").write_text(source)
    metadata = folder / "acme_wide-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-wide\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\nwide = acme_wide:wide\nbad = acme_wide:bad\n")


def test_installed_package_joins_the_catalogue(tmp_path: Path) -> None:
    """Goal: an entry point is all it takes. Method: a package's metadata on the path of a fresh process, beside
    a broken entry point; build the blueprint, and see that the shipped ones are all there.
    """
    install(tmp_path, PACKAGE)
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
