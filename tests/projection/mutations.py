"""Random changes by hand to the rows of a projection file."""

# ruff: noqa: S608 - tables and columns are those of the tests' own files

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import duckdb

#: A place of the log: topic (None in a fact table), partition, offset.
Place = tuple[str | None, int | None, int | None]
OPERATIONS = ("update", "delete", "insert", "swap")


@dataclass(frozen=True)
class Mutation:
    """What was changed: in which table, how, and the places of the rows before and after."""

    table: str
    operation: str
    column: str
    places: frozenset[Place]


def mutate(path: Path, tables: list[str], chooser: random.Random) -> Mutation:
    """Change one row (two, to swap) of one of `tables`, which have rows, in a closed file; every change shows."""
    with duckdb.connect(str(path)) as connection:
        operation = chooser.choice(OPERATIONS)
        while True:  # ends with a change; a value that stays what it was is none
            found = _Table(connection, chooser.choice(tables), chooser)
            mutation: Mutation | None = getattr(found, operation)()
            if mutation is not None:
                return mutation


class _Table:
    """One table of an open file."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, table: str, chooser: random.Random) -> None:
        self._connection = connection
        self._table = table
        self._chooser = chooser
        self._columns = [(str(row[0]), str(row[1])) for row in connection.execute(f"describe {table}").fetchall()]
        names = [name for name, _ in self._columns]
        wanted = ("topic", "topic_partition", "record_offset")
        self._place = ", ".join(name if name in names else "null" for name in wanted)
        self._rows = [int(row[0]) for row in connection.execute(f"select rowid from {table}").fetchall()]

    def update(self) -> Mutation | None:
        """Give one value another one of its type, or none."""
        row = self._chooser.choice(self._rows)
        column, kind = self._chooser.choice(self._columns)
        before = self._where([row])
        for value in self._chooser.sample(_other_values(column, kind), k=len(_other_values(column, kind))):
            changed = f"(select ({value})::{kind} from {self._table} where rowid = {row})"
            # DuckDB leaves out an update by an equal value, and 0.0 equals -0.0.
            differs = f"select {column} is distinct from {changed} from {self._table} where rowid = {row}"
            if self._connection.execute(differs).fetchone() == (True,):
                self._connection.execute(f"update {self._table} set {column} = {changed} where rowid = {row}")
                # An update of a nested value is a deletion and an insertion, so that its row number is another.
                return Mutation(self._table, "update", column, before | self._moved(column, before, row))
        return None

    def _moved(self, column: str, before: frozenset[Place], row: int) -> frozenset[Place]:
        return self._where([row]) if column in self._place.split(", ") else before

    def delete(self) -> Mutation | None:
        """Delete one row."""
        row = self._chooser.choice(self._rows)
        places = self._where([row])
        self._connection.execute(f"delete from {self._table} where rowid = {row}")
        return Mutation(self._table, "delete", "", places)

    def insert(self) -> Mutation | None:
        """Insert a copy of one row, or one that has another offset."""
        row = self._chooser.choice(self._rows)
        places = self._where([row])
        self._connection.execute(f"insert into {self._table} select * from {self._table} where rowid = {row}")
        return Mutation(self._table, "insert", "", places)

    def swap(self) -> Mutation | None:
        """Let two rows exchange one value."""
        if len(self._rows) < 2:
            return None
        one, other = self._chooser.sample(self._rows, 2)
        column, _ = self._chooser.choice(self._columns)
        differ = f"select a.{column} is distinct from b.{column} from {self._table} a, {self._table} b"
        if self._connection.execute(f"{differ} where a.rowid = {one} and b.rowid = {other}").fetchone() != (True,):
            return None
        if self._only_difference(one, other, column):
            return None
        before = self._where([one, other])
        self._connection.execute(
            f"create temp table swapped as select rowid as r, {column} as v from {self._table}"
            f" where rowid in ({one}, {other})"
        )
        self._connection.execute(
            f"update {self._table} set {column} = s.v from swapped s"
            f" where s.r = case {self._table}.rowid when {one} then {other} when {other} then {one} end"
        )
        return Mutation(self._table, "swap", column, before | self._moved_by_swap(column, before, one, other))

    def _moved_by_swap(self, column: str, before: frozenset[Place], one: int, other: int) -> frozenset[Place]:
        return self._where([one, other]) if column in self._place.split(", ") else before

    def _only_difference(self, one: int, other: int, column: str) -> bool:
        """Whether two rows differ in nothing else, so that exchanging it gives the same rows."""
        rest = f"select * exclude ({column}) from {self._table} where rowid in ({one}, {other})"
        return self._connection.execute(f"select count(*) from (select distinct * from ({rest}))").fetchone() == (1,)

    def _where(self, rows: list[int]) -> frozenset[Place]:
        wanted = ", ".join(map(str, rows))
        found = self._connection.execute(
            f"select {self._place} from {self._table} where rowid in ({wanted})"
        ).fetchall()
        return frozenset((topic, partition, offset) for topic, partition, offset in found)


def _other_values(column: str, kind: str) -> list[str]:
    """Return SQL for other values that a column of this type may hold."""
    if kind.startswith("MAP"):
        key = "'other'" if kind.startswith("MAP(VARCHAR") else "99"
        return [
            "null",
            f"map_concat({column}, map {{{key}: null}}::{kind})",
            f"map_from_entries(map_entries({column})[2:])",
        ]
    if kind.endswith("[]"):
        return ["null", f"{column}[2:]", f"list_append({column}, null)", f"list_reverse({column})"]
    if kind.startswith("STRUCT"):
        return ["null"]
    if kind == "BOOLEAN":
        return ["null", f"not {column}"]
    if kind in ("DOUBLE", "FLOAT"):
        return [
            "null",
            f"-{column}",
            f"{column} + 1e-9 * abs({column}) + 1e-30",
            "'nan'",
            "'infinity'",
            f"coalesce({column}, 0) + 1",
        ]
    if kind == "VARCHAR":
        return ["null", f"coalesce({column}, '') || ' '", f"upper({column})", f"reverse({column})", "''"]
    if kind == "TIMESTAMP WITH TIME ZONE":
        return ["null", f"{column} + interval 1 microsecond", f"{column} - interval 1 day"]
    if kind == "BLOB":
        return ["null", f"{column} || '\\x00'::blob"]
    return ["null", f"{column} + 1", f"{column} // 2", f"{column} % 2"]
