"""Projections: topics folded into DuckDB tables that anybody can query, rebuild from the log and check against it."""

from esper.projection._event_tables import event_tables
from esper.projection._listing import list_projections
from esper.projection._past import log_source, sealed_marks
from esper.projection._query import AsOfOffsets, Query, export, fresh_query, is_folding, query, resolve_as_of
from esper.projection._rebuild import Built, CaughtUp, catch_up, replay, roll_back
from esper.projection._runs import run_document, runs_list
from esper.projection._verify import verify
from esper.projection.definitions._definition import Definition, load_definitions
from esper.projection.definitions._deletion import delete_all
from esper.projection.files._canonical import TableHash, canonical_row, row_digest
from esper.projection.records._columns import arrow_schema
from esper.projection.records._ledger import Disposition
from esper.projection.records._source import KafkaSource, MemorySource, RecordSource
from esper.projection.serving._projector import Projector, build_service

__all__ = [
    "AsOfOffsets",
    "Built",
    "CaughtUp",
    "Definition",
    "Disposition",
    "KafkaSource",
    "MemorySource",
    "Projector",
    "Query",
    "RecordSource",
    "TableHash",
    "arrow_schema",
    "build_service",
    "canonical_row",
    "catch_up",
    "delete_all",
    "event_tables",
    "export",
    "fresh_query",
    "is_folding",
    "list_projections",
    "load_definitions",
    "log_source",
    "query",
    "replay",
    "resolve_as_of",
    "roll_back",
    "row_digest",
    "run_document",
    "runs_list",
    "sealed_marks",
    "verify",
]
