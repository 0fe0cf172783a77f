"""The compiler subprocess, seen from the forge: one warm process, killed and replaced when it oversteps."""

from __future__ import annotations

import logging
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import psutil

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.interpreter import package_path
from esper.tezzeret._faults import CompilerDied, CompilerOutOfMemory, CompilerStopped, CompileTimeout, fault_of
from esper.tezzeret._wire import BadFrame, Frame, pack, unpack

_logger = logging.getLogger("esper.tezzeret")

#: How often memory and the clock are looked at while the subprocess works.
_LOOK_SECONDS: Final = 0.05
_CHUNK_BYTES: Final = 1 << 16
#: What the import of torch may take on a loaded machine, beside the work itself.
_START_SECONDS: Final = 120.0
#: A job that nearly ends when the member is told to stop may do so.
_STOP_GRACE_SECONDS: Final = 5.0
_STDERR_TAIL_BYTES: Final = 2_000
#: What the subprocess inherits. Settings, and with them every secret, stay outside.
_INHERITED: Final = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "CC",
    "CXX",
)
_INHERITED_PREFIXES: Final = ("PYTHON", "COVERAGE_", "NVIDIA_")


@dataclass(frozen=True)
class Limits:
    """What one piece of work may take: wall-clock seconds, and bytes of resident memory with all children."""

    seconds: float = 60.0
    memory_bytes: int = 4 << 30


class CompilerProcess:
    """Runs work in a subprocess of its own session, one piece at a time; starts it when first needed.

    The process stays between two pieces of work, so that torch is imported once. It is killed with everything that
    it started when it is late, takes too much memory, says nonsense, or is not needed any more; it kills itself
    when the forge is gone.
    """

    def __init__(self, *, stop: threading.Event | None = None, niceness: int = 0) -> None:
        self._stop = stop or threading.Event()
        self._niceness = niceness
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path()
        self._stderr: IO[bytes] | None = None
        self._warm = False
        #: Subprocesses started so far.
        self.starts = 0

    def start(self) -> None:
        """Have the process import what it needs from now on; waits for nothing. Raises OSError."""
        self._running()

    def call(self, frame: Frame, limits: Limits) -> Frame:
        """Return the answer to `frame`.

        Raises:
            CompileTimeout, CompilerOutOfMemory, CompilerDied: no answer; the process is gone.
            CompilerStopped: the member is stopping; the process is gone.
            UsageError, IntegrityError, CompileRefused: the answer is no.
        """
        try:
            process = self._running()
            if not self._warm:
                self._exchange(process, Frame({"op": "ready"}), Limits(_START_SECONDS, limits.memory_bytes))
                self._warm = True
            answer = self._exchange(process, frame, limits)
        except BaseException:
            self.close()
            raise
        if answer.header.get("ok") is not True:
            raise fault_of(str(answer.header.get("kind")), str(answer.header.get("cause"))[:800])
        return answer

    @property
    def pid(self) -> int | None:
        """Process id while a process is there."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """Kill the process and all it started; closing twice does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            # Its own session, so the group holds what it started and nobody else.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, self._stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None:
            return self._process
        self._folder = Path(tempfile.mkdtemp(prefix="esper-forge-"))
        self._stderr = (self._folder / "stderr").open("w+b", buffering=0)
        command = [sys.executable, "-P", "-m", "esper.tezzeret._worker", str(self._niceness)]
        process = subprocess.Popen(  # noqa: S603 - a fixed command without a shell
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd=self._folder,
            env=child_environment(os.environ, self._folder),
            start_new_session=True,
            bufsize=0,
        )
        assert process.stdin is not None, "asked for above"
        assert process.stdout is not None, "asked for above"
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        self._process, self._warm = process, False
        self.starts += 1
        return process

    def _exchange(self, process: subprocess.Popen[bytes], frame: Frame, limits: Limits) -> Frame:
        """Send and receive without ever waiting for the other side alone: either may be stuck."""
        assert process.stdin is not None, "made with a pipe"
        assert process.stdout is not None, "made with a pipe"
        deadline, stopping = Deadline(limits.seconds), None
        outgoing = pack(Frame({**frame.header, "seconds": limits.seconds}, frame.parts))
        rest, received = memoryview(outgoing), bytearray()
        looked_at = SYSTEM_CLOCK.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(process.stdin, selectors.EVENT_WRITE)
            while True:  # ends with an answer, at the deadline, or with the process
                for key, _ in selector.select(_LOOK_SECONDS):
                    if key.fileobj is process.stdin:
                        rest = self._send(process, rest)
                        if not rest:
                            selector.unregister(process.stdin)
                    elif (answer := self._receive(process, received)) is not None:
                        return answer
                if SYSTEM_CLOCK.monotonic() - looked_at >= _LOOK_SECONDS:
                    looked_at = SYSTEM_CLOCK.monotonic()
                    _check_memory(process.pid, limits.memory_bytes)
                if deadline.expired:
                    raise CompileTimeout(f"no answer within {limits.seconds:.0f} seconds")
                if self._stop.is_set():
                    stopping = stopping or Deadline(_STOP_GRACE_SECONDS)
                    if stopping.expired:
                        raise CompilerStopped("a compilation is left unfinished", cause="the forge is stopping")

    def _send(self, process: subprocess.Popen[bytes], rest: memoryview) -> memoryview:
        assert process.stdin is not None, "made with a pipe"
        try:
            return rest[os.write(process.stdin.fileno(), rest[:_CHUNK_BYTES]) :]
        except BrokenPipeError:
            raise self._death(process) from None

    def _receive(self, process: subprocess.Popen[bytes], received: bytearray) -> Frame | None:
        assert process.stdout is not None, "made with a pipe"
        chunk = os.read(process.stdout.fileno(), _CHUNK_BYTES)
        if not chunk:
            raise self._death(process)
        received += chunk
        try:
            return unpack(received)
        except BadFrame as error:
            raise CompilerDied(f"it said what is no answer: {error}") from error

    def _death(self, process: subprocess.Popen[bytes]) -> CompilerDied | CompilerOutOfMemory | CompileTimeout:
        """Return how a process ended whose pipes are closed."""
        try:
            code = process.wait(1.0)
        except subprocess.TimeoutExpired:
            return CompilerDied("it closed its pipes and went on")
        if code == -signal.SIGXCPU:
            return CompileTimeout("it used up its processor time")
        # Only the kernel's memory killer, or a person, kills a process that this one has not killed.
        if code == -signal.SIGKILL:
            return CompilerOutOfMemory("it was killed from outside, as the kernel does when memory is short")
        return CompilerDied(f"it ended with {code}: {self._last_words()}")

    def _last_words(self) -> str:
        if self._stderr is None:
            return ""
        end = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, end - _STDERR_TAIL_BYTES))
        return self._stderr.read(_STDERR_TAIL_BYTES).decode(errors="replace").strip()[-400:]


def child_environment(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return what the subprocess is told: no setting and no secret, and a folder of its own to write into."""
    kept = {
        name: value for name, value in environment.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }
    own = {"TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    return kept | own | {"PYTHONPATH": package_path()}


def _check_memory(pid: int, bytes_max: int) -> None:
    """Raise CompilerOutOfMemory when a process and all that it started hold more memory than they may."""
    held = 0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                held += each.memory_info().rss
    if held > bytes_max:
        raise CompilerOutOfMemory(f"it held {held >> 20} MiB, it may hold {bytes_max >> 20} MiB")
