"""A projection as a folder: which events it takes, its tables, how it fills them, and its views.

```
projections/<name>/projection.yaml   name, why, topics, messages
projections/<name>/schema.sql        create table ...: append-only facts
projections/<name>/fold.sql          insert into <table> by name select ... from <Message>: one for each table
projections/<name>/views.sql         create view ...: what people ask for
```

In fold.sql the message's name stands for the Arrow batch of its events: the canonical columns (`_columns`)
and, before them, `topic_partition`, `record_offset` and `append_time`. A fold is pure and works record by
record, so that its rows depend on the log alone and not on where a batch happened to end; hence it may
call no aggregate, window or volatile function, and reads no table.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Final

import duckdb
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import esper
from esper.core.errors import SettingsError, UsageError
from esper.core.settings import Settings
from esper.leyline import EVENT_TYPES, current_version, full_name
from esper.oona import TopicCatalog
from esper.projection.definitions._purity import impurity
from esper.projection.sql import _sqltree as sqltree

#: Part of every version: what the engine makes of a folder. Raise it when that changes.
ENGINE_FORMAT: Final = 3
FILES: Final = ("projection.yaml", "schema.sql", "fold.sql", "views.sql")
#: Every fact table has them: the place in the log that a row comes from.
PLACE_COLUMNS: Final = {"topic_partition": "INTEGER", "record_offset": "BIGINT"}

_INSERT: Final = re.compile(r"insert\s+into\s+([a-z][a-z0-9_]*)\s+by\s+name\s+(select\s.*)", re.IGNORECASE | re.DOTALL)
_RESERVED: Final = frozenset({"esper", "main", "memory", "system", "temp"})
_REMEMBERED: Final = 64


class Manifest(BaseModel):
    """What projection.yaml holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$", description="Name of the projection and of its folder.")
    why: str = Field(min_length=1, description="What it is for.")
    topics: tuple[str, ...] = Field(min_length=1, description="Topics that it reads.")
    messages: tuple[str, ...] = Field(min_length=1, description="Short names of the events that it takes from them.")


