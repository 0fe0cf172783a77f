"""The search of the width: what it proposes, what it spends, and what is taken to be its result."""

from __future__ import annotations

import importlib
import random
from typing import Any

import pytest

from esper.core.errors import UsageError
from esper.simic.trials import Place, check_search, gather
from esper.simic.trials._plan import Pair, SearchArm
from esper.simic.trials._search import affordable_width, rung_epochs
from tests.simic.trials.worlds import plan, world

CELLS = [{"task": "spirals", "host": "mlp:4"}]
SEARCHED = plan(
    seeds={"first": 0, "count": 6}, cells=CELLS, epochs=40, arms={"static": {}, "learned": {}, "search": {}}
)


def _accuracy(place: Place) -> float:
    return random.Random(str(place)).random()  # noqa: S311 - seeded data


def test_rungs_are_shares_of_the_epochs() -> None:
    """Each is the next one's third, the last is the whole."""
    assert rung_epochs(SearchArm(), 40) == [4, 13, 40]
    assert rung_epochs(SearchArm(rungs=1), 40) == [40]
    assert rung_epochs(SearchArm(rungs=3), 2) == [1, 2]


def test_nothing_is_proposed_that_cannot_be_trained_once() -> None:
    """The widest host costs, over all its rungs, what the grown run did; the plan's own bounds hold all the same."""
    pair = Pair(plan(cells=CELLS).cells[0], 0)
    arm = SearchArm(widths=(2, 64))
    assert affordable_width(arm, pair, [4, 13, 40], budget=57 * 100 * 5, epoch=100.0) == 20
    assert affordable_width(arm, pair, [4, 13, 40], budget=10**9, epoch=100.0) == 64
    assert affordable_width(arm, pair, [4, 13, 40], budget=1, epoch=100.0) == 2


def test_a_search_spends_what_growing_did_and_little_more() -> None:
    """At least the budget, at most the slack beyond it and one first rung; the best full trial is judged."""
    runs = world(SEARCHED, _accuracy)
    evidence = gather(SEARCHED, runs)
    assert evidence.problems == ()
    for seed in SEARCHED.seeds:
        grown = evidence.results["spirals/mlp:4", "learned", seed]
        found = evidence.results["spirals/mlp:4", "search", seed]
        assert grown.multiply_adds <= found.multiply_adds <= 1.2 * grown.multiply_adds
        full = [run for run in found.runs if run.end.epochs == 40]
        assert found.run in full
        assert found.run.end.validation_accuracy == max(run.end.validation_accuracy for run in full)
        assert len(full) < len(found.runs), "some trials end early"


def test_the_judge_needs_no_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Optuna the log is judged all the same; only searching is refused, with what to install."""
    runs = world(SEARCHED, _accuracy)
    real = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name == "optuna":
            raise ImportError("No module named 'optuna'")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    assert gather(SEARCHED, runs).problems == ()
    with pytest.raises(UsageError, match=r"esper-grow\[evaluate\]"):
        check_search(SEARCHED)


def test_a_host_without_a_width_cannot_be_searched() -> None:
    """Said before anything is run."""
    with pytest.raises(UsageError, match="no width to search"):
        check_search(plan(cells=[{"task": "spirals", "host": "mlp"}]))
    check_search(plan(cells=[{"task": "spirals", "host": "mlp"}], arms={"static": {}, "learned": {}}))
