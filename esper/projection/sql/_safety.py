"""What a query may be: one statement that reads, calling only functions that stay inside the database.

A check of the statement's type alone is not enough: DuckDB types `with x as (insert ...) select ...` as a
SELECT and `explain analyze insert` as an EXPLAIN. So three fences stand one behind the other: the checks
here on the parser's own tree; the execution of the very Statement object that was checked, inside a
read-only transaction (`_reading`); and a database that can reach no file and no setting (`_database`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

import duckdb

from esper.core.errors import UsageError
from esper.projection.sql import _sqltree as sqltree

_SQL_BYTES_MAX: Final = 100_000
_TABLE_FUNCTIONS: Final = frozenset(
    {
        "duckdb_columns",
        "duckdb_functions",
        "duckdb_tables",
        "duckdb_types",
        "duckdb_views",
        "generate_series",
        "json_each",
        "json_tree",
        "range",
        "unnest",
    }
)
#: Volatile, or no plain function, but a reader may want them and they touch nothing.
_HARMLESS: Final = frozenset({"error", "gen_random_uuid", "random", "unnest", "uuid", "uuidv4", "uuidv7"})
#: Called stable by DuckDB, yet they tell of the process, wait, or run text as SQL.
_TELLING: Final = frozenset(
    {"current_query", "current_setting", "getvariable", "in_search_path", "json_deserialize_sql", "json_serialize_plan"}
    | {"json_serialize_sql", "pg_sleep", "txid_current"}
)
#: No interrupt reaches the inside of a call, and what a function allocates by itself is not counted by DuckDB:
#: `len(range(200000000))` took 14 GB and 80 s, `repeat('x', 2000000000)` 45 s, and a reservoir of two billion
#: samples, once an allocation failed, invalidated the whole database with the fold in it.
_UNBOUNDED: Final = frozenset({"array_resize", "bitstring", "list_resize", "repeat", "reservoir_quantile"})
#: What DuckDB's optimiser and its aggregate states are made of: nobody's vocabulary, and unchecked inside.
_INTERNAL: Final = frozenset({"combine", "combine_aggr", "finalize", "index_key", "to_aggregate_state"}) | frozenset(
    {"bitstring_byte_comparable", "timetz_byte_comparable", "variant_bytes_to_variant", "parse_duckdb_log_message"}
)
_INTERNAL_PREFIX: Final = "__internal_"
_REFUSED: Final = _TELLING | _UNBOUNDED | _INTERNAL
#: Functions that make a value as long as a number says: which of their arguments must be small constants.
_SIZED: Final = {"generate_series": slice(None), "lpad": slice(1, 2), "range": slice(None), "rpad": slice(1, 2)}
_FORMATS: Final = frozenset({"format", "printf"})
_SIZE_MAX: Final = 1_000
#: A width of four digits, or one that comes from another argument.
_WIDE_FORMAT: Final = re.compile(r"[0-9]{4}|%[^a-zA-Z%]*\*|\{[^{}]*:[^{}]*\{")
_EXPLAIN: Final = re.compile(r"explain\s+(analyze\s+)?", re.IGNORECASE)
#: Letters, digits, `_`, `$`, blanks and `-`: a name with a dot or slash would be looked for as a file.
_TABLE_NAME: Final = re.compile(r"[\w$ -]+")
_NEXT_STEP: Final = "Write one SELECT (or EXPLAIN of one) over the tables and views that `show tables` lists"


@dataclass(frozen=True)
class CheckedQuery:
    """A statement that only reads, and the names that stand in it where a table stands, each as its parts."""

    statement: duckdb.Statement
    tables: frozenset[tuple[str, ...]]


def check_query(cursor: duckdb.DuckDBPyConnection, sql: str) -> CheckedQuery:
    """Return the one statement that `sql` holds, ready to be executed on the same cursor.

    Raises:
        UsageError: it is not exactly one SELECT or EXPLAIN of a SELECT, or it calls what is not allowed.
    """
    if len(sql.encode()) > _SQL_BYTES_MAX:
        raise _refusal(f"it has more than {_SQL_BYTES_MAX} bytes")
    statements = _statements(cursor, sql)
    if len(statements) != 1:
        raise _refusal(f"it holds {len(statements)} statements")
    statement = statements[0]
    tree = _tree(cursor, _select_of(cursor, statement))
    _check_tree(tree)
    return CheckedQuery(statement, frozenset(sqltree.qualified_tables(tree)))


def _refusal(cause: str) -> UsageError:
    return UsageError("this query cannot be run", cause=cause, next_step=_NEXT_STEP)


def _statements(cursor: duckdb.DuckDBPyConnection, sql: str) -> list[duckdb.Statement]:
    try:
        return list(cursor.extract_statements(sql))
    except duckdb.Error as error:
        raise _refusal(" ".join(str(error).split())) from error


def _select_of(cursor: duckdb.DuckDBPyConnection, statement: duckdb.Statement) -> str:
    """Return the text of the SELECT that a statement is or explains."""
    if statement.type == duckdb.StatementType.SELECT:
        return str(statement.query)
    if statement.type != duckdb.StatementType.EXPLAIN:
        raise _refusal(f"it is {_article(statement.type.name)} statement, not a SELECT")
    text = str(statement.query)
    prefix = _EXPLAIN.match(text)
    if prefix is None:
        raise _refusal("it explains with options")
    inner = _statements(cursor, text[prefix.end() :])
    if len(inner) != 1 or inner[0].type != duckdb.StatementType.SELECT:
        raise _refusal("it explains something that is not one SELECT")
    return str(inner[0].query)


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "AEIOU" else f"a {word}"


def _tree(cursor: duckdb.DuckDBPyConnection, select: str) -> sqltree.Node:
    try:
        return sqltree.parse_select(cursor, select)
    except ValueError as error:
        raise _refusal(" ".join(str(error).split())) from error


def _check_tree(tree: sqltree.Node) -> None:
    for node in sqltree.walk(tree):
        kind = node.get("type", "")
        if isinstance(kind, str) and kind.endswith("_NODE") and kind not in sqltree.READING_NODES:
            raise _refusal(f"it writes ({kind.removesuffix('_NODE').replace('_', ' ').lower()})")
    sources = sqltree.table_functions(tree)
    if sources - _TABLE_FUNCTIONS:
        raise _refusal(f"the table function {min(sources - _TABLE_FUNCTIONS)} is not allowed")
    calls = sqltree.calls(tree)
    called = {call["function_name"].lower() for call in calls}
    if called - _allowed_functions():
        raise _refusal(f"the function {min(called - _allowed_functions())} is unknown or not allowed")
    for call in calls:
        _check_size(call)
    files = [name for name in sqltree.base_tables(tree) if not _TABLE_NAME.fullmatch(name)]
    if files:
        raise _refusal(f"{min(files)!r} is no table")


def _check_size(call: sqltree.Node) -> None:
    """Refuse a call that could make one value of any size."""
    name = call["function_name"].lower()
    arguments = [sqltree.literal(argument["expression"]) for argument in call.get("arguments", [])]
    if name in _SIZED and not all(_is_small(argument) for argument in arguments[_SIZED[name]]):
        raise _refusal(f"{name} makes values of any size unless its numbers are constants up to {_SIZE_MAX}")
    if name in _FORMATS and (not arguments or arguments[0] is None or _WIDE_FORMAT.search(arguments[0])):
        raise _refusal(f"the text that {name} fills must be a constant with widths below {_SIZE_MAX}")


def _is_small(literal: str | None) -> bool:
    return literal is not None and re.fullmatch(r"-?[0-9]{1,4}", literal) is not None and abs(int(literal)) <= _SIZE_MAX


@cache
def _allowed_functions() -> frozenset[str]:
    stable = sqltree.builtin("scalar", stability=("CONSISTENT", "CONSISTENT_WITHIN_QUERY"))
    others = sqltree.builtin("aggregate", "window", "macro")
    volatile = sqltree.builtin("scalar", stability=("VOLATILE",))
    allowed = (stable | others | {"generate_series", "range"}) - volatile - _REFUSED
    return frozenset(name for name in allowed if not name.startswith(_INTERNAL_PREFIX)) | _HARMLESS
