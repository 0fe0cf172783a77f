"""What the versions of projections are made of, kept as long as a file of them is: `definitions/<version>/<name>/`.

A projection's folder may be edited at any time; the file that counts is of the version that was built last. So each
version's own texts are kept beside the files, under the version that is their hash: it can be folded on, rolled back
to and checked against the log whatever the folder says by now.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from esper.core.errors import NotReadyError, SettingsError
from esper.core.settings import Settings
from esper.oona import TopicCatalog
from esper.projection.definitions._definition import (
    Definition,
    check_names,
    definition_folders,
    load_definitions,
    read_definition,
)
from esper.projection.definitions._folder import ProjectionFolder

_log = logging.getLogger("esper.projection.versions")


def keep_definition(folder: ProjectionFolder, definition: Definition) -> None:
    """Return once the texts of this version are in the folder, whole."""
    path = _path(folder, definition.name, definition.version)
    if path.is_dir():
        return
    temporary = folder.path / f"building-{os.getpid()}-{definition.name}-{definition.version}"
    temporary.mkdir(parents=True, exist_ok=True)
    for name, text in definition.texts:
        (temporary / name).write_bytes(text.encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.rename(path)
    except OSError:
        # Another process was first; a version's texts are the same whoever writes them.
        shutil.rmtree(temporary)
        if not path.is_dir():
            raise


def kept_definition(folder: ProjectionFolder, name: str, version: str, topics: TopicCatalog) -> Definition:
    """Return a version that was kept.

    Raises:
        NotReadyError: it is not there, or this Esper makes something else of the same texts.
    """
    path = _path(folder, name, version)
    try:
        found = read_definition(path, topics)
    except SettingsError as error:
        raise _unusable(name, version, str(error)) from error
    if found.version != version:
        raise _unusable(name, version, f"this Esper makes version {found.version} of its texts in {path}")
    return found


def definition_of(
    folder: ProjectionFolder, name: str, version: str, installed: Iterable[Definition], topics: TopicCatalog
) -> Definition:
    """Return this version of a projection: the installed one, or else what was kept; raises as `kept_definition`."""
    for one in installed:
        if (one.name, one.version) == (name, version):
            return one
    return kept_definition(folder, name, version, topics)


def serving_definitions(settings: Settings, topics: TopicCatalog, folder: ProjectionFolder) -> tuple[Definition, ...]:
    """Return the version of every projection that a writer folds: its folder's, or the one that it was rolled back to.

    Raises:
        SettingsError: as `load_definitions`.
        NotReadyError: the version that a projection was rolled back to cannot be folded any more.
    """
    installed = load_definitions(settings, topics)
    found = tuple(_serving(one, topics, folder) for one in installed)
    check_names(found)
    return found


def readable_definitions(settings: Settings, topics: TopicCatalog, folder: ProjectionFolder) -> tuple[Definition, ...]:
    """Return the version of every projection that its file holds: the folder's, where there is no usable file.

    A folder that cannot be read costs no other projection its readers, nor its own the file that was built.
    """
    found = [one for path in definition_folders(settings) if (one := _readable(path, topics, folder)) is not None]
    check_names(found)
    return tuple(found)


def _readable(path: Path, topics: TopicCatalog, folder: ProjectionFolder) -> Definition | None:
    live, installed = folder.live(path.name), None
    try:
        installed = read_definition(path, topics)
    except SettingsError as error:
        _log.warning("%s", error)
    if live is None or (installed is not None and live.version == installed.version):
        return installed
    try:
        return kept_definition(folder, live.name, live.version, topics)
    except NotReadyError:
        return installed


def _serving(installed: Definition, topics: TopicCatalog, folder: ProjectionFolder) -> Definition:
    live = folder.live(installed.name)
    if live is None or not live.pinned or live.version == installed.version:
        return installed
    return kept_definition(folder, live.name, live.version, topics)


def remove_unused(folder: ProjectionFolder) -> None:
    """Delete the texts of versions of which no file is left. For the writer alone."""
    used = {(one.version, one.name) for one in folder.files()}
    for path in _root(folder).glob("*/*"):
        if (path.parent.name, path.name) not in used:
            shutil.rmtree(path)
            _log.debug("version %s of projection %s is forgotten", path.parent.name, path.name)
    for path in _root(folder).glob("*"):
        if not any(path.iterdir()):
            path.rmdir()


def _root(folder: ProjectionFolder) -> Path:
    return folder.path / "definitions"


def _path(folder: ProjectionFolder, name: str, version: str) -> Path:
    return _root(folder) / version / name


def _unusable(name: str, version: str, cause: str) -> NotReadyError:
    return NotReadyError(
        f"version {version} of projection {name} cannot be folded any more",
        cause=cause,
        next_step=f"`esper projections rebuild {name}` builds the version of its folder",
    )
