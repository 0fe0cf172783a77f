"""Whatever a person gets wrong is answered with one clear line, the next step and the right exit code."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from esper.core.clock import SYSTEM_CLOCK
from tests.integration.driver import REPOSITORY, Answer, Esper


def assert_refused(answer: Answer, code: int, *words: str) -> None:
    """One error line with these words, the right code, nothing on stdout, no traceback."""
    assert answer.code == code, answer.stderr
    assert answer.stdout == ""
    assert "Traceback" not in answer.stderr
    for word in words:
        assert word in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--task", "imagenet"], ["imagenet", "mnist1d", "digits"]),
        (["train", "--host", "resnet"], ["resnet", "mlp"]),
        (["train", "--policy", "clever"], ["clever", "heuristic"]),
        (["train", "--task", "no.such.module:factory"], ["no.such.module"]),
        (["train", "--task", "json:nothing"], ["nothing"]),
        (["train", "--hyper", "batch_size"], ["batch_size", "NAME=NUMBER"]),
        (["train", "--hyper", "colour=3"], ["colour"]),
        (["train", "--hyper", "batch_size=0"], ["batch_size"]),
        (["train", "--hyper", "threads=1e9"], ["threads"]),
        (["train", "--device", "abacus"], ["abacus"]),
        (["train", "--slot", "nowhere"], ["nowhere", "hidden"]),
        (["train", "--policy-parameter", "colour=3"], ["colour"]),
        (["train", "--epochs", "0"], ["epochs"]),
        (["train", "--epochs", "4294967296"], ["epochs"]),
        (["train", "--seed", "18446744073709551616"], ["seed"]),
        (["run", "sauron"], ["sauron", "tamiyo"]),
        (["serve", "--only", "tamiyo=0"], ["tamiyo=0"]),
        (["blueprints", "show", "BP999"], ["BP999", "BP009"]),
        (["nonsense"], ["nonsense"]),
        (["archive"], ["archive"]),
    ],
)
def test_words_that_mean_nothing(serving: Esper, arguments: list[str], words: list[str]) -> None:
    """Goal: usage errors exit 2 and name the thing. Method: each wrong word once."""
    assert_refused(serving(*arguments), 2, *words)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["runs", "show", "run-nope"], 2, ["run-nope", "esper runs list"]),
        (["runs", "cancel", "run-nope"], 2, ["run-nope", "esper runs list"]),
        (["events", "cat", "no-such-topic"], 2, ["no-such-topic"]),
        (["dlq", "show", "runs", "0", "999999"], 2, ["999999"]),
        (["sql", "select * from nothing_here"], 2, ["nothing_here"]),
        (["sql", "drop table x"], 2, ["SELECT"]),
    ],
)
def test_things_that_are_not_there(serving: Esper, arguments: list[str], code: int, words: list[str]) -> None:
    """Goal: absent things are named. Method: ask for each."""
    assert_refused(serving(*arguments), code, *words)


def test_a_home_that_was_never_made(tmp_path: Path) -> None:
    """Goal: every command that needs a home says how to make one."""
    for command in (["status"], ["topics", "plan"], ["train"], ["sql", "select 1"], ["runs", "list"]):
        assert_refused(Esper(tmp_path / "none")(*command), 3, "esper init")
    assert not (tmp_path / "none").exists()


def test_a_broker_that_is_not_up(tmp_path: Path) -> None:
    """Goal: within ten seconds, exit 3 and the next step. Method: a home without `up`, and an unreachable cluster."""
    esper = Esper(tmp_path / "home")
    assert esper("init").code == 0
    assert_refused(esper("train"), 3, "esper up")
    esper.environment |= {"ESPER_KAFKA_BOOTSTRAP": "127.0.0.1:1", "ESPER_LEYLINE_SECRET": "s" * 32}
    esper.home = tmp_path / "remote"
    assert esper("init").code == 0
    begin = SYSTEM_CLOCK.monotonic()
    assert_refused(esper("topics", "plan"), 3, "127.0.0.1:1")
    # The command's own start, some two seconds on a loaded machine, comes on top of the ten.
    assert SYSTEM_CLOCK.monotonic() - begin < 15


def test_secrets_that_cannot_sign(serving: Esper, tmp_path: Path) -> None:
    """Goal: a short or foreign secret exits 3 and parks nothing. Method: both against a home with a log."""
    before = serving("dlq", "list", "--json").json
    for secret, word in (("short", "32"), ("f" * 40, "secret")):
        other = Esper(serving.home, {"ESPER_LEYLINE_SECRET": secret})
        assert_refused(other("train", "--epochs", "1"), 3, word)
    assert serving("dlq", "list", "--json").json == before


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """Goal: the port is named. Method: hold it, then `up`."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        answer = Esper(tmp_path / "home", {"ESPER_BROKER_PORT": str(port)})("up")
    assert_refused(answer, 3, str(port))


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    """Goal: the path is named and nothing is half-made. Method: a home below a file."""
    (tmp_path / "file").write_text("in the way")
    for command in ("init", "up"):
        answer = Esper(tmp_path / "file" / "home")(command)
        assert answer.code in (2, 3)
        assert str(tmp_path / "file") in answer.stderr
        assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(("name", "content"), [("home.json", "{not json"), ("home.json", '{"format": 99}')])
def test_settings_that_are_corrupt(tmp_path: Path, name: str, content: str) -> None:
    """Goal: a broken home file is named, never overwritten. Method: break it, then use the home."""
    esper = Esper(tmp_path / "home")
    assert esper("init").code == 0
    (esper.home / name).write_text(content)
    assert_refused(esper("status"), 2, name)
    assert (esper.home / name).read_text() == content


def test_a_malformed_environment_variable(tmp_path: Path) -> None:
    """Goal: the variable is named. Method: a wait that is no number."""
    esper = Esper(tmp_path / "home", {"ESPER_DECISION_WAIT_SECONDS": "soon"})
    assert_refused(esper("status"), 2, "ESPER_DECISION_WAIT_SECONDS")


def test_a_foreign_package_called_esper(tmp_path: Path) -> None:
    """Goal: the clash with the game library is named by the console script. Method: put one first on the path."""
    (tmp_path / "esper").mkdir()
    (tmp_path / "esper" / "__init__.py").write_text("class World: ...\n")
    script = Path(sys.executable).with_name("esper")
    answer = subprocess.run(
        [script, "status"], env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, cwd=tmp_path
    )
    assert answer.returncode == 3
    assert "pip uninstall esper" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_help_of_every_command_has_an_example() -> None:
    """Goal: help with examples. Method: walk the tree of commands."""
    import typer.main

    from esper.cli._app import app

    def walk(command: object, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], str]]:
        children = getattr(command, "commands", None)
        if children:
            return [found for name, child in children.items() for found in walk(child, (*path, name))]
        return [(path, getattr(command, "help", "") or "")]

    leaves = walk(typer.main.get_command(app), ("esper",))
    assert len(leaves) >= 20
    for path, text in leaves:
        assert f"Example: {' '.join(path)}" in text, path
    assert REPOSITORY.is_dir()
