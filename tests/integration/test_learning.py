"""From real runs to a version that decides real runs, by the command line alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.integration.driver import Esper
from tests.integration.test_docs import blocks


def test_a_version_is_learned_judged_and_decides(esper: Esper, tmp_path: Path) -> None:
    """Goal: docs/policies.md keeps its word. Method: run its block (64 stacked runs of a real task); the version is
    made again bit for bit, fails its gates on so few runs, cannot be promoted, decides after a person's word."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"ESPER_HOME": str(esper.home), "PATH": path, "COLUMNS": "400"}
    script = "\n".join(["set -euo pipefail", *blocks("policies.md", "sh")])
    shown = subprocess.run(
        ["bash", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    assert shown.returncode == 0, shown.stderr
    shipped, row = esper("policy", "list", "--json").json
    assert shipped["status"] == "active", "what comes with the package decides in a new home"
    version = row["version"]
    assert version in shown.stdout
    assert (row["status"], row["algorithm"]) == ("candidate", "ppo")
    assert 32 <= row["episodes"] < 64, "a quarter of the runs is left for judging"
    assert esper("policy", "train", "--again", version, "--json").json["equal"]

    judged = esper("policy", "validate", version, "--json")
    assert judged.code == 1
    assert '"passed": false' in judged.stdout
    refused = esper("policy", "promote", version)
    assert (refused.code, "esper policy validate" in refused.stderr) == (1, True)
    unreasoned = esper("policy", "promote", version, "--override")
    assert unreasoned.code == 2
    assert (
        esper("policy", "promote", version, "--override", "--reason", "to be seen", "--json").json["version"] == version
    )
    train = ("train", "--task", "spirals", "--host", "mlp", "--epochs", "3", "--seed", "1", "--json")
    run_id = esper(*train, "--policy", "learned").json["run_id"]
    decisions = [event["payload"] for event in esper.events("decisions", run_id=run_id)]
    assert {(one["policy"], one["policy_version"]) for one in decisions} == {("learned", version)}
    assert all("value_estimate" in one for one in decisions)
    assert esper("policy", "rollback", "--reason", "seen", "--json").json["restored"] == shipped["version"]
    assert [word["event"] for word in esper("policy", "show", version, "--json").json["history"]] == [
        "rejected",
        "promoted",
        "rolled_back",
    ]
