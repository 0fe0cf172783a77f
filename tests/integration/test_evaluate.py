"""A whole evaluation on a real broker: ended midway, gone on with, judged from the log, and blocked without an arm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from esper.core.home import Home, member_lock
from esper.core.settings import Settings
from esper.oona import Fabric
from esper.simic.trials import Plan, TrialRun, load_plan, verdict
from esper.weatherlight import evaluation_runs
from tests.integration.driver import Esper, eventually, finish, kill

SEEDS = 3
PLAN = {
    "format": 1,
    "name": "small",
    "epochs": 6,
    "seeds": {"first": 40, "count": SEEDS},
    "cells": [
        {"task": "tests.tolaria.short:spirals", "host": "mlp:3"},
        {"task": "tests.tolaria.short:spirals", "host": "mlp:5", "split": "training"},
    ],
    "grown": "fixed",
    "arms": {
        "static": {},
        "static_equal_compute": {},
        "final_shape": {},
        "final_shape_equal_compute": {},
        "random": {},
        "fixed": {"parameters": {"germinate": 1, "graft": 2, "blend": 1}},
        "heuristic": {},
        # A policy that learned nothing, in the learned one's place.
        "learned": {"policy": "random"},
        "pbt": {"generations": 2},
        "search": {"widths": [2, 8], "rungs": 2},
    },
    "bounds": {"resamples": 1000},
}
#: All that is wrong with so small a plan.
TOO_SMALL = {f"the plan has {SEEDS} seeds, a claim takes 20", "the plan has 1 held-out cells, a claim takes 4"}


def _runs(esper: Esper, plan: Plan) -> list[TrialRun]:
    settings = Settings(home=esper.home)
    with Fabric.open(settings, member="test") as fabric:
        return evaluation_runs(fabric, plan)


@pytest.mark.timeout(1200)
def test_an_evaluation_from_its_plan_to_its_verdict(esper: Esper, tmp_path: Path) -> None:
    """Goal: issue 8, item 9, in the small. Method: kill an evaluation midway, call it again, and once more; read the
    log with what judges, whole and with each arm's runs left out; compute runs of every kind again."""
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAN), encoding="utf-8")
    plan = load_plan(path)
    words = ("evaluate", str(path), "--out", str(tmp_path / "report"))

    begun = esper.spawn(*words)
    eventually(lambda: esper.events("runs"), what="the first stack is trained")
    kill(begun.pid)
    finish(begun)

    held = member_lock(Home.open(Settings(home=esper.home)), f"evaluation-{plan.digest[:16]}")
    with held:
        assert esper(*words).code == 3, "two evaluations of one plan do not run beside each other"

    whole = esper(*words, timeout=900)
    assert whole.code == 1, whole.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["problems"] == {"count": 0, "listed": []}
    assert set(report["verdict"]["reasons"]) == TOO_SMALL
    assert report["verdict"]["word"] == "BLOCKED"
    assert report["runs"]["failed"] == report["runs"]["open"] == 0
    assert report["runs"]["lost"] >= 1, "what was ended midway is run again"
    assert len(report["results"]) == len(PLAN["arms"]) * 2 * SEEDS  # type: ignore[arg-type]  # a mapping
    for name in ("report.md", "curves_epoch.png", "curves_multiply_adds.svg"):
        assert (tmp_path / "report" / name).stat().st_size > 1000

    _judge(plan, _runs(esper, plan))
    _pairs_began_alike(plan, _runs(esper, plan))

    again = esper(*words)
    assert again.code == 1
    assert "runs in" not in again.stderr, "what the log holds is not run again"
    assert json.loads((tmp_path / "report" / "report.json").read_text())["results"] == report["results"]

    past = tmp_path / "earlier.json"
    past.write_text(json.dumps(report), encoding="utf-8")
    earlier = esper("evaluate", str(path), "--report-only", "--at", str(past), "--out", str(tmp_path / "again"))
    assert earlier.code == 1
    assert json.loads((tmp_path / "again" / "report.json").read_text()) == report

    judged = {(each["arm"], each["seed"]): each["run_id"] for each in report["results"]}
    forks = [run.run_id for run in _runs(esper, plan) if run.request.forked_from and run.status == "finished"]
    for run_id in (judged["final_shape", 40], judged["search", 40], judged["static_equal_compute", 41], forks[0]):
        assert esper("runs", "verify", run_id, "--json").json["equal"], run_id


def _judge(plan: Plan, runs: list[TrialRun]) -> None:
    """Nothing speaks against the whole log but the plan's size; without an arm's runs its absence does."""
    assert set(verdict(plan, runs).reasons) == TOO_SMALL
    for arm in plan.arms.names():
        found = verdict(plan, [run for run in runs if run.place.arm != arm])
        assert found.word == "BLOCKED"
        missing = "no trial" if arm == "search" else "there is no run"
        assert any(reason.startswith(f"{arm}: ") and missing in reason for reason in found.reasons), found.reasons


def _pairs_began_alike(plan: Plan, runs: list[TrialRun]) -> None:
    """Arms of a pair begin with the same weights and see the same batches in the same order: until one of them acts,
    their losses are equal, number by number."""
    whole = {"static", "random", "fixed", "heuristic", "learned"}
    for cell in plan.cells:
        for seed in plan.seeds:
            alike = [
                run
                for run in runs
                if run.status == "finished"
                and (run.place.arm in whole)
                and (run.place.host, run.place.seed) == (cell.host, seed)
            ]
            assert len(alike) == len(whole)
            assert len({run.initial_digest for run in alike}) == 1
            assert len({run.curve[0].train_loss for run in alike}) == 1
            assert len({run.curve[-1].val_loss for run in alike}) > 1, "and then they part"


def test_arms_that_cannot_be_run_are_said_and_block(esper: Esper, tmp_path: Path) -> None:
    """A policy that is not there is said at once; the other arms run, and the verdict is blocked by it."""
    small = PLAN | {"cells": [PLAN["cells"][0]], "seeds": {"first": 1, "count": 1}}  # type: ignore[index]  # a list
    small["arms"] = {"static": {}, "fixed": PLAN["arms"]["fixed"], "learned": {"policy": "nobody"}}  # type: ignore[index]  # a mapping
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(small), encoding="utf-8")
    answer = esper("evaluate", str(path), "--out", str(tmp_path / "report"), "--json", timeout=300)
    assert answer.code == 1
    assert "arm learned cannot be run: there is no policy 'nobody'" in answer.stderr
    report = json.loads(answer.stdout)
    assert {each["arm"] for each in report["results"]} == {"static", "fixed"}
    assert any(reason.startswith("learned: ") for reason in report["verdict"]["reasons"])
    assert esper("evaluate", str(path), "--only", "pbt").code == 2
    assert esper("evaluate", str(path), "--at", str(tmp_path / "report" / "report.json")).code == 2
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(small | {"epochs": 5}), encoding="utf-8")
    past = str(tmp_path / "report" / "report.json")
    wrong = esper("evaluate", str(other), "--report-only", "--at", past, "--out", str(tmp_path))
    assert wrong.code == 2
    assert "another plan's" in wrong.stderr
