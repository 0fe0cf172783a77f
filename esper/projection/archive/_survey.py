"""Reading what an archive says of itself, and naming everything that contradicts it; segments' bytes are not read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from esper.core.errors import IntegrityError
from esper.leyline import messages as ly
from esper.oona import Position
from esper.oona.proof import BadRestored, Bridge, bridges_of, open_restored_content
from esper.projection.archive._documents import DOCUMENT_BYTES_MAX, BadDocument, digest_of
from esper.projection.archive._layout import Layout, range_of
from esper.projection.archive._models import Seal, SealedPartition, SegmentEntry, open_manifest, open_seal
from esper.projection.archive._segments import Segment


class FaultKind(StrEnum):
    """What is wrong with an archive, or, compared with it, with the live log."""

    #: A seal, manifest or statement is not what the log key signed.
    DOCUMENT = "document"
    #: Something that a seal names is not there.
    MISSING = "missing"
    #: A file's bytes are not those that were sealed.
    ALTERED = "altered"
    #: Records, offsets or gaps of a segment are not what its manifest says.
    CONTENT = "content"
    #: Segments do not join where one ends and the next begins.
    BREAK = "break"
    #: No seal names it, and it continues nothing.
    FOREIGN = "foreign"
    #: A blob is missing, or not what its name says.
    BLOB = "blob"
    #: The live log holds something else.
    LIVE = "live"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, where, and from which offset on what is there cannot be relied on."""

    path: str
    kind: FaultKind
    detail: str
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None

    def document(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "path": self.path,
            "kind": self.kind.value,
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "detail": self.detail,
        }


@dataclass
class Survey:
    """An archive as its documents describe it."""

    layout: Layout
    seals: list[Seal] = field(default_factory=list)
    #: SHA-256 of each seal's document, by number.
    seal_digests: dict[int, str] = field(default_factory=dict)
    #: Every sealed segment of each partition, in order.
    segments: dict[Position, list[Segment]] = field(default_factory=dict)
    #: Segments that a seal which did not come to its end has left; the next one takes them in.
    unsealed: dict[Position, list[Segment]] = field(default_factory=dict)
    #: Files without a manifest, of a seal that was killed before it wrote one.
    leftovers: list[Path] = field(default_factory=list)
    restores: list[ly.LogRestoredContent] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def partitions(self) -> dict[Position, SealedPartition]:
        """How far each partition is sealed, by the last seal."""
        return {one.place: one for one in self.seals[-1].partitions} if self.seals else {}

    @property
    def last_complete(self) -> Seal | None:
        """The last seal from which the log can be restored."""
        return next((seal for seal in reversed(self.seals) if seal.complete), None)

    def leads(self, place: Position, topic_id: str, live_id: str) -> bool:
        """Return whether a sealed topic is the live one, or one that the live one was restored from."""
        known = {topic_id}
        for restore in self.restores:
            bridge: Bridge | None = bridges_of(restore.partitions).get(place)
            if bridge is not None and bridge.topic_id in known:
                known.add(bridge.new_topic_id)
        return live_id in known

    def sealed_before(self, seal: Seal) -> dict[Position, list[Segment]]:
        """Return the segments that the seals up to this one name."""
        ends = {one.place: one.next_offset for one in seal.partitions}
        return {
            place: [one for one in found if one.manifest.next_offset <= ends.get(place, 0)]
            for place, found in self.segments.items()
        }

    def check(self) -> None:
        """Raise IntegrityError when something is wrong."""
        if self.faults:
            first = self.faults[0]
            raise IntegrityError(
                f"the archive {self.layout.root} is not what was sealed",
                cause=f"{first.path}: {first.detail}",
                next_step="`esper archive verify` names everything that is wrong; put it back from a copy",
            )


def survey(layout: Layout, *, public_key: bytes) -> Survey:
    """Return an archive as its signed documents describe it, with what contradicts them."""
    found = Survey(layout)
    _read_seals(found, public_key)
    entries: dict[Position, list[SegmentEntry]] = {}
    for seal in found.seals:
        for entry in seal.segments:
            entries.setdefault(entry.place, []).append(entry)
    for place, listed in sorted(entries.items()):
        found.segments[place] = [one for entry in listed if (one := _read_entry(found, entry, public_key))]
        _check_joins(found, place, listed)
    expected = {
        layout.segment(one.place, one.first_offset, one.next_offset) for all_ in entries.values() for one in all_
    }
    _read_unsealed(found, expected, public_key)
    _read_restores(found, public_key)
    return found


def _read_seals(found: Survey, public_key: bytes) -> None:
    layout, previous, numbers = found.layout, "", 0
    for path in _files(layout.seals):
        numbers += 1
        raw = path.read_bytes() if path.stat().st_size <= DOCUMENT_BYTES_MAX else b""
        digest = digest_of(raw)
        try:
            seal = open_seal(raw, public_key=public_key)
        except BadDocument as bad:
            found.faults.append(Fault(layout.name(path), FaultKind.DOCUMENT, str(bad)))
            previous = digest
            continue
        if path != layout.seal(seal.number):
            found.faults.append(Fault(layout.name(path), FaultKind.FOREIGN, f"it is a copy of seal {seal.number}"))
            numbers -= 1
            continue
        if seal.number != numbers:
            missing = layout.name(layout.seal(numbers))
            found.faults.append(
                Fault(missing, FaultKind.MISSING, f"seal {seal.number} follows it, but it is not there")
            )
            numbers = seal.number
        elif seal.previous != previous:
            found.faults.append(
                Fault(layout.name(path), FaultKind.BREAK, "it follows another seal than the one before")
            )
        previous = digest
        found.seals.append(seal)
        found.seal_digests[seal.number] = digest


