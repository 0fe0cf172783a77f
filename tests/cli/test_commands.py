"""Commands that only ask: their JSON is a contract, their tables are for people."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import RunningBroker
from tests.integration.driver import REPOSITORY, Esper


@pytest.fixture(scope="module")
def esper(local_broker: RunningBroker) -> Esper:
    """The command line at the session's broker."""
    return Esper(local_broker.home.root)


def test_topics_plan_is_empty_once_applied(esper: Esper) -> None:
    """Goal: apply is idempotent. Method: plan and apply on a cluster that has everything."""
    assert esper("topics", "plan", "--json").json == {"changes": []}
    assert esper("topics", "apply", "--json").json == {"changes": []}
    assert "no changes" in esper("topics", "plan").stderr


def test_topics_describe_lists_every_file(esper: Esper) -> None:
    """Goal: the files and the cluster in one list. Method: compare with the folder."""
    rows = esper("topics", "describe", "--json").json
    assert {row["name"] for row in rows} == {path.stem for path in (REPOSITORY / "topics").glob("*.yaml")}
    assert all(row["present"] and row["records"] >= 0 for row in rows)
    assert "run-requests" in esper("topics", "describe").stdout


def test_status_names_broker_and_members(esper: Esper, local_broker: RunningBroker) -> None:
    """Goal: the JSON shape of status. Method: no member of this home runs for sure, so only the shape."""
    document = esper("status", "--json").json
    assert set(document) == {"bootstrap", "members", "nissa_url"}
    assert document["bootstrap"] == local_broker.bootstrap
    assert local_broker.bootstrap in esper("status").stdout


def test_doctor_finds_nothing_wrong_here(esper: Esper) -> None:
    """Goal: doctor passes on a system that works, and fails with cures on none. Method: both."""
    checks = esper("doctor", "--json").json
    assert {check["check"] for check in checks} >= {"python", "package name", "broker jars", "home and key", "broker"}
    assert all(check["ok"] for check in checks)
    nowhere = Esper(esper.home / "nowhere")("doctor")
    assert nowhere.code == 3
    assert "esper init" in nowhere.stdout


def test_init_is_idempotent(tmp_path: Path) -> None:
    """Goal: `init` never replaces a key. Method: twice, same fingerprint."""
    esper = Esper(tmp_path / "home")
    first = esper("init", "--json").json
    assert esper("init", "--json").json == first
    assert (esper.home / "key").stat().st_mode & 0o777 == 0o600
    assert "esper up" in esper("init").stderr


def test_version_and_bare_call() -> None:
    """Goal: the two things people type first. Method: run them through the console script."""
    script = Path(sys.executable).with_name("esper")
    version = subprocess.run([script, "--version"], capture_output=True, text=True)
    assert version.stdout.startswith("esper-grow ")
    bare = subprocess.run([script], capture_output=True, text=True)
    assert "Begin: esper init" in bare.stdout + bare.stderr


def test_empty_lists_are_lists(esper: Esper) -> None:
    """Goal: nothing is [] and not an error. Method: dead letters of a run that does not exist."""
    assert isinstance(esper("dlq", "list", "--json").json, list)
    assert esper("events", "cat", "runs", "--key", "run-that-never-was").lines == []
