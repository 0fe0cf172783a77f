"""What a query may be: one statement that reads, calling only functions that stay inside the database.

A check of the statement's type alone is not enough: DuckDB types `with x as (insert ...) select ...` as a
SELECT and `explain analyze insert` as an EXPLAIN. So three fences stand one behind the other: the checks
here on the parser's own tree; the execution of the very Statement object that was checked, inside a
read-only transaction (`_reading`); and a database that can reach no file and no setting (`_database`).
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final

import duckdb

from esper.core.errors import UsageError
from esper.projection import _sqltree as sqltree

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
#: One call may make a value of gigabytes, and no interrupt reaches the inside of a call: `repeat('x', 2e9)` held
#: every other query, and the fold, for 45 s.
_UNBOUNDED: Final = frozenset({"array_resize", "list_resize", "repeat"})
_REFUSED: Final = _TELLING | _UNBOUNDED
_EXPLAIN: Final = re.compile(r"explain\s+(analyze\s+)?", re.IGNORECASE)
#: Letters, digits, `_`, `$`, blanks and `-`: a name with a dot or slash would be looked for as a file.
_TABLE_NAME: Final = re.compile(r"[\w$ -]+")
_NEXT_STEP: Final = "Write one SELECT (or EXPLAIN of one) over the tables and views that `show tables` lists"


def check_query(cursor: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
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
    _check_tree(_tree(cursor, _select_of(cursor, statement)))
    return statement


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
    called = sqltree.functions(tree) - sources
    if called - _allowed_functions():
        raise _refusal(f"the function {min(called - _allowed_functions())} is unknown or not allowed")
    files = [name for name in sqltree.base_tables(tree) if not _TABLE_NAME.fullmatch(name)]
    if files:
        raise _refusal(f"{min(files)!r} is no table")


@cache
def _allowed_functions() -> frozenset[str]:
    stable = sqltree.builtin("scalar", stability=("CONSISTENT", "CONSISTENT_WITHIN_QUERY"))
    others = sqltree.builtin("aggregate", "window", "macro")
    return ((stable | others) - sqltree.builtin("scalar", stability=("VOLATILE",)) - _REFUSED) | _HARMLESS
