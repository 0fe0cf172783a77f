"""The files that count, folded by the one writer of a home, and how another file takes the place of one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esper.core.errors import NotReadyError
from esper.oona import Fabric, Position
from esper.projection._past import log_source
from esper.projection.building._building import STEP_SECONDS, admission, fold_up_to, read_topics
from esper.projection.definitions._definition import Definition, choose, load_definitions
from esper.projection.definitions._folder import ProjectionFolder, StoredFile
from esper.projection.definitions._versions import definition_of, keep_definition, remove_unused, serving_definitions
from esper.projection.files._accounts import log_holds
from esper.projection.intake._folding import Folding
from esper.projection.intake._intake import LocalIntake
from esper.projection.records._letters import DeadLetters
from esper.projection.records._source import RecordSource
from esper.projection.serving._writable import WritableProjections

_log = logging.getLogger("esper.projection.live")


@dataclass(frozen=True)
class Switched:
    """Which version of a projection counts now, which one is kept for a rollback, and how the change went.

    `switch_seconds` is how long queries waited, `positions` the next offset of each partition at that moment.
    """

    name: str
    version: str
    pinned: bool
    previous: str | None
    switch_seconds: float
    positions: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values; the constructor takes them back."""
        return asdict(self)


class LiveFold:
    """Every projection's file that counts, open for writing, and the loop over them; one thread at a time.

    Only the holder of `ProjectionFolder.writing` may make one.
    """

    def __init__(self, fabric: Fabric, folder: ProjectionFolder) -> None:
        """Open all files: of the version of each projection's folder, or the one that it was rolled back to."""
        self._fabric = fabric
        self._folder = folder
        definitions = serving_definitions(fabric.settings, fabric.topics, folder)
        self.projections = WritableProjections(folder, definitions, fabric.settings, holds=log_holds(fabric))
        #: Whether a file is being exchanged: an error then leaves nothing that can be gone on with.
        self.exchanging = False
        self._letters = DeadLetters(fabric)
        self._source: RecordSource
        self.folding: Folding
        self._make_folding()
        for one in definitions:
            keep_definition(folder, one)
        remove_unused(folder)

    def close(self) -> None:
        """Let go of log and files."""
        self.folding.close()
        self._source.close()
        self.projections.close()

    def adopt(self, definition: Definition, built: Path) -> Switched:
        """Let a file that was built beside the one that counts take its place, once both end at the same offsets.

        Raises:
            UnreadableFile: it is not a sound file of this version.
            IntegrityError: the log is not the one that it was folded from.
        """
        self.projections.examine(definition, built)
        return self._switch(definition, built, pinned=False)

    def roll_back(self, name: str) -> Switched:
        """Let the kept file count again, once it is folded as far as the one that counts, which is kept instead.

        Raises:
            NotReadyError: there is no kept file, or its version cannot be folded any more.
            Busy: a query still reads it.
        """
        kept, definition, pinned = kept_version(self._fabric, self._folder, name)
        self.projections.examine(definition, kept.path)
        return self._switch(definition, kept.path, pinned=pinned)

    def _switch(self, definition: Definition, built: Path, *, pinned: bool) -> Switched:
        self.folding.commit()
        ends = self._level(definition, built)
        before = self._folder.live(definition.name)
        self.exchanging = True
        seconds = self.projections.exchange(definition, built, pinned=pinned)
        keep_definition(self._folder, definition)
        self._folder.remove_older(definition.name)
        remove_unused(self._folder)
        self._make_folding()
        self.folding.start()
        self.exchanging = False
        _log.info("projection %s: version %s, switched in %.0f ms", definition.name, definition.version, seconds * 1e3)
        return switched(definition, before, ends, pinned=pinned, seconds=seconds)

    def _level(self, definition: Definition, built: Path) -> dict[Position, int]:
        """Bring the file that counts and `built` to the same offsets, by folding; return those of `built`."""
        live = self.projections.files.get(definition.name)
        told = {topic for one in self.projections.definitions for topic in one.topics}
        letters = None if told.issuperset(definition.topics) else self._letters
        reached = fold_up_to(self._fabric, definition, built, {}, letters=letters)
        if live is None:
            return reached
        while any(one.next_offset < reached.get(place, 0) for place, one in live.progress.items()):
            # What `built` has read is in the log, so that this ends.
            self.folding.step(STEP_SECONDS)
        self.folding.commit()
        ends = {place: one.next_offset for place, one in live.progress.items()}
        return fold_up_to(self._fabric, definition, built, ends, letters=letters)

    def _make_folding(self) -> None:
        """Make the loop over the present files, which may read other topics than those before."""
        if hasattr(self, "_source"):
            self.folding.close()
            self._source.close()
        definitions = self.projections.definitions
        self._source = log_source(self._fabric, read_topics(definitions))
        self.folding = Folding(
            intake=LocalIntake(self._source, admission(self._fabric, definitions)),
            files=self.projections.files,
            catalog=self._fabric.topics,
            letters=self._letters,
            relieve=self.projections.interrupts.expel_all,
        )


def kept_version(fabric: Fabric, folder: ProjectionFolder, name: str) -> tuple[StoredFile, Definition, bool]:
    """Return a projection's kept file, its version, and whether a rollback to it departs from the folder.

    Raises:
        UsageError: there is no projection of that name.
        NotReadyError: there is no kept file, or its version cannot be folded any more.
    """
    installed = load_definitions(fabric.settings, fabric.topics)
    [current] = choose(installed, [name])
    kept = folder.kept(name)
    if kept is None:
        raise NotReadyError(
            f"projection {name} cannot be rolled back",
            cause="no earlier file of it is kept",
            next_step=f"`esper projections rebuild {name}` keeps the present one",
        )
    definition = definition_of(folder, name, kept.version, installed, fabric.topics)
    return kept, definition, definition.version != current.version


def switched(
    definition: Definition,
    before: StoredFile | None,
    ends: Mapping[Position, int],
    *,
    pinned: bool,
    seconds: float,
) -> Switched:
    """Return the account of a switch."""
    positions = [
        {"topic": topic, "partition": partition, "next_offset": end} for (topic, partition), end in sorted(ends.items())
    ]
    previous = before.version if before is not None else None
    return Switched(definition.name, definition.version, pinned, previous, seconds, positions)
