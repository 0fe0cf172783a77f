"""The fast path from records to tables: whole batches, column by column."""

from esper.projection.columnar._batch import Batch, Int64s, out_of_order
from esper.projection.columnar._decoder import ArrowDecoder
from esper.projection.columnar._dispositions import APPLIED, Decided, decide
from esper.projection.columnar._known import KnownEvents, fingerprints, place_word
from esper.projection.columnar._ledger_rows import ledger_rows, progressed
from esper.projection.columnar._pruning import pruned

__all__ = [
    "APPLIED",
    "ArrowDecoder",
    "Batch",
    "Decided",
    "Int64s",
    "KnownEvents",
    "decide",
    "fingerprints",
    "ledger_rows",
    "out_of_order",
    "place_word",
    "progressed",
    "pruned",
]
