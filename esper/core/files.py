"""Files that are there whole or not at all, also after a crash."""

from __future__ import annotations

import os
from pathlib import Path


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
        make_durable(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def make_durable(folder: Path) -> None:
    """Let a folder's new entries, and those that went, survive a loss of power. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
