"""What long work shows: on a terminal how far it is, elsewhere nothing; and rich is there only for who needs it."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from esper.cli._progress import progress
from tests.integration.driver import REPOSITORY


class Terminal:
    """A pseudo-terminal whose screen is read all the time: who writes to one that nobody reads has to wait."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w")
        self._seen: list[bytes] = []
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # The other end is closed.
            while part := os.read(self._master, 4096):
                self._seen.append(part)

    def screen(self) -> str:
        """Close the terminal and return all that was sent to it."""
        self.stream.close()
        self._reading.join()
        os.close(self._master)
        return b"".join(self._seen).decode()


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """Make stderr a terminal for a while."""
    shown = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", shown.stream)
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "100")
        yield shown


def test_a_terminal_shows_words_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: the last thing told is what is seen. Method: a bar with an end; words that look like markup stay words."""
    with terminal(monkeypatch) as shown, progress("starting", total=8) as show:
        show("epoch [bold]3[/bold]", done=3)
        show(advance=2)
    seen = shown.screen()
    assert "epoch [bold]3[/bold]" in seen
    assert "5/8" in seen


@pytest.mark.parametrize("spins", [True, False])
def test_without_an_end_there_is_nothing_to_count(monkeypatch: pytest.MonkeyPatch, spins: bool) -> None:
    """Goal: no made-up totals. Method: a spinner and a bar whose end is not known."""
    with terminal(monkeypatch) as shown, progress("reading the log", spins=spins) as show:
        show("12 records")
    seen = shown.screen()
    assert "12 records" in seen
    assert "/" not in seen


def test_elsewhere_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    """Goal: logs and pipes stay clean. Method: stderr is no terminal."""
    with progress("starting", total=8) as show:
        show("epoch 3", done=3)
    assert capsys.readouterr().err == ""


def test_lines_and_json_need_no_layout() -> None:
    """Goal: commands start fast. Method: a process that shows a version, and what it imported."""
    script = (
        "import sys; sys.argv = ['esper', '--version']\n"
        "import atexit; atexit.register(lambda: sys.stderr.write(str('rich' in sys.modules)))\n"
        "import esper.cli; esper.cli.main()"
    )
    shown = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("esper-grow ")
    assert shown.stderr == "False"
