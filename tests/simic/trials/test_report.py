"""The report: figures by direct computation, the page and the curves made from its document alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from esper.simic.trials import draw_curves, markdown, report
from tests.simic.trials.worlds import GOOD, plan, stated, world

PLAN = plan(
    cells=[
        {"task": "spirals", "host": "mlp:3"},
        {"task": "spirals", "host": "mlp:4"},
        {"task": "spirals", "host": "mlp:5", "split": "training"},
    ],
    seeds={"first": 0, "count": 5},
    cost={"multiply_adds": 0.01},
)
RUNS = world(PLAN, stated(dict(GOOD) | {"search": 0.8}))
DOCUMENT = report(PLAN, RUNS, {"runs": {"0": 12}})


def test_figures_are_those_of_the_runs() -> None:
    """Means of arms, differences, costs and scores equal what is worked out from the runs by hand."""
    held_out = {"mlp:3", "mlp:4"}
    accuracy = {
        (run.place.arm, run.place.host, run.place.seed): run.end.accuracy
        for run in RUNS
        if run.place.arm in {"static", "learned"}
    }
    (row,) = [row for row in DOCUMENT["arms"] if (row["arm"], row["split"]) == ("learned", "held_out")]
    values = [value for (arm, host, _), value in accuracy.items() if arm == "learned" and host in held_out]
    assert row["accuracy"]["mean"]["value"] == pytest.approx(np.mean(values))
    assert row["runs"] == 10
    # Three times the static host's multiply-adds.
    assert row["score"]["mean"]["value"] == pytest.approx(np.mean(values) - 0.01 * np.log2(3.0))
    (compared,) = [
        each
        for each in DOCUMENT["comparisons"]
        if (each["rival"], each["metric"], each["split"]) == ("static", "accuracy", "held_out")
    ]
    differences = [
        value - accuracy["static", host, seed]
        for (arm, host, seed), value in accuracy.items()
        if arm == "learned" and host in held_out
    ]
    assert compared["mean"]["value"] == pytest.approx(np.mean(differences))
    assert compared["pairs"] == 10


def test_losing_cells_are_listed_worst_first() -> None:
    """Each cell in which a rival does better on average stands in the list, and no other."""
    rivals = {row["rival"] for row in DOCUMENT["losing"]}
    assert rivals == {"search"}
    assert len(DOCUMENT["losing"]) == 3
    means = [row["mean"]["value"] for row in DOCUMENT["losing"]]
    assert means == sorted(means)
    assert all(mean < 0.0 for mean in means)


def test_the_document_is_json_and_the_page_says_what_it_says() -> None:
    """The page has verdict, every arm, every cell and the losing cases; it is made from the JSON as it is read back."""
    read = json.loads(json.dumps(DOCUMENT))
    page = markdown(read, figures=["curves_epoch.svg"])
    assert page == markdown(DOCUMENT, figures=["curves_epoch.svg"])
    assert f"**Verdict: {DOCUMENT['verdict']['word']}**" in page
    assert all(f"| {arm} |" in page for arm in GOOD)
    assert "## Where it loses" in page
    assert "spirals/mlp:5 | training" in page
    assert "![curves_epoch.svg](curves_epoch.svg)" in page


def test_curves_are_drawn_alike_from_the_document(tmp_path: Path) -> None:
    """Two pictures in two formats; the SVG of the same document is the same, byte for byte."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = (draw_curves(DOCUMENT, tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in first] == [
        "curves_epoch.png",
        "curves_epoch.svg",
        "curves_multiply_adds.png",
        "curves_multiply_adds.svg",
    ]
    for one, other in zip(first, second, strict=True):
        if one.suffix == ".svg":
            assert one.read_bytes() == other.read_bytes()
            assert b"<svg" in one.read_bytes()
    assert first[0].read_bytes().startswith(b"\x89PNG")


def test_an_arm_that_spent_more_than_its_judged_run_ends_its_curve_there() -> None:
    """A search's curve ends at all that the search spent, not at what its best trial did."""
    spent = {row["arm"]: row["multiply_adds"] for row in DOCUMENT["cells"] if row["host"] == "mlp:3"}
    for curve in DOCUMENT["curves"]:
        if curve["host"] == "mlp:3":
            assert curve["points"][-1]["multiply_adds"] == pytest.approx(spent[curve["arm"]])


def test_a_report_without_results_is_a_report(tmp_path: Path) -> None:
    """With nothing in the log the verdict is BLOCKED, and page and document are made all the same."""
    empty = report(PLAN, [], {})
    assert empty["verdict"]["word"] == "BLOCKED"
    assert "**Verdict: BLOCKED**" in markdown(empty)
    assert draw_curves(empty, tmp_path) == []
