"""Drives the real command line the way a person does: processes, arguments, exit codes, JSON."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.home import Home, MemberInfo, live_members
from esper.core.settings import load_settings
from tests.integration import warm

T = TypeVar("T")
REPOSITORY = warm.REPOSITORY
#: Fast machines need a twentieth of it; a loaded one with two cores has been seen to need half.
PATIENCE_SECONDS = 240.0
_POLL_SECONDS = 0.05


def eventually(probe: Callable[[], T | None], *, what: str, seconds: float = PATIENCE_SECONDS) -> T:
    """Return the first true answer of `probe`; fail when none comes in time."""
    deadline = Deadline(seconds)
    while True:
        answer = probe()
        if answer:
            return answer
        assert not deadline.expired, f"not within {seconds:.0f} s: {what}"
        SYSTEM_CLOCK.sleep(_POLL_SECONDS)


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The JSON document on stdout."""
        assert self.code == 0, f"exit code {self.code}: {self.stderr}"
        return json.loads(self.stdout)

    @property
    def lines(self) -> list[Any]:
        """One JSON document for each line of stdout."""
        assert self.code == 0, f"exit code {self.code}: {self.stderr}"
        return [json.loads(line) for line in self.stdout.splitlines()]


@dataclass
class Esper:
    """The command line at one home."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    def _environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("ESPER_") or k == "ESPER_REQUIRE_REAL"}
        return clean | {"ESPER_HOME": str(self.home), "NO_COLOR": "1", "COLUMNS": "200"} | self.environment

    def spawn(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command and leave it running."""
        return subprocess.Popen(
            [sys.executable, "-m", "esper.cli", *arguments],
            env=self._environment(),
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, timeout: float = 300.0) -> Answer:
        """Run a command to its end; forked where its environment has nothing that an interpreter reads first."""
        if all(name.startswith("ESPER_") for name in self.environment):
            return self._forked(*arguments, timeout=timeout)
        process = self.spawn(*arguments)
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.terminate()
            stdout, stderr = process.communicate()
            raise AssertionError(f"{arguments} took longer than {timeout} s: {stderr}") from None
        return Answer(process.returncode, stdout, stderr)

    def _forked(self, *arguments: str, timeout: float) -> Answer:
        command = warm.start(arguments, self._environment())
        try:
            return Answer(*command.communicate(timeout))
        except TimeoutError:
            raise AssertionError(f"{arguments} took longer than {timeout} s") from None

    @contextmanager
    def serving(self, *only: str) -> Iterator[subprocess.Popen[str]]:
        """Keep members running; those named, or all."""
        process = self.spawn("serve", *(["--only", ",".join(only)] if only else []))
        try:
            wanted = len(only) or 7
            eventually(lambda: self._ready(process, wanted), what=f"{wanted} members run")
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()

    def wait_for_members(self, wanted: int = 7) -> None:
        """Wait until so many members run: one that still starts gives up sooner than one that runs."""
        eventually(
            lambda: sum(member.state == "running" for member in self._members()) >= wanted, what=f"{wanted} members run"
        )

    def _ready(self, process: subprocess.Popen[str], wanted: int) -> bool:
        if process.poll() is not None:
            raise AssertionError(f"serve ended with {process.returncode}: {process.communicate()[1]}")
        return sum(member.state == "running" for member in self._members()) >= wanted

    def _members(self) -> list[MemberInfo]:
        """Look without a command: starting one each time would take the cores from the members that start."""
        return live_members(Home.open(load_settings(_env_file=None, home=self.home)))

    def member_pid(self, name: str) -> int:
        """Return the process id of a member that lives."""
        return {member.name: member.pid for member in self._members()}[name]

    def events(self, topic: str, *, run_id: str | None = None) -> list[Any]:
        """Return the events of a topic, all or of one run."""
        return self("events", "cat", topic, *(["--key", run_id] if run_id else [])).lines


def finish(process: subprocess.Popen[str], *, timeout: float = 300.0) -> Answer:
    """Wait for a spawned command and return what it left behind."""
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        stdout, stderr = process.communicate()
        raise AssertionError(f"no end within {timeout} s: {stderr}") from None
    return Answer(process.returncode, stdout, stderr)


@contextmanager
def busy_machine() -> Iterator[None]:
    """Load every core with other processes for a while."""
    script = "while True: sum(range(10000))"
    loads = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(os.cpu_count() or 2)]
    try:
        yield
    finally:
        for load in loads:
            load.kill()
            load.wait()


def kill(pid: int) -> None:
    """Send SIGKILL; a process that is gone already is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
