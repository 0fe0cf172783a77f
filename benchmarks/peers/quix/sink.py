"""Quix Streams folding the same topic into the same DuckDB table; run by its own Python, which knows nothing of esper.

python sink.py BOOTSTRAP TOPIC DESCRIPTORS SCHEMA RECORDS -> one line of JSON: {"records", "seconds"}

It is written to be fast: whole batches go into DuckDB by Arrow. It verifies nothing and keeps no account.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from quixstreams import Application
from quixstreams.models.serializers.protobuf import ProtobufDeserializer
from quixstreams.sinks import BatchingSink, SinkBatch

_TYPE = "esper.leyline.v1.FieldReport"
_TABLE = "field_report_facts"
_RENAMED = {
    "training_run_id": "run_id",
    "observation_window_begin_epoch": "window_begin_epoch",
    "observation_window_epochs": "window_epochs",
    "tamiyo_policy_version": "policy_version",
}


def message_class(path: Path) -> type:
    """Return the event's class from a descriptor set."""
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(path.read_bytes()).file:
        pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(_TYPE))


def flat(report: dict[str, Any]) -> dict[str, Any]:
    """Return an event as the table's row, without its place in the log."""
    row = {_RENAMED.get(name, name): value for name, value in report.items()}
    meta = row.pop("meta")
    row["event_id"], row["event_time"] = meta["event_id"], meta["time"]
    return row


class DuckSink(BatchingSink):
    """Appends each batch to the table in one transaction."""

    def __init__(self, path: str, schema: str) -> None:
        super().__init__()
        self._connection = duckdb.connect(path)
        self._connection.execute("set TimeZone = 'UTC'")
        self._connection.execute(schema)
        described = self._connection.execute(f"describe {_TABLE}").fetchall()
        self._columns = [(row[0], row[1]) for row in described]
        self.written = 0

    def write(self, batch: SinkBatch) -> None:
        """Write a batch."""
        rows = [
            item.value
            | {"topic_partition": batch.partition, "record_offset": item.offset, "append_time": item.timestamp}
            for item in batch
        ]
        columns = {name: [row.get(name) for row in rows] for name, _ in self._columns}
        for name in ("metrics", "reward_parts"):
            columns[name] = pa.array(
                [list((value or {}).items()) for value in columns[name]], pa.map_(pa.string(), pa.float64())
            )
        columns["append_time"] = pa.array(columns["append_time"], pa.timestamp("ms", tz="UTC"))
        columns["follow_up_actions"] = pa.array(
            [value or [] for value in columns["follow_up_actions"]],
            pa.list_(pa.struct([("action_type", pa.string()), ("rationale", pa.string())])),
        )
        self._connection.register("batch", pa.table(columns))
        wanted = ", ".join(f"{name}::{kind} as {name}" for name, kind in self._columns)
        self._connection.execute(f"insert into {_TABLE} by name select {wanted} from batch")  # noqa: S608 - names of our own schema
        self.written += len(rows)


def main() -> None:
    """Fold `RECORDS` events and say how long it took from the first one on."""
    bootstrap, topic, descriptors, schema, records = sys.argv[1:]
    began: list[float] = []

    def started(report: dict[str, Any]) -> dict[str, Any]:
        if not began:
            began.append(time.perf_counter())
        return flat(report)

    with tempfile.TemporaryDirectory() as folder:
        application = Application(
            broker_address=bootstrap,
            consumer_group=f"quix-{time.time_ns()}",
            auto_offset_reset="earliest",
            state_dir=folder,
            loglevel="ERROR",
            commit_interval=1.0,
            auto_create_topics=False,
        )
        deserializer = ProtobufDeserializer(msg_type=message_class(Path(descriptors)), preserving_proto_field_name=True)
        sink = DuckSink(f"{folder}/quix.duckdb", Path(schema).read_text())
        application.dataframe(application.topic(topic, value_deserializer=deserializer)).apply(started).sink(sink)
        application.run(count=int(records), timeout=60.0)
        json.dump({"records": sink.written, "seconds": time.perf_counter() - began[0]}, sys.stdout)


if __name__ == "__main__":
    main()
