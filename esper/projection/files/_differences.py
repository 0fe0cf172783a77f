"""Which rows of a table differ from what the log gives, by place: the question after two hashes did."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

import duckdb
import pyarrow as pa

from esper.leyline import full_name
from esper.oona import TopicCatalog
from esper.projection.definitions._definition import Definition
from esper.projection.files._contents import PROGRESS
from esper.projection.records._ledger import PROGRESS_SCHEMA, Progress, progress_table

#: Places that are named of each table; the counts are of all.
EXAMPLES: Final = 20
_KINDS: Final = ("changed", "missing", "extra")
_UNTIL_SCHEMA: Final = pa.schema([PROGRESS_SCHEMA.field(name) for name in ("topic", "topic_partition", "next_offset")])

#: Rows that were folded after the first look are no difference: their places lie beyond its offsets.
_COMPARE: Final = """
create temp table places as
with live as (
  select l.* from (select coalesce(topic, $topic) as topic, * exclude (topic) from ours) l
  left join before b on b.topic = l.topic and b.topic_partition = l.topic_partition
  left join now n on n.topic = l.topic and n.topic_partition = l.topic_partition
  where not coalesce(l.record_offset >= b.next_offset and l.record_offset < n.next_offset, false)
),
replayed as (select coalesce(topic, $topic) as topic, * exclude (topic) from theirs),
extra as (from live except all from replayed),
missing as (from replayed except all from live)
select case when min(side) <> max(side) then 'changed' when min(side) = 1 then 'extra' else 'missing' end as kind,
  topic, topic_partition as partition, record_offset as offset, name
from (select 1 as side, * from extra union all select 2, * from missing)
group by all
"""


def topic_of_table(definition: Definition, table: str, topics: TopicCatalog) -> str | None:
    """Return the topic that a fact table's rows come from; None for the engine's tables, which name theirs."""
    for fold in definition.folds:
        if fold.table == table:
            return topics.topic_of(full_name(fold.message)).name
    return None


def differing_rows(
    table: str, live: pa.Table, replayed: pa.Table, *, topic: str | None, until: Iterable[Progress]
) -> dict[str, Any]:
    """Return where two tables of digests differ, `{table, changed, missing, extra, rows}`.

    Both are `DIGESTS_SCHEMA`; `live` was read some time after the offsets of `until` and may have gone on since.
    """
    now = [Progress(**one) for one in json.loads((live.schema.metadata or {}).get(b"progress", b"[]"))]
    with duckdb.connect(":memory:") as connection:
        connection.register("ours", live)
        connection.register("theirs", replayed)
        connection.register("before", _ends(until))
        connection.register("now", _ends(now))
        connection.execute(_COMPARE, {"topic": topic})
        counts = dict(connection.execute("select kind, count(*) from places group by all").fetchall())
        rows = connection.sql(f"from places order by all limit {EXAMPLES}").to_arrow_table().to_pylist()
    return {"table": table, **{kind: counts.get(kind, 0) for kind in _KINDS}, "rows": rows}


def differing_progress(live: Sequence[Progress], replayed: Sequence[Progress]) -> dict[str, Any]:
    """Return which partitions' offsets and counts differ, as `differing_rows` does."""
    rows = []
    for place in sorted({(one.topic or "", one.partition or 0) for one in (*live, *replayed)}):
        ours = [one for one in live if (one.topic or "", one.partition or 0) == place]
        theirs = [one for one in replayed if one.place == place]
        if ours != theirs:
            kind = "changed" if ours and theirs else "extra" if ours else "missing"
            rows.append({"kind": kind, "topic": place[0], "partition": place[1], "offset": None, "name": None})
    return {"table": PROGRESS, **{kind: sum(row["kind"] == kind for row in rows) for kind in _KINDS}, "rows": rows}


def _ends(progress: Iterable[Progress]) -> pa.Table:
    return progress_table(list(progress)).select(_UNTIL_SCHEMA.names)
