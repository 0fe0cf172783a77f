"""Runs members as child processes: starts them, restarts those that die, and drains them at the end."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from esper.core.clock import SYSTEM_CLOCK, Clock, Deadline
from esper.core.errors import NotReadyError, OperationFailed
from esper.core.home import Home, live_members
from esper.core.rng import jitter
from esper.weatherlight._members import Member

_log = logging.getLogger("esper.weatherlight")

#: Waits between restarts double from the first to the last; the predecessor's figures.
_BACKOFF_SECONDS_FIRST = 0.5
_BACKOFF_SECONDS_MAX = 30.0
#: More deaths than this inside the window open the breaker: a member that cannot live is not tried for ever.
_RESTARTS_MAX = 5
_RESTART_WINDOW_SECONDS = 120.0
#: A trainer may be inside one optimiser step or one held-out pass when it is told to stop.
_DRAIN_SECONDS = 15.0
_POLL_SECONDS = 0.1
#: How often it is looked whether a wanted subsystem, or a member that another process was, has nobody any more.
_MISSING_SECONDS = 2.0
#: Exit codes that a restart does not cure: usage, not ready, integrity.
_FINAL_EXIT_CODES = frozenset({2, 3, 4})


@dataclass
class _Child:
    member: Member
    process: subprocess.Popen[bytes] | None = None
    deaths: list[float] = field(default_factory=list)
    start_at: float = 0.0


def backoff_seconds(deaths: int) -> float:
    """Return the longest wait before restart number `deaths` (from 1), without its jitter."""
    return min(_BACKOFF_SECONDS_MAX, _BACKOFF_SECONDS_FIRST * 2.0 ** (deaths - 1))


def recent(deaths: Iterable[float], now: float) -> list[float]:
    """Return the deaths that still count against the budget."""
    return [death for death in deaths if now - death <= _RESTART_WINDOW_SECONDS]


def missing_members(home: Home, wanted: Iterable[str]) -> list[Member]:
    """Return the first member of each wanted subsystem that no live process is."""
    present = {member.name.rsplit("-", 1)[0] for member in live_members(home)}
    return [Member(subsystem) for subsystem in wanted if subsystem not in present]


class Supervisor:
    """Keeps members alive as processes of their own; a context manager that drains them at its end.

    A member that dies is started again after a capped, jittered backoff. It ends the whole supervisor
    when it exits with a code that a restart does not cure, or dies more often than its budget allows.
    While another process is that member it is let be, which counts as no death; when that one has ended, it is
    started here again.
    Of each subsystem in `wanted` one is started whenever nobody of this home is it any more: whoever ran it
    for a time of its own has ended.
    """

    def __init__(
        self, home: Home, members: Iterable[Member], *, wanted: Iterable[str] = (), clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._home = home
        self._clock = clock
        self._children = [_Child(member) for member in members]
        self._wanted = tuple(wanted)
        self._looked_at = clock.monotonic()
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._watch, name="weatherlight", daemon=True)

    @property
    def names(self) -> list[str]:
        """Names of the members this supervisor looks after."""
        return [child.member.name for child in self._children]

    def pid(self, name: str) -> int | None:
        """Process id of the member called `name` while it lives."""
        for child in self._children:
            if child.member.name == name and child.process is not None and child.process.poll() is None:
                return child.process.pid
        return None

    def __enter__(self) -> Self:
        for child in self._children:
            self._spawn(child)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._drain()

    def check(self) -> None:
        """Raise what ended the supervisor, if anything did."""
        if self._failure is not None:
            raise self._failure

    def wait(self, stop: threading.Event) -> None:
        """Return when `stop` is set; raise when a member failed for good."""
        while not stop.wait(_POLL_SECONDS):
            self.check()

    def _log_path(self, child: _Child) -> Path:
        return self._home.logs / f"{child.member.name}.log"

    def _spawn(self, child: _Child) -> None:
        path = self._log_path(child)
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "esper.weatherlight", child.member.subsystem, str(child.member.index)]
        environment = os.environ | {"ESPER_HOME": str(self._home.root), "OMP_NUM_THREADS": "1"}
        with path.open("ab") as log:
            # Its own session: a Ctrl-C in the terminal reaches the supervisor alone, which then drains.
            # The pipe on stdin closes when this process dies, however it dies: the member then stops too.
            child.process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_SECONDS) and self._failure is None:
            for child in list(self._children):
                self._look_after(child)
            self._replace_the_missing()

    def _replace_the_missing(self) -> None:
        now = self._clock.monotonic()
        if not self._wanted or now - self._looked_at < _MISSING_SECONDS:
            return
        self._looked_at = now
        ours = {child.member.subsystem for child in self._children}
        for member in missing_members(self._home, [name for name in self._wanted if name not in ours]):
            _log.info("nobody is %s any more; starting it", member.name)
            self._children.append(child := _Child(member))
            self._spawn(child)

    def _look_after(self, child: _Child) -> None:
        now = self._clock.monotonic()
        if child.process is None:
            if now >= child.start_at and not self._taken(child, now):
                self._spawn(child)
            return
        code = child.process.poll()
        if code is None:
            return
        _close_pipe(child.process)
        child.process = None
        if self._taken(child, now):
            return
        child.deaths = [*recent(child.deaths, now), now]
        if code in _FINAL_EXIT_CODES or len(child.deaths) > _RESTARTS_MAX:
            self._failure = self._verdict(child, code)
            return
        wait = jitter(backoff_seconds(len(child.deaths)))
        child.start_at = now + wait
        _log.warning("member %s ended with %s; starting it again in %.1f s", child.member.name, code, wait)

    def _taken(self, child: _Child, now: float) -> bool:
        """Whether another process is this member. It is looked for again later, for it may end before we do."""
        if child.member.name not in {member.name for member in live_members(self._home)}:
            return False
        child.start_at = now + _MISSING_SECONDS
        return True

    def _verdict(self, child: _Child, code: int) -> Exception:
        name, tail = child.member.name, _last_line(self._log_path(child))
        error = OperationFailed if code not in _FINAL_EXIT_CODES else NotReadyError
        return error(
            f"member {name} cannot run (exit code {code})",
            cause=tail or "it left no message",
            next_step=f"See {self._log_path(child)}",
        )

    def _drain(self) -> None:
        living = [(c.member.name, c.process) for c in self._children if c.process and c.process.poll() is None]
        for _, process in living:
            process.send_signal(signal.SIGTERM)
        deadline = Deadline(_DRAIN_SECONDS, clock=self._clock)
        for name, process in living:
            try:
                process.wait(deadline.remaining_seconds)
            except subprocess.TimeoutExpired:
                _log.warning(
                    "member %s did not end within %.0f s and is killed; its next life goes on where the log stops",
                    name,
                    _DRAIN_SECONDS,
                )
                process.kill()
                process.wait()
            _close_pipe(process)


def _close_pipe(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
