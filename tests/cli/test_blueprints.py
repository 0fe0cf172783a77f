"""`esper blueprints ...` as people and scripts call it."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from esper.karn import STATED_SHAPES, catalogue
from tests.conftest import RunningBroker
from tests.integration.driver import Esper

#: Withdrawn and approved again by these tests; nobody else's test grafts it.
SUBJECT = "BP028"


@pytest.fixture(scope="module")
def esper(local_broker: RunningBroker) -> Esper:
    """The command line at the session's broker."""
    return Esper(local_broker.home.root)


def test_list_names_every_blueprint(esper: Esper) -> None:
    """Goal: the JSON shape is a contract. Method: compare with the catalogue; the table holds every id."""
    rows = esper("blueprints", "list", "--json").json
    assert [row["blueprint_id"] for row in rows] == list(catalogue())
    assert all(list(row) == ["blueprint_id", "name", "tier", "risk", "layouts", "parameters"] for row in rows)
    assert all(row["layouts"] for row in rows)
    table = esper("blueprints", "list").stdout
    assert all(blueprint_id in table for blueprint_id in catalogue())


def test_show_explains(esper: Esper) -> None:
    """Goal: what it is, layouts, bounds, parameters, multiply-adds and latency. Method: figures worked out by hand for
    one shape (two linear layers of 128 x 128 with biases, a norm and a gain for each depth), stated ones elsewhere.
    """
    shown = esper(
        "blueprints", "show", "BP009", "--layout", "vector", "--shape", "128", "--set", "depth=1", "--json"
    ).json
    assert shown["parameters"] == {"depth": [1.0, 4.0]}
    (cost,) = shown["costs"]
    assert cost["shape"] == [128]
    assert cost["parameter_count"] == 2 * (128 * 128 + 128) + 2 * 128 + 128
    assert cost["multiply_adds"] >= 2 * 128 * 128
    assert cost["words"]["linear"] == 2
    assert shown["costs_for"] == {"depth": 1.0}
    assert isinstance(shown["latencies"], list)
    every = esper("blueprints", "show", "BP009", "--json").json
    assert {(one["layout"], *one["shape"]) for one in every["costs"]} == {
        (layout, *STATED_SHAPES[layout]) for layout in catalogue()["BP009"].layouts
    }
    assert shown["description"] in esper("blueprints", "show", "BP009").stdout


def test_show_needs_no_log(tmp_path: Path) -> None:
    """Goal: a catalogue can be read before anything is set up. Method: a home that is not there; what is unknown is
    null and said.
    """
    shown = Esper(tmp_path / "nowhere")("blueprints", "show", "BP009", "--json")
    assert shown.json["may_be_grafted"] is None
    assert shown.json["latencies"] is None
    assert "esper init" in shown.stderr


def test_withdraw_and_approve(esper: Esper) -> None:
    """Goal: a person's word is kept with name and reason, and saying it twice changes nothing. Method: withdraw twice,
    show, approve twice, show.
    """
    gone = esper("blueprints", "withdraw", SUBJECT, "--reason", "it diverged", "--json")
    try:
        assert gone.json["changed"] is True
        assert gone.json["refused_now"].startswith("withdrawn")
        assert gone.json["decided_by"] == getpass.getuser()
        again = esper("blueprints", "withdraw", SUBJECT)
        assert again.code == 0
        assert "nothing was appended" in again.stderr
        shown = esper("blueprints", "show", SUBJECT, "--json").json
        assert (shown["may_be_grafted"], shown["decision_reason"]) == (False, "it diverged")
        refused = esper("blueprints", "compile", SUBJECT, "--no-members")
        assert refused.code == 2
        assert "withdrawn" in refused.stderr
    finally:
        back = esper("blueprints", "approve", SUBJECT, "--reason", "mended", "--json")
    assert (back.json["changed"], back.json["refused_now"]) == (True, "")
    assert "already" in esper("blueprints", "approve", SUBJECT).stderr
    shown = esper("blueprints", "show", SUBJECT, "--json").json
    assert shown["decision_reason"] == "mended"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["approve", "BP999"], ["BP999", "BP009"]),
        (["withdraw", "BP999"], ["BP999", "BP009"]),
        (["show", "BP999"], ["BP999", "BP009"]),
        (["show", "BP009", "--shape", "64"], ["--layout"]),
        (["show", "BP009", "--layout", "graph", "--shape", "64"], ["graph", "vector"]),
        (["show", "BP009", "--layout", "graph"], ["graph", "map2d"]),
        (["compile", "BP009", "--layout", "vector", "--all-layouts"], ["--all-layouts"]),
        (["show", "BP009", "--layout", "vector", "--shape", "sixty"], ["sixty"]),
        (["show", "BP009", "--layout", "vector", "--shape", "9" * 5000], ["is no shape"]),
        (["show", "BP009", "--layout", "vector", "--shape", "9" * 9], ["999999999"]),
        (["show", "BP009", "--layout", "vector", "--shape", "٣٢"], ["is no shape"]),
        (["show", "BP009", "--layout", "vector", "--shape", "²"], ["is no shape"]),
        (["show", "BP009", "--layout", "vector", "--shape", "32x"], ["is no shape"]),
        (["show", "\udcff\udcfe"], ["there is no blueprint"]),
        (["approve", "\udcff\udcfe"], ["there is no blueprint"]),
        (["approve", "BP037", "--reason", "\udcff\udcfe"], ["reason", "cannot be kept"]),
        (["withdraw", "BP037", "--reason", "\udcff\udcfe"], ["reason", "cannot be kept"]),
        (["withdraw", "BP037", "--reason", "\x1b[2Jgone"], ["reason", "cannot be kept"]),
        (["show", "BP009", "--set", "depth=2", "--set", "depth=3"], ["depth", "twice"]),
        (["show", "BP009", "--set", "depth=99"], ["depth", "4"]),
        (["show", "BP009", "--set", "width=1"], ["width"]),
        (["compile"], ["--all-safe"]),
        (["compile", "BP009", "--all-safe"], ["both"]),
        (["compile", "BP999", "--no-members"], ["BP999"]),
        (["compile", "BP009", "--no-members", "--set", "depth=nan"], ["depth"]),
    ],
)
def test_bad_input_is_refused_by_name(esper: Esper, command: list[str], told: list[str]) -> None:
    """Goal: exit 2 and a word about what is wrong. Method: one mistake each."""
    done = esper("blueprints", *command)
    assert done.code == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in told), done.stderr
