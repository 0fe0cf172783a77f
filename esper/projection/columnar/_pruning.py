"""Handing over no more of a table than is read: what is not there costs nothing to bring into the database."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa

#: From the column down, in lower case, as SQL names are compared.
Path = tuple[str, ...]


def pruned(table: pa.Table, paths: Collection[Path] | None) -> pa.Table:
    """Return a table without the columns, and without the fields of structs, that no path leads to; None keeps all.

    Lists and maps are kept whole, and so is a struct of which a path names no field.
    """
    if paths is None:
        return table
    named = [column for column in table.schema.names if any(path[0] == column.lower() for path in paths)]
    columns = named or table.schema.names[:1]  # A table without columns has no rows.
    arrays = [
        pa.chunked_array(
            [_pruned(chunk, _below(paths, name)) for chunk in table.column(name).chunks],
            _kept(table.schema.field(name).type, _below(paths, name)),
        )
        for name in columns
    ]
    return pa.Table.from_arrays(arrays, names=columns)


def _below(paths: Collection[Path], name: str) -> set[Path]:
    """Return what is left of the paths that lead through `name`."""
    return {path[1:] for path in paths if path and path[0] == name.lower()}


def _fields(kind: pa.DataType, paths: Collection[Path]) -> list[pa.Field] | None:
    """Return the fields of a struct that paths lead to; None where it is kept whole."""
    if not pa.types.is_struct(kind) or () in paths:
        return None
    known = {field.name.lower(): field for field in kind}
    return [known[name] for name in known if _below(paths, name)] if {one[0] for one in paths} <= known.keys() else None


def _kept(kind: pa.DataType, paths: Collection[Path]) -> pa.DataType:
    fields = _fields(kind, paths)
    if fields is None:
        return kind
    return pa.struct([field.with_type(_kept(field.type, _below(paths, field.name))) for field in fields])


def _pruned(array: pa.Array, paths: Collection[Path]) -> pa.Array:
    fields = _fields(array.type, paths)
    if fields is None:
        return array
    below = {field.name: _below(paths, field.name) for field in fields}
    return pa.StructArray.from_arrays(
        [_pruned(array.field(field.name), below[field.name]) for field in fields],
        fields=list(_kept(array.type, paths)),
        mask=array.is_null() if array.null_count else None,
    )
