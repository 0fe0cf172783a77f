"""Processes that are killed, stopped, and started again under their own names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from esper.core.clock import SYSTEM_CLOCK

REPOSITORY: Final = Path(__file__).resolve().parents[2]
#: What a member may end with by itself: its work is done, or the broker stayed away for longer than it waits.
_DONE, _NOT_READY = 0, 3
_RESTART_SECONDS: Final = 0.5
_TELL_SECONDS: Final = 0.5


class Member:
    """One name in the system, and the process that bears it now. `command` is asked anew for each life."""

    def __init__(
        self,
        name: str,
        command: Callable[[], list[str]],
        *,
        environment: Mapping[str, str],
        folder: Path,
        hear: Callable[[list[str]], None],
        lives_to_tell: bool = True,
    ) -> None:
        self.name = name
        #: Whether SIGUSR1 makes it write down where it stands.
        self.lives_to_tell = lives_to_tell
        self.lives = 0
        self.ended_by_themselves: Counter[int] = Counter()
        #: Set when the name is to end with its present life.
        self.leaving = False
        self.finished = False
        self._command = command
        self._environment = {**os.environ, **environment}
        self._output = folder / f"{name}.err"
        self._hear = hear
        self._process: subprocess.Popen[str] | None = None
        self._listener: threading.Thread | None = None
        self._start_at = 0.0
        self._go_on_at: float | None = None

    @property
    def alive(self) -> bool:
        """Whether a process bears the name."""
        return self._process is not None and self._process.poll() is None

    @property
    def stopped(self) -> bool:
        """Whether the process stands still."""
        return self._go_on_at is not None

    def tend(self) -> None:
        """Start what is to be started, let go on what stood still, and look at what ended.

        Raises:
            AssertionError: it ended in a way that neither the campaign nor an absent broker explains.
        """
        now = SYSTEM_CLOCK.monotonic()
        if self._go_on_at is not None and now >= self._go_on_at:
            self._go_on()
        if self._process is not None and self._process.poll() is not None:
            self._collect(self._process.returncode, now)
        if self._process is None and not self.finished and now >= self._start_at:
            self._start()

    def kill(self, *, restart_after: float = 0.0) -> None:
        """Send SIGKILL and take in all that the process said before it."""
        assert self._process is not None, f"{self.name} lives"
        self._process.kill()
        self._process.wait()
        self._forget()
        self._start_at = SYSTEM_CLOCK.monotonic() + restart_after
        self.finished = self.leaving

    def stop(self, seconds: float) -> None:
        """Let the process stand still for a while, as one that swaps or is suspended."""
        assert self._process is not None, f"{self.name} lives"
        self._process.send_signal(signal.SIGSTOP)
        self._go_on_at = SYSTEM_CLOCK.monotonic() + seconds

    def leave(self) -> None:
        """Ask the process to end, for good."""
        self.leaving = True
        if self._process is None:
            self.finished = True
        else:
            if self.stopped:
                self._go_on()
            self._process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """End the process at once, whatever it does, and say no more of it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._forget()
        self.finished = True

    def last_words(self) -> str:
        """Return the end of what it wrote to stderr: where each thread of a living process stands, if it can tell."""
        if self.alive and self._process is not None and self.lives_to_tell:
            self._process.send_signal(signal.SIGUSR1)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_TELL_SECONDS)
        text = self._output.read_text(errors="replace") if self._output.exists() else ""
        return f"{self.name}: {text[-4000:]}"

    def _start(self) -> None:
        command = [sys.executable, "-m", *self._command()]
        with self._output.open("a") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.lives += 1
        assert self._process.stdout is not None, "its output is piped"
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
        self._listener.start()

    def _listen(self, lines: IO[str]) -> None:
        for line in lines:
            if line.endswith("\n"):  # A killed process may have said half a line.
                self._hear(line.split())

    def _go_on(self) -> None:
        assert self._process is not None, f"{self.name} lives"
        self._process.send_signal(signal.SIGCONT)
        self._go_on_at = None

    def _collect(self, code: int, now: float) -> None:
        self._forget()
        self.ended_by_themselves[code] += 1
        # One that was asked to leave while Python was still starting had no handler yet, and nothing to end.
        allowed = (_DONE, _NOT_READY, *([-signal.SIGTERM] if self.leaving else []))
        assert code in allowed, f"ended with {code}: {self.last_words()}"
        self.finished = self.leaving or code == _DONE
        self._start_at = now + _RESTART_SECONDS

    def _forget(self) -> None:
        """Wait until all that the process said is heard, and give up its pipe."""
        process, listener = self._process, self._listener
        assert process is not None, f"{self.name} was started"
        assert listener is not None, f"{self.name} was started"
        listener.join()
        assert process.stdout is not None, "its output is piped"
        process.stdout.close()
        self._process, self._go_on_at = None, None
