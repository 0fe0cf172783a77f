"""From tables of decisions and of field reports to plain arrays; each kind of decision is looked at once.

A kind is what decisions share whose observations have the same names and whose heads have the same actions: those of
one host under one set of options. n: decisions of a kind; V: values of an observation; A: actions of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from esper.core.policy import OBSERVATION_SCHEMA

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

#: Between names in a key, where none of them holds it: ASCII's unit and record separators.
_UNIT: Final = "\x1f"
_GROUP: Final = "\x1e"


@dataclass(frozen=True)
class HeadColumns:
    """One head of all decisions of a kind."""

    name: str
    actions: tuple[str, ...]
    mask: Flags  # [n, A]
    probabilities: Floats  # [n, A]
    chosen: Ints  # [n]


@dataclass(frozen=True)
class DecisionColumns:
    """Decisions of one kind, in the order in which they were read."""

    names: tuple[str, ...]
    decision_ids: pa.Array
    run_ids: pa.Array
    policies: pa.Array
    digests: pa.Array
    #: Partition and offset: where the log holds them, which orders them whatever order they were read in.
    partitions: Ints
    offsets: Ints
    epochs: Ints
    log_probabilities: Floats
    observations: Floats  # [n, V]
    heads: tuple[HeadColumns, ...]

    def __len__(self) -> int:
        return len(self.epochs)


def decision_columns(table: pa.Table) -> Iterator[DecisionColumns]:
    """Yield the decisions of a table kind by kind; those of another observation schema are left out."""
    table = table.filter(pc.equal(table["observation_schema"], OBSERVATION_SCHEMA)).combine_chunks()
    if not len(table):
        return
    keys = _kinds(table)
    for code in range(len(keys.dictionary)):
        rows = np.flatnonzero(keys.indices.to_numpy() == code)
        found = _one_kind(table.take(pa.array(rows)) if len(rows) < len(table) else table)
        if found is not None:
            yield found


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _kinds(table: pa.Table) -> pa.DictionaryArray:
    """Return a key for each decision that says its names and its heads' actions."""
    heads = _one(table["heads"])
    flat = heads.flatten()
    actions = pc.binary_join(flat.field("actions"), _UNIT)
    each = pc.binary_join_element_wise(flat.field("name"), actions, _UNIT)
    whole = pc.binary_join(pa.ListArray.from_arrays(heads.offsets, each), _GROUP)
    names = pc.binary_join(_one(table["observation_names"]), _UNIT)
    return pc.dictionary_encode(pc.binary_join_element_wise(names, whole, _GROUP))


def _one_kind(table: pa.Table) -> DecisionColumns | None:
    """Return decisions of one kind; None where lengths do not fit the names, so that nothing can be read from them."""
    count = len(table)
    names = tuple(table["observation_names"][0].as_py())
    heads = _one(table["heads"])
    values = _flat(_one(table["observation"]))
    first = [(head["name"], tuple(head["actions"])) for head in heads[0].as_py()]
    flat = heads.flatten()
    width = sum(len(actions) for _, actions in first)
    masks, shares = _flat(flat.field("mask")), _flat(flat.field("probabilities"))
    if len(values) != count * len(names) or len(masks) != count * width or len(shares) != count * width:
        return None
    masks, shares = masks.reshape(count, width), shares.reshape(count, width)
    chosen = flat.field("chosen").to_numpy(zero_copy_only=False).astype(np.int64).reshape(count, len(first))
    found, begin = [], 0
    for place, (name, actions) in enumerate(first):
        end = begin + len(actions)
        found.append(
            HeadColumns(name, actions, masks[:, begin:end].astype(np.bool_), shares[:, begin:end], chosen[:, place])
        )
        begin = end
    return DecisionColumns(
        names=names,
        decision_ids=_one(table["meta"]).field("event_id"),
        run_ids=_one(table["run_id"]),
        policies=_one(table["policy"]),
        digests=_one(table["policy_digest"]),
        partitions=table["topic_partition"].to_numpy().astype(np.int64),
        offsets=table["record_offset"].to_numpy().astype(np.int64),
        epochs=table["epoch"].to_numpy().astype(np.int64),
        log_probabilities=table["log_probability"].to_numpy().astype(np.float64),
        observations=values.reshape(count, len(names)).astype(np.float64),
        heads=tuple(found),
    )


def _flat(lists: pa.Array) -> npt.NDArray[Any]:
    """Return the elements of all lists of a column."""
    found: npt.NDArray[Any] = lists.flatten().to_numpy(zero_copy_only=False)
    return found


@dataclass(frozen=True)
class ReportColumns:
    """Field reports, in the order in which they were read; a figure that a report lacks is NaN."""

    decision_ids: pa.Array
    offsets: Ints
    terminated: Flags
    truncated: Flags
    append_ms: Ints
    figures: dict[str, Floats]

    def __len__(self) -> int:
        return len(self.terminated)


def report_columns(table: pa.Table, figures: Sequence[str]) -> ReportColumns:
    """Return the reports of a table with some of their metrics."""
    metrics = _one(table["metrics"])
    keys, values = metrics.keys, metrics.items.to_numpy(zero_copy_only=False)
    lengths = np.diff(metrics.offsets.to_numpy())
    owners = np.repeat(np.arange(len(table)), lengths)
    begin = int(metrics.offsets[0].as_py()) if len(metrics) else 0
    keys, values = keys[begin : begin + len(owners)], values[begin : begin + len(owners)]
    found = {}
    for name in figures:
        places = np.flatnonzero(pc.equal(keys, name).to_numpy(zero_copy_only=False))
        column = np.full(len(table), np.nan)
        column[owners[places]] = values[places]
        found[name] = column
    return ReportColumns(
        decision_ids=_one(table["decision_id"]),
        terminated=table["terminated"].to_numpy().astype(np.bool_),
        truncated=table["truncated"].to_numpy().astype(np.bool_),
        offsets=table["record_offset"].to_numpy().astype(np.int64),
        append_ms=pc.cast(_one(table["append_time"]), pa.int64()).to_numpy() // 1_000,
        figures=found,
    )
