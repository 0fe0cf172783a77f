"""From where and how fast each epoch of a run can be restored."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from esper.oona import Fabric

#: Runs one SELECT with parameters over the projections and returns its rows.
Rows = Callable[[str, list[object]], list[dict[str, Any]]]

_CHECKPOINTS = (
    "select epoch, arg_min(blob_digest, record_offset) as blob_digest, arg_min(size_bytes, record_offset) as size_bytes"
    " from run_checkpoints where run_id = ? group by epoch order by epoch"
)
_PACKETS = (
    "select epoch, epoch_ms(min(append_time)) as appended_ms from run_states where run_id = ? group by epoch"
    " order by epoch"
)


def restore_outlook(fabric: Fabric, rows: Rows, run_id: str) -> dict[str, Any]:
    """Return what `runs show` says of restoring: the checkpoints, those stored here marked, and each epoch's way.

    `seconds_per_epoch` is the median time between two packets of the run as it was lived, waits for commands
    included; null for a run of one epoch. A checkpoint that lies here may still be damaged: `runs restore` looks.
    """
    from esper.core.kernel import DirectoryBlobStore

    store = DirectoryBlobStore(fabric.home.blobs)
    kept = [{**row, "stored": store.has(row["blob_digest"])} for row in rows(_CHECKPOINTS, [run_id])]
    packets = rows(_PACKETS, [run_id])
    seconds = seconds_per_epoch([row["appended_ms"] for row in packets])
    stored = [row["epoch"] for row in kept if row["stored"]]
    return {
        "seconds_per_epoch": seconds,
        "checkpoints": kept,
        "epochs": ways([row["epoch"] for row in packets], stored, seconds),
    }


def seconds_per_epoch(appended_ms: Sequence[float]) -> float | None:
    """Return the median seconds between packets; None where there are no two."""
    apart = [later - sooner for sooner, later in itertools.pairwise(appended_ms)]
    return median(apart) / 1000.0 if apart else None


def ways(epochs: Iterable[int], stored: Sequence[int], seconds: float | None) -> list[Mapping[str, Any]]:
    """Return for each epoch the checkpoint it is restored from (0: the run's beginning) and what is computed; pure."""
    found: list[Mapping[str, Any]] = []
    for epoch in epochs:
        start = max((kept for kept in stored if kept <= epoch), default=0)
        repeated = epoch - start
        about = None if seconds is None else repeated * seconds
        found.append({"epoch": epoch, "from_epoch": start, "repeated_epochs": repeated, "seconds": about})
    return found
