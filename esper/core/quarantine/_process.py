"""One process in quarantine, seen from outside: started, fed, watched, and ended with everything it started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import psutil

from esper.core.clock import Clock
from esper.core.interpreter import package_path
from esper.core.quarantine._judge import Reading, StepReading

#: A line of the child's has some 150 bytes; one that writes without end must not fill the parent's memory.
_LINE_BYTES_MAX: Final = 4096
_CHUNK_BYTES: Final = 65_536
_STDERR_BYTES_KEPT: Final = 500
_REAP_SECONDS: Final = 10.0
#: A look counts as asleep if the process used less than this share of the time since the one before.
_ASLEEP_SHARE: Final = 0.05
#: All that a process in quarantine can say.
_FORMS: Final[Mapping[str, Mapping[str, type]]] = {
    "ready": {"kind": str, "no_network": float, "memory_bytes": int, "threads": int},
    "step": {"kind": str, "not_finite": str, "backward_gain": float, "weight_growth": float},
    "done": {"kind": str, "digest": str, "sensitivity_small": float, "sensitivity_large": float},
    "failed": {"kind": str, "error_kind": str, "error": str},
}
_ASLEEP: Final = frozenset({psutil.STATUS_SLEEPING, psutil.STATUS_IDLE})


def child_environment() -> dict[str, str]:
    """Return all that a process in quarantine is told of its surroundings: no secret, no home, no device."""
    environment = {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "PYTHONPATH": package_path(),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "MALLOC_ARENA_MAX": "2",
    }
    environment |= {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM")}
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return environment


def understood(line: bytes) -> Mapping[str, Any]:
    """Return what one line says; one that is not of the child's few forms says that it failed."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        form = {name: type(value) for name, value in found.items()}
        if form == _FORMS.get(str(found.get("kind"))):
            return found
    return {"kind": "failed", "error_kind": "", "error": f"it said {line[:80]!r}"}


@dataclass(frozen=True)
class _Look:
    """What the operating system said of a process at one moment."""

    at: float
    cpu_seconds: float
    memory_bytes: int
    threads: int
    processes: int
    asleep: bool


@dataclass(frozen=True)
class _Baseline:
    """What the process had before the kernel was in it; it has no children then."""

    memory_bytes: int
    threads: int


