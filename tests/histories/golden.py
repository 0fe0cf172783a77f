"""Golden logs: what a release wrote, record by record, and what every shipped projection makes of it.

`v<release>/log.jsonl` holds one header line (release, secret, topic ids, number of records) and then one line for each
record exactly as Kafka held it: topic, partition, offset, append time, and in base64 key, value and headers. Nothing
of a file that was committed ever changes. `v<release>/hashes.json` holds, by the version of each projection, what its
tables hashed to. How both are recorded: `tests/histories/record.py`.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from esper.leyline import KeyRing, Record
from esper.oona import Position, TopicCatalog
from esper.oona.proof._log import ListLog
from esper.projection import Definition
from esper.projection.building._building import admission
from esper.projection.files._contents import read_contents
from esper.projection.files._file import ProjectionFile
from esper.projection.intake._folding import Folding
from esper.projection.intake._intake import LocalIntake
from esper.projection.records._source import MemorySource
from esper.projection.sql._database import Database

if TYPE_CHECKING:
    from esper.oona import Fabric

FOLDER = Path(__file__).parent
#: Signs golden logs and nothing else; everybody may know it.
SECRET = "golden logs of Esper are signed with this, and nothing else is"  # noqa: S105 - known to everybody, on purpose


@dataclass(frozen=True)
class GoldenLog:
    """One recorded log."""

    release: str
    secret: str
    topic_ids: dict[str, str]
    #: In the order of append times, as a consumer of all topics would meet them.
    records: tuple[Record, ...]

    @property
    def keyring(self) -> KeyRing:
        """The keys that it was signed with."""
        return KeyRing.from_secrets(self.secret.encode())

    def as_list(self, catalog: TopicCatalog) -> ListLog:
        """Return it as whoever proves a log reads it; all partitions of the catalogue are there."""
        partitions: dict[Position, list[Record]] = {
            place: [] for spec in catalog for place in catalog.partitions(spec.name)
        }
        for record in self.records:
            partitions[(record.topic, record.partition)].append(record)
        for records in partitions.values():
            records.sort(key=lambda record: record.offset)
        passing = frozenset(spec.name for spec in catalog if spec.expires)
        return ListLog(dict(partitions), topic_ids=self.topic_ids, passing=passing)


def releases() -> list[str]:
    """Return every release that has a golden log."""
    return sorted(path.parent.name for path in FOLDER.glob("v*/log.jsonl"))


def write_log(log: GoldenLog) -> Path:
    """Write a golden log beside the others and return its path."""
    path = FOLDER / log.release / "log.jsonl"
    path.parent.mkdir(exist_ok=True)
    header = {
        "release": log.release,
        "secret": log.secret,
        "topic_ids": log.topic_ids,
        "records": len(log.records),
    }
    lines = [json.dumps(header, sort_keys=True), *(json.dumps(_plain(one)) for one in log.records)]
    path.write_text("\n".join(lines) + "\n")
    return path


def read_log(release: str) -> GoldenLog:
    """Return the golden log of a release, as `releases` names it."""
    first, *lines = (FOLDER / release / "log.jsonl").read_text().splitlines()
    header = json.loads(first)
    records = tuple(_record(json.loads(line)) for line in lines)
    assert len(records) == header["records"], "a golden log was cut"
    return GoldenLog(header["release"], header["secret"], header["topic_ids"], records)


def hashes_path(release: str) -> Path:
    """Return where the hashes of a golden log stand."""
    return FOLDER / release / "hashes.json"


def replayed(
    records: Sequence[Record],
    definitions: Iterable[Definition],
    *,
    catalog: TopicCatalog,
    keyring: KeyRing,
    folder: Path,
) -> dict[str, dict[str, Any]]:
    """Fold records into new files of projections; return for each its version, tables and dispositions, all plain."""
    chosen = tuple(definitions)
    source = MemorySource({spec.name: spec.partitions for spec in catalog})
    source.records.extend(records)
    database = Database(folder, memory_limit="512MB")
    files = {one.name: ProjectionFile(database, one, folder / f"{one.name}.duckdb") for one in chosen}
    try:
        verifier = _Verifier(keyring, catalog)
        intake = LocalIntake(source, admission(cast("Fabric", verifier), chosen))
        folding = Folding(intake=intake, files=files, catalog=catalog)
        try:
            ends = {place: found.high for place, found in folding.start().items()}
            while not folding.reached(ends):  # ends with the log
                folding.step(0)
        finally:
            folding.close()
        return {one.name: _outcome(database, one) for one in chosen}
    finally:
        for file in files.values():
            file.close()
        database.close()


@dataclass(frozen=True)
class _Verifier:
    """What of a fabric the engine verifies with."""

    keyring: KeyRing
    topics: TopicCatalog


def _outcome(database: Database, definition: Definition) -> dict[str, Any]:
    contents = read_contents(database, definition)
    places = contents.progress
    return {
        "version": definition.version,
        "tables": {
            name: {"rows": contents.tables[name].rows, "hash": contents.tables[name].hash}
            for name in sorted(definition.table_names)
        },
        "dispositions": {
            word: sum(getattr(place, word) for place in places)
            for word in ("applied", "filtered", "deduplicated", "discarded")
        },
    }


def _plain(record: Record) -> list[Any]:
    headers = [[name, _text(value)] for name, value in record.headers]
    place = [record.topic, record.partition, record.offset, record.append_time_ms]
    return [*place, _text(record.key), _text(record.value), headers]


def _record(line: list[Any]) -> Record:
    topic, partition, offset, append_time_ms, key, value, headers = line
    pairs = tuple((name, _bytes(content)) for name, content in headers)
    return Record(topic, partition, offset, _bytes(key), _bytes(value), pairs, append_time_ms)


def _text(content: bytes | None) -> str | None:
    return None if content is None else b64encode(content).decode()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else b64decode(text)
