"""The JSON documents of `esper runs`, read from the projection `runs`."""

from __future__ import annotations

from typing import Any, Final

from esper.projection._query import Query

_RUN: Final = (
    "run_id, task, host, policy, seed, epochs, status, accuracy, loss, parameters, multiply_adds,"
    " multiply_adds_per_sample, digest, seeds, failure, failure_detail"
)
_EPOCH: Final = "epoch, train_loss, val_loss, val_accuracy, digest, command_id, command, outcome, latency_ms"


def run_document(query: Query, run_id: str) -> dict[str, Any] | None:
    """Return what `runs show` prints of one run, or None when the log knows none of that id.

    The fields of `esper train`, with `epochs` as a list of `{epoch, train_loss, val_loss, val_accuracy, digest,
    command_id, command, outcome, latency_ms}`. `outcome` is "applied", "rejected:REASON" or "none:REASON", null
    while there is none; accuracy and loss of the test set are null until the run has finished. `failure` and
    `failure_detail` say why a run failed, and are null for any other.
    """
    runs = query(f"select {_RUN} from runs where run_id = ?", [run_id]).to_pylist()  # noqa: S608 - our own column names
    if not runs:
        return None
    epochs = query(f"select {_EPOCH} from epochs where run_id = ? order by epoch", [run_id])  # noqa: S608 - the same
    return {**runs[0], "epochs": epochs.to_pylist()}


def runs_list(query: Query) -> list[dict[str, Any]]:
    """Return every run as `esper train` prints it, with why it failed, the oldest request first."""
    rows: list[dict[str, Any]] = query(f"select {_RUN} from runs order by requested_at, run_id").to_pylist()  # noqa: S608 - the same
    return rows
