"""Reads SQL the way DuckDB does: its own parser's tree, walked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import duckdb

Node = dict[str, Any]

#: Expressions that read columns without naming them.
_UNNAMED: Final = frozenset({"STAR", "POSITIONAL_REFERENCE"})
#: Query nodes that only read; DuckDB 2.0 has others (INSERT_QUERY_NODE, ...) for writing CTEs.
READING_NODES: Final = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})


def parse_select(cursor: duckdb.DuckDBPyConnection, sql: str) -> Node:
    """Return the tree of one SELECT.

    Raises:
        ValueError: it is no SELECT, or DuckDB cannot parse it; the text says why.
    """
    row = cursor.execute(
        "select json_serialize_sql($1::varchar, skip_null := true, skip_empty := true)", [sql]
    ).fetchone()
    assert row is not None, "a scalar query has one row"
    document = json.loads(row[0])
    if document["error"]:
        raise ValueError(document["error_message"])
    return {"statements": document["statements"]}


def walk(node: object) -> Iterator[Node]:
    """Yield every object of a tree, the outer ones first."""
    pending = [node]
    while pending:  # ends with the tree
        current = pending.pop()
        if isinstance(current, dict):
            yield current
            pending.extend(current.values())
        elif isinstance(current, list):
            pending.extend(current)


def base_tables(tree: Node) -> set[str]:
    """Return the names that stand where a table stands."""
    return {node["table_name"] for node in walk(tree) if node.get("type") == "BASE_TABLE"}


def table_functions(tree: Node) -> set[str]:
    """Return the names of functions that stand where a table stands."""
    return {node["function"]["function_name"] for node in walk(tree) if node.get("type") == "TABLE_FUNCTION"}


def functions(tree: Node) -> set[str]:
    """Return the names of all functions and operators that are called, those of `table_functions` too."""
    return {node["function_name"].lower() for node in walk(tree) if "function_name" in node}


def qualified_tables(tree: Node) -> set[tuple[str, ...]]:
    """Return the names that stand where a table stands, with their schema and catalog where they have them."""
    parts = ("catalog_name", "schema_name", "table_name")
    nodes = (node for node in walk(tree) if node.get("type") == "BASE_TABLE")
    return {tuple(node[part] for part in parts if node.get(part)) for node in nodes}


def calls(tree: Node) -> list[Node]:
    """Return the calls of functions and operators inside expressions: those that do not stand for a table."""
    tables = {id(node["function"]) for node in walk(tree) if node.get("type") == "TABLE_FUNCTION"}
    return [node for node in walk(tree) if "function_name" in node and id(node) not in tables]


def column_paths(tree: Node) -> frozenset[tuple[str, ...]] | None:
    """Return, in lower case, the paths of columns and of fields in them that are read from the one table of a SELECT.

    A path may name more than is there: a lambda's parameter, or another relation. None where columns may be read
    that no path names, or are told by their places.
    """
    tables = [node for node in walk(tree) if node.get("type") == "BASE_TABLE"]
    if any(node.get("column_name_alias") for node in tables):
        return None
    names = {str(node[key]).lower() for node in tables for key in ("table_name", "alias") if node.get(key)}
    paths: set[tuple[str, ...]] = set()
    for node in walk(tree):
        if node.get("class") in _UNNAMED or node.get("using_columns") or node.get("ref_type") == "NATURAL":
            return None
        path = tuple(str(name).lower() for name in node.get("column_names", ()))
        # Behind a table's name, which may itself stand behind those of its schema and catalog.
        inner = [path[place + 1 :] for place, name in enumerate(path) if name in names]
        if () in inner:
            return None  # A table's name stands for a row of it.
        paths |= {one for one in (path, *inner) if one}
    return frozenset(paths)


def literal(node: Node) -> str | None:
    """Return the text of a constant, or None for any other expression."""
    found = node.get("literal")
    return str(found["text"]) if isinstance(found, dict) and "text" in found else None


@cache
def builtin(*kinds: str, stability: tuple[str, ...] = ()) -> frozenset[str]:
    """Return DuckDB's own functions of these kinds ("scalar", "aggregate", "window", "macro").

    `stability` narrows them to those that DuckDB itself calls "CONSISTENT", "CONSISTENT_WITHIN_QUERY", ...
    """
    connection = duckdb.connect(":memory:")
    try:
        rows = connection.execute(
            "select lower(function_name), coalesce(stability, '') from duckdb_functions()"
            " where internal and list_contains($1::varchar[], function_type)",
            [list(kinds)],
        ).fetchall()
    finally:
        connection.close()
    return frozenset(name for name, found in rows if not stability or found in stability)