def _read_entry(found: Survey, entry: SegmentEntry, public_key: bytes) -> Segment | None:
    layout = found.layout
    path = layout.segment(entry.place, entry.first_offset, entry.next_offset)
    manifest_path = path.with_suffix(".json")
    name = layout.name(manifest_path)
    if not manifest_path.is_file():
        found.faults.append(_of_entry(entry, name, FaultKind.MISSING, "a seal names it, but it is not there"))
        return None
    raw = manifest_path.read_bytes()
    if digest_of(raw) != entry.manifest:
        found.faults.append(_of_entry(entry, name, FaultKind.DOCUMENT, "it is not the manifest that was sealed"))
        return None
    try:
        manifest = open_manifest(raw, public_key=public_key)
    except BadDocument as bad:
        found.faults.append(_of_entry(entry, name, FaultKind.DOCUMENT, str(bad)))
        return None
    if (manifest.place, manifest.first_offset, manifest.next_offset) != (
        entry.place,
        entry.first_offset,
        entry.next_offset,
    ):
        found.faults.append(_of_entry(entry, name, FaultKind.DOCUMENT, "it is another segment's"))
        return None
    if not path.is_file():
        found.faults.append(_of_entry(entry, layout.name(path), FaultKind.MISSING, "the segment's file is not there"))
    return Segment(manifest, entry.manifest, path)


def _of_entry(entry: SegmentEntry, name: str, kind: FaultKind, detail: str) -> Fault:
    return Fault(name, kind, detail, entry.topic, entry.partition, entry.first_offset)


def _check_joins(found: Survey, place: Position, listed: list[SegmentEntry]) -> None:
    """Name where segments that seals list do not join; a missing one is named where it is missing."""
    end = listed[0].first_offset
    for entry in listed:
        if entry.first_offset != end:
            name = found.layout.name(found.layout.segment(place, entry.first_offset, entry.next_offset))
            detail = f"it begins at offset {entry.first_offset}, the one before it ends at {end}"
            found.faults.append(_of_entry(entry, name, FaultKind.BREAK, detail))
        end = entry.next_offset
    stated = found.partitions.get(place)
    if stated is None or (stated.first_offset, stated.next_offset) != (listed[0].first_offset, end):
        name = found.layout.name(found.layout.seals)
        detail = f"the last seal does not say that segments reach from {listed[0].first_offset} to {end}"
        found.faults.append(Fault(name, FaultKind.BREAK, detail, *place, end))


def _read_unsealed(found: Survey, expected: set[Path], public_key: bytes) -> None:
    """Take in what continues a partition; name what does not."""
    layout = found.layout
    ends = {place: one.next_offset for place, one in found.partitions.items()}
    for path in sorted(layout.segments.rglob("*")):
        if path.is_dir() or path.name.startswith(".") or path.with_suffix(".avro") in expected:
            continue
        stated = range_of(path)
        place = _place_of(layout, path)
        if stated is None or place is None or path.suffix not in (".avro", ".json"):
            found.faults.append(Fault(layout.name(path), FaultKind.FOREIGN, "no seal names it"))
            continue
        if path.suffix == ".avro":
            # One whose manifest was not written yet is what a seal that was killed leaves behind.
            if path.with_suffix(".json").is_file():
                continue
            if stated[0] == ends.get(place, stated[0]):
                found.leftovers.append(path)
            else:
                found.faults.append(_foreign(layout, path, place, stated[0], "it continues nothing"))
            continue
        raw = path.read_bytes()
        try:
            manifest = open_manifest(raw, public_key=public_key)
        except BadDocument as bad:
            found.faults.append(_foreign(layout, path, place, stated[0], str(bad)))
            continue
        if (manifest.place, manifest.first_offset, manifest.next_offset) != (place, *stated):
            found.faults.append(_foreign(layout, path, place, stated[0], "it is another segment's"))
        elif stated[0] != ends.get(place, stated[0]):
            found.faults.append(_foreign(layout, path, place, stated[0], "it continues nothing"))
        else:
            ends[place] = stated[1]
            found.unsealed.setdefault(place, []).append(Segment(manifest, digest_of(raw), path.with_suffix(".avro")))


def _foreign(layout: Layout, path: Path, place: Position, offset: int, detail: str) -> Fault:
    return Fault(layout.name(path), FaultKind.FOREIGN, f"no seal names it: {detail}", *place, offset)


def _place_of(layout: Layout, path: Path) -> Position | None:
    parts = path.relative_to(layout.segments).parts
    return (parts[0], int(parts[1])) if len(parts) == 3 and parts[1].isdecimal() else None


def _read_restores(found: Survey, public_key: bytes) -> None:
    for path in _files(found.layout.restored):
        try:
            document = json.loads(path.read_bytes())
            content, signature = bytes.fromhex(document["content"]), bytes.fromhex(document["signature"])
            found.restores.append(open_restored_content(content, signature, public_key=public_key))
        except (BadRestored, ValueError, KeyError, TypeError) as error:
            detail = f"it is no statement of a restore that the log key signed: {error}"
            found.faults.append(Fault(found.layout.name(path), FaultKind.DOCUMENT, detail))


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.glob("*") if not path.name.startswith("."))