class QuarantinedProcess:
    """Runs one trial in a session of its own; `reading` is what is known of it. Used by one thread."""

    def __init__(self, content: bytes, *, clock: Clock) -> None:
        self._clock = clock
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-s", "-m", "esper.core.quarantine._child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(),
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
        self._watched = psutil.Process(self._popen.pid)
        for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            assert stream is not None, "all three are pipes"
            os.set_blocking(stream.fileno(), False)
        self._unsent = memoryview(content)
        self._unread = b""
        self._stderr = b""
        self.reading = Reading()
        self.peak_memory_bytes = 0
        self._began = clock.monotonic()
        self._progress_at = self._began
        self._progress_cpu = 0.0
        self._baseline: _Baseline | None = None
        self._last: _Look | None = None

    def poll(self) -> Reading:
        """Move bytes in both directions, look at the process, and return what is known of it now."""
        self._send()
        ended = self._popen.poll() is not None
        look = None if ended else self._look()
        for line in self._lines():
            self._fold(line, look)
        if look is not None:
            self._fold_look(look)
        if ended and self.reading.phase not in ("done", "failed"):
            self.reading = replace(self.reading, phase="gone", error=self._how_it_ended())
        return self.reading

    def close(self) -> None:
        """End the process and its whole session, wait for it, and release every handle."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait(_REAP_SECONDS)
        for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if stream is not None:
                stream.close()

    def _send(self) -> None:
        stream = self._popen.stdin
        if stream is None or stream.closed:
            return
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                sent = self._write(stream.fileno())
                if not sent:
                    break
                self._unsent = self._unsent[sent:]
        if not self._unsent:
            stream.close()

    def _write(self, descriptor: int) -> int:
        try:
            return os.write(descriptor, self._unsent[:_CHUNK_BYTES])
        except BrokenPipeError:
            self._unsent = memoryview(b"")  # It is gone; `poll` says so.
            return 0

    def _lines(self) -> Iterator[Mapping[str, Any]]:
        stdout, stderr = self._popen.stdout, self._popen.stderr
        assert stdout is not None, "stdout is a pipe"
        assert stderr is not None, "stderr is a pipe"
        self._stderr = (self._stderr + _read(stderr.fileno()))[-_STDERR_BYTES_KEPT:]
        *lines, self._unread = (self._unread + _read(stdout.fileno())).split(b"\n")
        self._unread = self._unread[:_LINE_BYTES_MAX]
        yield from map(understood, lines)

    def _fold(self, line: Mapping[str, Any], look: _Look | None) -> None:
        """Take in one line; each is a sign of progress."""
        known, kind = self.reading, line["kind"]
        if kind == "ready":
            self._baseline = _Baseline(line["memory_bytes"], line["threads"])
            figures = {"no_network": line["no_network"], "start_seconds": self._clock.monotonic() - self._began}
            self.reading = replace(known, phase="running", figures=figures)
        elif kind == "step":
            step = StepReading(
                len(known.steps) + 1,
                line["not_finite"],
                line["backward_gain"],
                line["weight_growth"],
            )
            self.reading = replace(known, steps=(*known.steps, step))
        elif kind == "done":
            sensitivity = line["sensitivity_small"], line["sensitivity_large"]
            self.reading = replace(
                known,
                phase="done",
                digest=line["digest"],
                sensitivity_small=sensitivity[0],
                sensitivity_large=sensitivity[1],
            )
        else:
            self.reading = replace(known, phase="failed", error_kind=line["error_kind"], error=line["error"])
        self._progress_at = self._clock.monotonic()
        if look is not None:
            self._progress_cpu = look.cpu_seconds
        self.reading = replace(self.reading, asleep_seconds=0.0)

    def _fold_look(self, look: _Look) -> None:
        base = self._baseline
        before, self._last = self._last, look
        if base is None:
            return
        asleep = 0.0
        if before is not None and look.asleep:
            elapsed = look.at - before.at
            quiet = look.cpu_seconds - before.cpu_seconds <= _ASLEEP_SHARE * elapsed
            asleep = self.reading.asleep_seconds + elapsed if quiet else 0.0
        memory = max(0, look.memory_bytes - base.memory_bytes)
        self.peak_memory_bytes = max(self.peak_memory_bytes, memory)
        self.reading = replace(
            self.reading,
            idle_seconds=look.at - self._progress_at,
            cpu_seconds=look.cpu_seconds - self._progress_cpu,
            asleep_seconds=asleep,
            memory_bytes=memory,
            threads=max(0, look.threads - base.threads),
            processes=look.processes,
        )

    def _look(self) -> _Look | None:
        try:
            with self._watched.oneshot():
                times = self._watched.cpu_times()
                return _Look(
                    at=self._clock.monotonic(),
                    cpu_seconds=times.user + times.system,
                    memory_bytes=self._watched.memory_info().rss,
                    threads=self._watched.num_threads(),
                    processes=len(self._watched.children(recursive=True)),
                    asleep=self._watched.status() in _ASLEEP,
                )
        except psutil.Error:  # it ended between two looks
            return None

    def _how_it_ended(self) -> str:
        code = self._popen.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        said = self._stderr.decode(errors="replace").strip().splitlines()
        return f"its process ended with {how}" + (f": {said[-1]}" if said else "")


def _read(descriptor: int) -> bytes:
    """Return what lies in a pipe, at most one chunk."""
    try:
        return os.read(descriptor, _CHUNK_BYTES)
    except BlockingIOError:
        return b""
