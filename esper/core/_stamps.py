"""Files that say which process holds something, safe against reused pids and half-written content."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

#: The kernel derives the boot time anew after a clock adjustment, so start times seen by two processes may
#: differ by a second; a pid cannot be used up and handed out again within that time.
_START_TIME_TOLERANCE_SECONDS = 2.0


@dataclass(frozen=True)
class ProcessStamp:
    """Names one life of one process of one home; pids alone are reused."""

    pid: int
    create_time: float
    home: str

    @classmethod
    def of(cls, pid: int, root: Path) -> ProcessStamp:
        """Return the stamp of the running process `pid` for the home at `root`; raises psutil.NoSuchProcess."""
        return cls(pid=pid, create_time=psutil.Process(pid).create_time(), home=str(root))

    def process(self, root: Path) -> psutil.Process | None:
        """Return the live process that this stamp names; None: it ended, or pid, start time or home is another's."""
        if self.home != str(root):
            return None
        try:
            process = psutil.Process(self.pid)
            same_life = abs(process.create_time() - self.create_time) <= _START_TIME_TOLERANCE_SECONDS
            return process if same_life and process.status() != psutil.STATUS_ZOMBIE else None
        except (psutil.NoSuchProcess, ValueError, OverflowError):  # The latter two: a pid that no system gives.
            return None


def write_stamp(path: Path, stamp: ProcessStamp) -> None:
    """Write a stamp so that a reader sees all of it or what was there before; raises OSError."""
    write_atomically(path, json.dumps(asdict(stamp)).encode(), mode=0o644)


def read_stamp(path: Path) -> ProcessStamp | None:
    """Return what a stamp file holds, or None when it is absent or not a stamp."""
    try:
        fields = json.loads(path.read_bytes())
        return ProcessStamp(pid=int(fields["pid"]), create_time=float(fields["create_time"]), home=str(fields["home"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_atomically(path: Path, content: bytes, *, mode: int) -> None:
    """Replace `path` by `content` durably; a crash leaves the old file or the new one, never another mode.

    Raises OSError. Writers of one path must hold a lock.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
