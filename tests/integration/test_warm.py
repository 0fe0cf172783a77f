"""Commands that are forked from a warm process are the commands that a shell starts."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration import warm
from tests.integration.driver import Esper, eventually


@pytest.mark.parametrize(
    "words",
    [
        ["--version"],
        ["--help"],
        ["no-such-command"],
        ["train", "--epochs", "none"],
        ["status", "--json"],
        ["topics", "plan", "--json"],
    ],
)
def test_a_forked_command_says_what_a_started_one_says(tmp_path: Path, words: list[str]) -> None:
    """Goal: tests see the real command. Method: the same words both ways: exit code, stdout and stderr, to the byte."""
    esper = Esper(tmp_path / "home")
    forked = esper(*words)
    with esper.spawn(*words) as started:
        stdout, stderr = started.communicate(timeout=120)
    assert (forked.code, forked.stdout, forked.stderr) == (started.returncode, stdout, stderr)
    assert stdout + stderr


def test_commands_have_their_own_environment_at_the_same_time(tmp_path: Path) -> None:
    """Goal: nothing is shared. Method: many homes made at once; each command sees its own, and every key is another."""
    homes = [Esper(tmp_path / str(number)) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda esper: esper("init"), homes))
    assert [answer.code for answer in answers] == [0] * 6
    assert all(str(esper.home) in answer.stderr for esper, answer in zip(homes, answers, strict=True))
    assert len({(esper.home / "key").read_bytes() for esper in homes}) == 6


def test_a_command_that_takes_too_long_is_ended(esper: Esper) -> None:
    """Goal: a test never waits for ever. Method: a command that follows the log; it is sent SIGTERM, and is gone."""
    command = warm.start(["events", "tail", "runs"], esper._environment())
    with pytest.raises(TimeoutError):
        command.communicate(3.0)
    eventually(lambda: not Path(f"/proc/{command.pid}").exists(), what="the command is gone")


def test_a_killed_command_is_told_by_its_signal(esper: Esper) -> None:
    """Goal: exit codes as `subprocess` has them. Method: kill -9."""
    command = warm.start(["events", "tail", "runs"], esper._environment())
    os.kill(command.pid, signal.SIGKILL)
    assert command.communicate(30.0)[0] == -signal.SIGKILL
