"""A home whose broker asks for logins: the whole loop runs on it, by commands alone and without settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from esper.core.clock import SYSTEM_CLOCK
from tests.integration.driver import Esper, eventually

#: One start of Python and of the libraries on a loaded machine; the patience for a broker that is away is set longer.
_AT_ONCE_SECONDS = 60.0
TRAIN = ("--task", "digits", "--policy", "noop", "--epochs", "2", "--json")


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Esper]:
    """A home with a secure broker, no member running."""
    esper = Esper(tmp_path / "home", {"ESPER_CONNECT_SECONDS": "120"})
    up = esper("up", "--secure", "--json")
    try:
        assert up.json["secure"] is True
        yield esper
    finally:
        esper("down", timeout=60)


def passwords(esper: Esper) -> list[str]:
    """Return every password of the home, the broker's own too."""
    files = [path.read_text().strip() for path in (esper.home / "principals").iterdir()]
    return [*files, json.loads((esper.home / "broker" / "internal.json").read_text())["password"]]


def told(secrets: list[str], *texts: str) -> list[str]:
    """Return the texts in which a password stands."""
    return [text for text in texts if any(secret in text for secret in secrets)]


def records(esper: Esper) -> dict[str, int]:
    """Return how many records each topic holds."""
    return {row["name"]: row["records"] for row in esper("topics", "describe", "--json").json}


def test_the_whole_loop_runs_and_tells_no_password(secure: Esper) -> None:
    """Goal: members authenticate by themselves and nothing tells how. Method: train, watch processes, search all."""
    secrets = passwords(secure)
    process = secure.spawn("train", *TRAIN)
    eventually(lambda: len(list((secure.home / "members").glob("*.json"))) >= 5 or None, what="members run")
    for other in psutil.process_iter(["cmdline"]):
        assert not told(secrets, " ".join(other.info["cmdline"] or [])), other.pid
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    document = json.loads(stdout)
    assert (document["status"], document["epochs"]) == ("finished", 2)
    runs = secure("runs", "show", document["run_id"], "--json")
    assert [bool(epoch["outcome"]) for epoch in runs.json["epochs"]] == [True, True]
    status, doctor = secure("status", "--json"), secure("doctor", "--json")
    assert all(check["ok"] for check in doctor.json)
    logs = [path.read_text(errors="replace") for path in (secure.home / "logs").iterdir()]
    assert len(logs) >= 8
    answers = [text for answer in (status, runs, doctor) for text in (answer.stdout, answer.stderr)]
    assert not told(secrets, stdout, stderr, *answers, *logs)
    denials = [line for line in (secure.home / "logs" / "broker.log").read_text().splitlines() if "is Denied" in line]
    assert denials == [], "a member asked for something that the topic files do not give it"


def test_a_wrong_password_ends_a_command_at_once(secure: Esper) -> None:
    """Goal: exit 3, the cause and the next step, long before the patience for a broker ends. Method: alter the file."""
    path = secure.home / "principals" / "cli"
    wrong = "0" * 64
    path.write_text(wrong)
    began = SYSTEM_CLOCK.monotonic()
    answer = secure("dlq", "list")
    assert SYSTEM_CLOCK.monotonic() - began < _AT_ONCE_SECONDS
    assert answer.code == 3
    assert "uthentication failed" in answer.stderr
    assert "esper up" in answer.stderr
    assert not told([*passwords(secure), wrong], answer.stdout, answer.stderr)
    assert secure("up", "--json").json["topics_changed"] == 0
    assert secure("dlq", "list", "--json").json == []


def test_a_home_goes_from_plain_to_secure_and_back_with_its_data(tmp_path: Path) -> None:
    """Goal: the log stays; a mode in use is not changed. Method: train, switch, count; try while it runs."""
    esper = Esper(tmp_path / "home")
    try:
        assert esper("up", "--json").json["secure"] is False
        assert esper("train", *TRAIN).json["status"] == "finished"
        before = records(esper)
        assert before["runs"] > 0
        refused = esper("up", "--secure")
        assert refused.code == 3
        assert "run `esper down`, then `esper up --secure`" in refused.stderr
        assert records(esper) == before
        assert esper("down").code == 0
        assert esper("up", "--secure", "--json").json == {
            "bootstrap": esper("status", "--json").json["bootstrap"], "topics_changed": 0, "secure": True,
        }  # fmt: skip
        assert records(esper) == before
        assert len(esper("runs", "list", "--json").json) == 1
        assert esper("down").code == 0
        assert esper("up", "--json").json["secure"] is True, "the home keeps its mode"
        assert "then `esper up --plain`" in esper("up", "--plain").stderr
        assert esper("down").code == 0
        assert esper("up", "--plain", "--json").json["secure"] is False
        assert records(esper)["runs"] == before["runs"]
        assert len(esper("runs", "list", "--json").json) == 1
    finally:
        esper("down", timeout=60)
