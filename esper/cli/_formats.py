"""The forms in which rows leave `esper sql`: JSON, JSON lines, CSV and Parquet, on stdout or in a file."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from esper.cli._console import plain
from esper.core.errors import OperationFailed, UsageError
from esper.core.ids import new_event_id

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS: Final = 10_000


class Format(StrEnum):
    """How rows are written."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


def format_of(given: Format | None, *, json: bool, output: Path | None) -> Format:
    """Return the form that the options ask for.

    Raises:
        UsageError: they contradict each other, or ask for what the place cannot take.
    """
    if json and given not in (None, Format.JSON):
        raise UsageError(f"--json and --format {given} contradict each other", next_step="Leave one of them out")
    if json:
        return Format.JSON
    if given is not None:
        chosen = given
    elif output is None:
        chosen = Format.TABLE
    else:
        chosen = _by_suffix(output)
    if chosen is Format.TABLE and output is not None:
        raise UsageError("a table is for the eye", next_step="Write --format csv, json, jsonl or parquet into a file")
    if chosen is Format.PARQUET and output is None and sys.stdout.isatty():
        raise UsageError(
            "Parquet cannot be shown on a terminal", next_step="Add --output FILE.parquet, or send stdout into a file"
        )
    return chosen


def _by_suffix(output: Path) -> Format:
    suffix = output.suffix.removeprefix(".").lower()
    if suffix in set(Format) - {Format.TABLE}:
        return Format(suffix)
    raise UsageError(f"{output} does not say its form", next_step="Add --format csv, json, jsonl or parquet")


def parameter(text: str) -> object:
    """Return what a text on the command line stands for: a JSON number, string, true, false or null, or itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, list | dict) else value


def write_standard_output(table: pa.Table, form: Format) -> None:
    """Write rows on stdout."""
    sys.stdout.flush()
    _write(table, form, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def write_rows(table: pa.Table, form: Format, path: Path) -> None:
    """Write rows into a file, which appears whole or not at all.

    Raises:
        OperationFailed: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{new_event_id()}")
    try:
        with temporary.open("wb") as file:
            _write(table, form, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OperationFailed(f"{path} cannot be written", cause=str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _write(table: pa.Table, form: Format, sink: IO[bytes]) -> None:
    if form is Format.PARQUET:
        _write_parquet(table, sink)
        return
    text = io.TextIOWrapper(sink, encoding="utf-8", newline="", write_through=True)
    try:
        if form is Format.CSV:
            _write_csv(table, text)
        else:
            _write_json(table, text, lines=form is Format.JSONL)
    finally:
        text.detach()


def _write_parquet(table: pa.Table, sink: IO[bytes]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    try:
        pq.write_table(table, buffer)
    except pa.ArrowException as error:
        raise UsageError(
            "the rows cannot be written as Parquet", cause=str(error), next_step="Cast that column, or use another form"
        ) from error
    sink.write(memoryview(buffer.getvalue()))


def _write_json(table: pa.Table, sink: IO[str], *, lines: bool) -> None:
    separator = ""
    sink.write("" if lines else "[")
    for row in _rows(table):
        sink.write(separator + json.dumps(plain(row), default=str, allow_nan=False))
        separator = "\n" if lines else ", "
    sink.write(("\n" if table.num_rows else "") if lines else "]\n")


def _write_csv(table: pa.Table, sink: IO[str]) -> None:
    """Write RFC 4180 with a header; nulls are empty, and what is nested is JSON."""
    writer = csv.writer(sink, lineterminator="\r\n")
    writer.writerow(table.column_names)
    for row in _rows(table):
        writer.writerow([_csv_cell(value) for value in row.values()])


def _csv_cell(value: object) -> object:
    if isinstance(value, Mapping | list):
        return json.dumps(plain(value), default=str, allow_nan=False)
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.hex() if isinstance(value, bytes) else value


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        yield from batch.to_pylist(maps_as_pydicts="lossy")
