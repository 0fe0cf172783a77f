"""Whether a fold's SELECT depends on each single record alone: not on the clock, nor on what stands beside it.

How records fall into batches is chance, and a rebuild's batches are others than those of the live fold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from esper.projection.sql import _sqltree as sqltree

#: Pure words that DuckDB has as macros, and the one function that turns a list into rows.
_PURE_EXTRA: Final = frozenset({"if", "nullif", "unnest"})
#: Clock words that need no parentheses and so look like columns.
_CLOCK_WORDS: Final = frozenset(
    {"current_date", "current_localtime", "current_localtimestamp", "current_time", "current_timestamp"}
    | {"localtime", "localtimestamp"}
)
#: Joins that pair rows by their places, or by their neighbours.
_BATCH_JOINS: Final = frozenset({"POSITIONAL", "ASOF"})


def impurity(tree: sqltree.Node) -> str:
    """Return why a fold's SELECT depends on more than each single record, or nothing."""
    impure = sqltree.functions(tree) - sqltree.builtin("scalar", stability=("CONSISTENT",)) - _PURE_EXTRA
    if impure:
        return f"{min(impure)} is not a pure function of one record"
    for node in sqltree.walk(tree):
        if node.get("modifiers") or node.get("group_expressions") or node.get("sample"):
            return "it sorts, groups, samples, limits or drops duplicates, which depends on the batch"
        if node.get("type") == "SET_OPERATION_NODE" or node.get("ref_type") in _BATCH_JOINS:
            return "it sets rows beside each other (union, except, intersect, positional or asof join)"
        columns = node.get("column_names") or [""]
        if len(columns) == 1 and columns[0].lower() in _CLOCK_WORDS:
            return f"{columns[0]} reads the clock"
    return _second_look(tree)


def _second_look(tree: sqltree.Node) -> str:
    """Return why one record's rows may depend on other records of its message, or nothing."""
    named = [node for node in sqltree.walk(tree) if node.get("type") == "BASE_TABLE"]
    if len(named) > 1:
        return "it names its message more than once, so that one record is held against others of its batch"
    first = tree["statements"][0]["node"]
    if not any(node.get("type") == "BASE_TABLE" for node in _outside_expressions(first.get("from_table"))):
        return "its message stands in a subquery, which reads the whole batch; name it after the first `from`"
    return ""


def _outside_expressions(node: object) -> Iterator[sqltree.Node]:
    """Yield every object of a FROM clause but for what stands in subqueries of expressions."""
    if isinstance(node, dict):
        if node.get("class") == "SUBQUERY":
            return
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for one in node:
            yield from _outside_expressions(one)
