"""The broker's process: starting it apart from us, finding it again, and ending it and no other."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.home import Home, ProcessStamp, read_stamp, write_stamp

_logger = logging.getLogger("esper.oona.broker")

_POLL_SECONDS = 0.02
_IMAGE_POLL_SECONDS = 0.001
_IMAGE_SECONDS = 10.0
_TAIL_BYTES = 64 * 1024
MAIN_CLASS = "kafka.Kafka"


class BrokerProcess:
    """The one broker process of a home, named by a stamp file in it."""

    def __init__(self, home: Home) -> None:
        self._root = home.root
        self._stamp_path = home.broker / "broker.json"
        self._child: int | None = None
        self.output_path = home.logs / "broker.out"
        #: Java ignores the property; it puts the home on the command line, where a stranger's pid betrays itself.
        self.marker = f"-Desper.home={home.home_id}:{home.root}"

    def find(self) -> psutil.Process | None:
        """Return the live process; None unless pid, start time, home and command line all agree."""
        stamp = read_stamp(self._stamp_path)
        process = stamp.process(self._root) if stamp else None
        try:
            return process if process is not None and self.marker in process.cmdline() else None
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return None  # Gone just now, or another user's.

    def find_orphan(self) -> psutil.Process | None:
        """Return this home's broker where it runs without a stamp, and stamp it; call under the broker's lock.

        A starter that was killed between starting Java and writing the stamp leaves such a broker behind.
        """
        for process in psutil.process_iter():
            try:
                if self.marker in process.cmdline() and MAIN_CLASS in process.cmdline():
                    write_stamp(self._stamp_path, ProcessStamp.of(process.pid, self._root))
                    return process
            except (psutil.NoSuchProcess, psutil.AccessDenied):  # Ended meanwhile, or another user's.
                continue
        return None

    def launch(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Start `command`, which must contain the marker, and return its pid; raises OSError.

        It gets a session of its own and writes to files, so that neither our end nor our terminal's ends it.
        Not through `Popen`, whose destructor complains of a child that is meant to outlive us. Signal handling
        goes back to the default, because an ignored SIGTERM would be inherited.
        """
        assert self.marker in command, "the process could not be recognised again"
        inherited = [fd for fd in _open_files() if fd > 2 and _is_inheritable(fd)]
        write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        pid = os.posix_spawn(
            command[0],
            list(command),
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.output_path), write, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                # A lock or a pipe of whoever called us would otherwise be held for as long as the process lives.
                *((os.POSIX_SPAWN_CLOSE, fd) for fd in inherited),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE],
        )
        self._child = pid
        _await_image(pid)
        try:
            write_stamp(self._stamp_path, ProcessStamp.of(pid, self._root))
        except OSError:
            # A full disk: a broker without a stamp is one that nobody can stop.
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self._child = None
            raise
        return pid

    def end(self, signal_number: signal.Signals, *, seconds: float) -> bool:
        """Signal the process and wait until it has let go of its files and ports; return whether it ran and ended."""
        process = self.find()
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal_number)
            deadline = Deadline(seconds)
            while not _has_ended(process):
                if deadline.expired:
                    _logger.warning("broker (pid %d) runs %.0f s after %s", process.pid, seconds, signal_number.name)
                    return False
                SYSTEM_CLOCK.sleep(_POLL_SECONDS)
        self._collect()
        return process is not None

    def _collect(self) -> None:
        """Collect the exit status of an ended child of ours, which would stay in the process table otherwise."""
        if self._child is None:
            return
        try:
            collected, _ = os.waitpid(self._child, os.WNOHANG)
        except ChildProcessError:
            collected = self._child  # Somebody else in this process did.
        if collected:
            self._child = None  # From here on the number may be another child's.

    def forget(self) -> None:
        """Remove the stamp of a process that ended."""
        self._stamp_path.unlink(missing_ok=True)


def _await_image(pid: int) -> None:
    """Wait until a child that was just started shows its command line, by which everybody tells it from a stranger.

    `posix_spawn` returns when the child has left our memory; on a busy machine it may take its new program up, and
    the command line with it, only much later.
    """
    deadline = Deadline(_IMAGE_SECONDS)
    with suppress(psutil.NoSuchProcess):  # It ended at once; whoever looks for it is told so.
        process = psutil.Process(pid)
        while not process.cmdline() and not deadline.expired:
            SYSTEM_CLOCK.sleep(_IMAGE_POLL_SECONDS)


def _has_ended(process: psutil.Process) -> bool:
    """Whether nothing of the process is left but, at most, an entry that its parent did not collect.

    Not `Process.wait`, which waits in vain for such an entry where no init collects orphans. The first thread
    may end before the others, and files close with the last.
    """
    try:
        return not process.is_running() or (process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1)
    except psutil.NoSuchProcess:
        return True


def tail(path: Path, *, lines: int) -> list[str]:
    """Return the last lines of a log less Java's stack frames, which push the cause off the screen."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return [line for line in text.splitlines() if line.strip() and not line.startswith("\t")][-lines:]


def _open_files() -> list[int]:
    """Return the numbers of this process's open files; the one that lists them is closed again by then."""
    numbers = [int(entry.name) for entry in Path("/dev/fd").iterdir()]
    return [fd for fd in numbers if _is_open(fd)]


def _is_inheritable(fd: int) -> bool:
    """Return whether a child would get this file; another thread may have closed it by now."""
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