@dataclass(frozen=True)
class FoldStatement:
    """One INSERT of fold.sql: fills `table` from a batch of `message` events."""

    table: str
    message: str
    sql: str
    #: Paths of the columns that it reads, in lower case; None where it may read any.
    paths: frozenset[tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Definition:
    """A projection that was read, checked and given its version."""

    name: str
    version: str
    topics: tuple[str, ...]
    #: Full names of the event types it takes.
    types: frozenset[str]
    folds: tuple[FoldStatement, ...]
    schema: tuple[str, ...]
    views: tuple[str, ...]
    #: Names of its fact tables, and of its views.
    table_names: tuple[str, ...]
    view_names: tuple[str, ...]
    #: Its files: name and text of each.
    texts: tuple[tuple[str, str], ...]

    @cached_property
    def folds_by_type(self) -> Mapping[str, tuple[FoldStatement, ...]]:
        """The statements to run for each event type, by its full name."""
        return {kind: tuple(f for f in self.folds if full_name(f.message) == kind) for kind in self.types}

    @cached_property
    def paths_by_type(self) -> Mapping[str, frozenset[tuple[str, ...]] | None]:
        """Paths of the columns that the statements for each event type read; None where they may read any."""
        found: dict[str, frozenset[tuple[str, ...]] | None] = {}
        for kind, statements in self.folds_by_type.items():
            paths = [statement.paths for statement in statements if statement.paths is not None]
            found[kind] = frozenset[tuple[str, ...]]().union(*paths) if len(paths) == len(statements) else None
        return found

    @property
    def relations(self) -> tuple[str, ...]:
        """Everything in it that a query can name."""
        return (*self.table_names, *self.view_names)


def folder_version(contents: Mapping[str, bytes]) -> str:
    """Return the version of a folder, 16 hexadecimal digits: SHA-256 over its files and the engine's format."""
    digest = hashlib.sha256(f"esper-projection-{ENGINE_FORMAT}".encode())
    for name in sorted(contents):
        for part in (name.encode(), contents[name]):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.hexdigest()[:16]


def shipped_projections_dir() -> Path:
    """Return the folder of the projections that belong to this installation."""
    checkout = Path(esper.__file__).resolve().parent.parent / "projections"
    return checkout if checkout.is_dir() else Path(sys.prefix) / "share" / "esper-grow" / "projections"


def load_definitions(settings: Settings, topics: TopicCatalog) -> tuple[Definition, ...]:
    """Read all projections, by name: those that `settings` names or the shipped ones, and the user's own with them.

    Raises:
        SettingsError: a folder holds none, a file is missing or malformed or breaks a rule of folds, or two
            projections use one name.
    """
    definitions = tuple(read_definition(folder, topics) for folder in definition_folders(settings))
    check_names(definitions)
    return definitions


def definition_folders(settings: Settings) -> list[Path]:
    """Return the folders of all projections, by name; raises SettingsError for none in a root, or two of a name."""
    roots = (settings.projections_dir or shipped_projections_dir(), *settings.extra_projections_dirs)
    folders = sorted((folder for root in roots for folder in _folders(root)), key=lambda folder: folder.name)
    for first, second in pairwise(folders):
        if first.name == second.name:
            raise _problem(second, FILES[0], f"{first} holds a projection of this name already")
    return folders


def _folders(root: Path) -> list[Path]:
    """Return the folders of the projections in `root`, of which there must be one."""
    folders = [path.parent for path in root.glob(f"*/{FILES[0]}")]
    if not folders:
        raise SettingsError(
            f"no projections in {root}",
            cause=f"no folder in it holds a {FILES[0]}",
            next_step="Set ESPER_PROJECTIONS_DIR or ESPER_EXTRA_PROJECTIONS_DIRS to folders of projections, or unset",
        )
    return folders


def choose(definitions: Sequence[Definition], names: Iterable[str] | None) -> tuple[Definition, ...]:
    """Return the projections called `names`, or all.

    Raises:
        UsageError: there is no projection of that name.
    """
    if names is None:
        return tuple(definitions)
    known = {definition.name: definition for definition in definitions}
    for name in names:
        if name not in known:
            raise UsageError(
                f"there is no projection {name!r}", cause=f"known are {', '.join(known)}", next_step="Name one of them"
            )
    return tuple(known[name] for name in dict.fromkeys(names))


def read_definition(folder: Path, topics: TopicCatalog) -> Definition:
    """Read one projection; raises SettingsError as `load_definitions` does."""
    try:
        contents = {name: (folder / name).read_bytes() for name in FILES}
        manifest = Manifest.model_validate(yaml.safe_load(contents["projection.yaml"]))
        texts = {name: content.decode() for name, content in contents.items()}
    except ValidationError as error:
        first = error.errors()[0]
        raise _problem(folder, FILES[0], f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _problem(folder, "files", " ".join(str(error).split())) from error
    _check_manifest(folder, manifest, topics)
    versioned = {**contents, **_later_versions(manifest)}
    return _described(folder, manifest, tuple(texts.items()), folder_version(versioned))


def _later_versions(manifest: Manifest) -> dict[str, bytes]:
    """Return what a folder's version holds besides its files: the versions of its events, once one is above the first.

    A new version of an event comes with an upcaster, which may give every older event another row.
    """
    versions = {name: current_version(name) for name in map(full_name, manifest.messages)}
    text = "".join(f"{name} {version}\n" for name, version in sorted(versions.items()) if version > 1)
    return {"versions": text.encode()} if text else {}


@lru_cache(maxsize=_REMEMBERED)
def _described(folder: Path, manifest: Manifest, texts: tuple[tuple[str, str], ...], version: str) -> Definition:
    """Run a folder's SQL once for each content: every command of a process asks for the same ones."""
    connection = duckdb.connect(":memory:")
    try:
        return _build(folder, manifest, dict(texts), version, connection)
    except duckdb.Error as error:
        raise _problem(folder, "SQL", " ".join(str(error).split())) from error
    finally:
        connection.close()


def _problem(folder: Path, where: str, cause: str) -> SettingsError:
    return SettingsError(
        f"projection {folder.name} ({folder}), {where}",
        cause=cause,
        next_step="Correct the file; the shipped projections show every rule",
    )


def _check_manifest(folder: Path, manifest: Manifest, topics: TopicCatalog) -> None:
    if manifest.name != folder.name or manifest.name in _RESERVED:
        raise _problem(folder, FILES[0], f"the name {manifest.name!r} is reserved or not the folder's")
    unknown = [name for name in manifest.messages if full_name(name) not in EVENT_TYPES]
    if unknown:
        raise _problem(folder, FILES[0], f"no event of the contract is called {', '.join(unknown)}")
    carriers = {topics.topic_of(full_name(name)).name for name in manifest.messages}
    if carriers != set(manifest.topics):
        expected = ", ".join(sorted(carriers))
        raise _problem(folder, FILES[0], f"its messages stand in the topics {expected}, so it must read exactly these")


def _build(
    folder: Path, manifest: Manifest, texts: Mapping[str, str], version: str, connection: duckdb.DuckDBPyConnection
) -> Definition:
    """Run the folder's SQL in an empty database, and describe what came of it."""
    schema = _statements(folder, "schema.sql", texts, connection, prefix="create table ")
    for statement in schema:
        connection.execute(statement)
    table_names = _names(connection, "select table_name from duckdb_tables() where not internal order by all")
    _check_tables(folder, connection, table_names)
    views = _statements(folder, "views.sql", texts, connection, prefix="create view ")
    for statement in views:
        connection.execute(statement)
    folds = tuple(
        _fold(folder, statement, connection)
        for statement in _statements(folder, "fold.sql", texts, connection, prefix="insert into ")
    )
    _check_folds(folder, folds, manifest, table_names)
    return Definition(
        name=manifest.name,
        version=version,
        topics=tuple(sorted(manifest.topics)),
        types=frozenset(map(full_name, manifest.messages)),
        folds=folds,
        schema=schema,
        views=views,
        table_names=table_names,
        view_names=_names(connection, "select view_name from duckdb_views() where not internal order by all"),
        texts=tuple(texts.items()),
    )


def _names(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[str, ...]:
    return tuple(str(row[0]) for row in connection.execute(sql).fetchall())


def _statements(
    folder: Path, file: str, texts: Mapping[str, str], connection: duckdb.DuckDBPyConnection, *, prefix: str
) -> tuple[str, ...]:
    """Return the statements of a file, each of which must begin with `prefix`."""
    found = tuple(str(statement.query).strip().rstrip(";") for statement in connection.extract_statements(texts[file]))
    for statement in found:
        if not " ".join(statement.lower().split()).startswith(prefix):
            raise _problem(folder, file, f"only `{prefix}...` may stand here, not {statement.splitlines()[0]!r}")
    return found


def _check_tables(folder: Path, connection: duckdb.DuckDBPyConnection, tables: Sequence[str]) -> None:
    """Refuse tables without a place in the log, and indexes and keys, which make DuckDB rewrite whole tables."""
    columns = connection.execute("select table_name, column_name, data_type from duckdb_columns()").fetchall()
    for table in tables:
        for column, kind in PLACE_COLUMNS.items():
            if (table, column, kind) not in columns:
                raise _problem(folder, "schema.sql", f"table {table} needs a column {column} {kind}")
    keys = (
        "select table_name from duckdb_constraints() where constraint_type in ('PRIMARY KEY', 'UNIQUE', 'FOREIGN KEY')"
    )
    for table in (*_names(connection, keys), *_names(connection, "select table_name from duckdb_indexes()")):
        raise _problem(folder, "schema.sql", f"table {table} has a key or an index; facts are only appended")


def _fold(folder: Path, statement: str, connection: duckdb.DuckDBPyConnection) -> FoldStatement:
    shape = _INSERT.fullmatch(statement)
    if shape is None:
        raise _problem(folder, "fold.sql", f"{statement.splitlines()[0]!r} is no `insert into TABLE by name select`")
    table, select = shape.groups()
    try:
        tree = sqltree.parse_select(connection, select)
    except ValueError as error:
        raise _problem(folder, "fold.sql", f"table {table}: {error}") from error
    sources = sqltree.base_tables(tree)
    if len(sources) != 1:
        raise _problem(folder, "fold.sql", f"table {table} is filled from {sorted(sources)}, not from one message")
    problem = impurity(tree)
    if problem:
        raise _problem(folder, "fold.sql", f"table {table}: {problem}")
    return FoldStatement(table, sources.pop(), statement, sqltree.column_paths(tree))


def _check_folds(folder: Path, folds: Sequence[FoldStatement], manifest: Manifest, tables: Sequence[str]) -> None:
    targets = [fold.table for fold in folds]
    if sorted(targets) != sorted(tables):
        raise _problem(folder, "fold.sql", f"it fills {sorted(targets)}; the tables are {sorted(tables)}, once each")
    used = {fold.message for fold in folds}
    if used != set(manifest.messages):
        raise _problem(folder, "fold.sql", f"it uses {sorted(used)}; projection.yaml names {sorted(manifest.messages)}")


def check_names(definitions: Sequence[Definition]) -> None:
    """Raise SettingsError for a name that two projections give to a table or view: a bare name must mean one thing."""
    owners: dict[str, str] = {}
    for definition in definitions:
        for name in definition.relations:
            if name in owners:
                raise SettingsError(
                    f"projections {owners[name]} and {definition.name} both define {name!r}",
                    cause="queries name tables and views without their projection",
                    next_step="Rename one of them",
                )
            owners[name] = definition.name
