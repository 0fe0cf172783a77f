"""Throwing projections away: they are derived, so nothing is lost."""

from __future__ import annotations

from typing import Final

from esper.oona import Fabric
from esper.projection.definitions._folder import ProjectionFolder, remove
from esper.projection.definitions._versions import remove_unused

_WRITER_SECONDS: Final = 10.0


def delete_all(fabric: Fabric) -> int:
    """Delete every projection file of the home, of any version, and return how many there were.

    Raises:
        Busy: a projector runs, or another process writes them.
    """
    folder = ProjectionFolder(fabric.home.projections)
    with folder.writing(seconds=_WRITER_SECONDS):
        files = folder.files()
        for file in files:
            remove(file.path)
        remove_unused(folder)
    return len(files)
