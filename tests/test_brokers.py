"""The choice of the tests' Kafka: what is asked for, what is at hand, and what the header says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from esper.core.home import Home
from esper.core.settings import load_settings
from tests.brokers import VARIABLE, Choice, choose, environment, lacking
from tests.integration.driver import REPOSITORY


def everything_there(_: str) -> str | None:
    """Lack nothing."""
    return None


@pytest.mark.parametrize("image", [None, ""])
def test_without_an_image_nothing_is_looked_for(image: str | None) -> None:
    """Goal: the local broker is the rule. Method: choose with a look-up that must not be made."""
    asked: list[str] = []
    choice = choose(image, lambda name: asked.append(name))  # type: ignore[func-returns-value]  # None is "lacks nothing"
    assert (choice.image, asked) == (None, [])
    assert str(choice) == f"kafka: local broker ({VARIABLE} names no image)"


def test_an_image_at_hand_is_used_and_named() -> None:
    """Goal: what was asked for is what serves. Method: choose with nothing lacking."""
    assert str(choose("apache/kafka:4.1.1", everything_there)) == "kafka: container of apache/kafka:4.1.1"


def test_what_is_lacking_is_said() -> None:
    """Goal: nobody believes that a container was tested when none was. Method: choose with a reason."""
    choice = choose("some/kafka", lambda _: "no Docker engine answers")
    assert choice == Choice(None, f"{VARIABLE} names some/kafka, but no Docker engine answers")


def test_this_machine_is_looked_at() -> None:
    """Goal: the look-up itself works on a real machine. Method: an image that no engine can have."""
    found = lacking("esper-test.invalid/no-such-image:0")
    if importlib.util.find_spec("testcontainers") is None:
        assert found == "testcontainers is not installed"
    else:
        assert found in ("no Docker engine answers", "the Docker engine does not have it")


def test_a_container_gets_the_local_brokers_settings(tmp_path: Path) -> None:
    """Goal: both brokers behave alike. Method: the variables of the official image for a new home."""
    home = Home.create(load_settings(_env_file=None, home=tmp_path / "home"))
    variables = environment(home, 29_092)
    assert variables["KAFKA_ADVERTISED_LISTENERS"] == "PLAINTEXT://127.0.0.1:29092"
    assert variables["KAFKA_LISTENERS"].startswith("PLAINTEXT://0.0.0.0:29092,"), "the broker calls itself there, too"
    assert variables["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    assert variables["KAFKA_CONTROLLER_QUORUM_VOTERS"] == "1@127.0.0.1:9093"
    assert len(variables["CLUSTER_ID"]) == 22
    assert all(name.replace("_", "").isalnum() and value for name, value in variables.items())


def test_the_header_says_which() -> None:
    """Goal: every test run tells its Kafka. Method: collect one test in a pytest of its own, with an image set."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:randomly", "tests/test_brokers.py"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=_with_image(), timeout=120)
    line = next(line for line in run.stdout.splitlines() if line.startswith("kafka: "))
    assert line == str(choose("esper-test.invalid/no-such-image:0", lacking))


def _with_image() -> dict[str, str]:
    return {**os.environ, VARIABLE: "esper-test.invalid/no-such-image:0"}
