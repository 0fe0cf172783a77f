"""Plans: what is refused, what their digest depends on, and how runs name their places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from esper.core.errors import UsageError
from esper.simic.trials import Place, load_plan, pairs_of, place_of, plan_of
from tests.simic.trials.worlds import content, plan


def test_the_digest_is_of_what_a_plan_says(tmp_path: Path) -> None:
    """Order, layout and what is left to its default do not count; every word that says something does."""
    written = tmp_path / "plan.yaml"
    written.write_text("# a comment\n" + yaml.safe_dump(content(), sort_keys=True), encoding="utf-8")
    stated = load_plan(written)
    assert stated.digest == plan().digest == plan(device="cpu").digest
    others = [
        plan(epochs=9),
        plan(seeds={"first": 1, "count": 20}),
        plan(grown="fixed"),
        plan(arms=content()["arms"] | {"fixed": {"parameters": {"germinate": 3}}}),
        plan(cost={"parameters": 0.001}),
        plan(bounds={"resamples": 2000}),
    ]
    assert len({stated.digest, *(other.digest for other in others)}) == 7


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 2}, "format"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": 2.5}, "epochs"),
        ({"unknown": 1}, "unknown"),
        ({"cells": []}, "cells"),
        ({"cells": [{"task": "a b", "host": "mlp"}]}, "cells.0.task"),
        ({"cells": [{"task": "spirals", "host": "mlp:3"}] * 2}, "twice"),
        ({"cells": [{"task": "spirals", "host": "mlp", "split": "seen"}]}, "split"),
        ({"arms": {"heuristic": {}, "learned": {}}}, "static"),
        ({"arms": {"static": {}, "heuristic": {}}}, "learned, the grown arm"),
        ({"arms": {"static": {"policy": "noop"}, "learned": {}}}, "arms.static"),
        ({"arms": {"static": {}, "learned": {}, "search": {"widths": [9, 3]}}}, "smaller first"),
        ({"bounds": {"seeds_min": 5}}, "bounds.seeds_min"),
        ({"bounds": {"improvement_min": 0.5}}, "bounds.improvement_min"),
        ({"bounds": {"level": 0.2}}, "bounds.level"),
        ({"claims": {"policy": {"superior_to": ["static"], "margin": 0.2}}}, "margin"),
    ],
)
def test_what_is_no_plan_is_refused(changes: dict[str, Any], says: str) -> None:
    """The first thing that is wrong is named; bounds may be stricter than the shipped ones, never looser."""
    with pytest.raises(UsageError, match=says.replace(".", r"\.")):
        plan_of(content(**changes))


@pytest.mark.parametrize("text", ["", "[", "- a", "\0"])
def test_what_is_no_file_of_a_plan_is_refused(tmp_path: Path, text: str) -> None:
    """A file that is missing, no YAML, or no mapping is a usage error."""
    path = tmp_path / "plan.yaml"
    with pytest.raises(UsageError):
        load_plan(path)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError):
        load_plan(path)


def test_pairs_are_cells_times_seeds() -> None:
    """Each cell with each seed, once."""
    pairs = pairs_of(plan())
    assert len(pairs) == len(set(pairs)) == 80


def test_a_label_is_read_back() -> None:
    """A run's experiment names plan, cell, arm and part; that of another plan, or anything else, names no place."""
    place = Place("package.module:factory", "mlp:8", 7, "pbt", "g1m3")
    digest = plan().digest
    assert place_of(place.label(digest), 7, digest) == place
    for other in ("", "evaluation/", place.label("0" * 64), place.label(digest) + "/x", f"x{place.label(digest)}"):
        assert place_of(other, 7, digest) is None
