"""Who writes a home's projections: a generation that each writer raises, and that every commit finds unchanged.

DuckDB lets one process open a file for writing, by a lock of the file system; `writer.lock` lets one process be the
writer. Both are gone where a file system keeps no locks, where somebody removes lock files by hand, and for a process
that opened and closed a file once more than DuckDB knows of (POSIX gives up a process's locks with any descriptor of
the file). Then the generation is left. A row inside the database could not tell by itself: a process that has the file
open never reads again what it holds in memory. So the generation stands in the small file `generation` beside the
databases, read anew in every transaction, and as a row in each database, which says who wrote its last commit.

A commit holds a shared lock of `generation` from its first statement to its last; who raises it needs the file alone
and so waits for a commit that has begun. Without any locks a moment remains between the check and the end of a commit.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import Busy, OperationFailed
from esper.core.rng import jitter

FENCE_FILE: Final = "generation"
_DIGITS: Final = 20
_RETRY_SECONDS: Final = 0.05
_HELD_SECONDS: Final = 20.0


class Fenced(OperationFailed):
    """Another process became the writer of these projections; this one must not commit any more."""


class Fence:
    """One writer's generation in a folder; `check` before every commit, within `held`."""

    def __init__(self, folder: Path) -> None:
        """Become the writer: raise the generation, which ends the turn of every earlier writer.

        Raises:
            Busy: an earlier writer stands still in the midst of a commit.
        """
        self._path = folder / FENCE_FILE
        self.generation = 0
        self.raise_above(0)

    def raise_above(self, generation: int) -> None:
        """Take a generation above this one and the folder's."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._lock_alone(descriptor)
            self.generation = max(_read(descriptor), generation) + 1
            os.pwrite(descriptor, b"%0*d\n" % (_DIGITS, self.generation), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep others from raising the generation for the time of a transaction; raises as `check`."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            raise self._fenced("it is gone") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            self.check()
            yield
        finally:
            os.close(descriptor)

    def check(self) -> None:
        """Raise Fenced unless this process still is the writer; reads the file anew, by its name."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            raise self._fenced("it is gone") from None
        try:
            found = _read(descriptor)
        finally:
            os.close(descriptor)
        if found != self.generation:
            raise self._fenced(f"it is {found} by now")

    def _lock_alone(self, descriptor: int) -> None:
        deadline = Deadline(_HELD_SECONDS)
        while True:  # ends with the lock, or at the deadline
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if deadline.expired:
                    raise Busy(
                        f"the projections in {self._path.parent} are being written",
                        cause="another writer stands still in the midst of a commit",
                        next_step="End it, or let it go on (kill -CONT); then try again",
                    ) from error
            else:
                return
            SYSTEM_CLOCK.sleep(jitter(_RETRY_SECONDS))

    def _fenced(self, cause: str) -> Fenced:
        return Fenced(
            f"this process may not write the projections in {self._path.parent} any more",
            cause=f"its generation is {self.generation}, and {cause}: another process became the writer",
            next_step="Nothing was written; let the other one go on, or stop it and start this one again",
        )


def _read(descriptor: int) -> int:
    text = os.pread(descriptor, _DIGITS + 1, 0).strip()
    return int(text) if text.isdigit() else 0
