"""Files that say which process holds something, safe against reused pids and half-written content."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from esper.core.files import write_atomically

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
