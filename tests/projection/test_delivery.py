"""Tests of what goes from one process to another: it arrives as it was, and an end that is gone is told."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pytest

from esper.projection.intake._delivery import receive, send, socket_pair


def test_what_is_sent_arrives() -> None:
    """Arrays of numpy and Arrow of several megabytes, empty ones and plain objects, one after the other."""
    table = pa.table({"id": pa.array(range(400_000), pa.int64()), "text": ["x" * (n % 7) for n in range(400_000)]})
    items = [np.arange(1_000_000), np.zeros(0), table, {"none": None}, pa.table({"empty": pa.array([], pa.string())})]
    ours, theirs = socket_pair()
    with ours, theirs:
        thread = threading.Thread(target=lambda: [send(theirs, item) for item in items])
        thread.start()
        found = [receive(ours) for _ in items]
        thread.join()
    for item, one in zip(items, found, strict=True):
        if isinstance(item, np.ndarray):
            np.testing.assert_array_equal(item, one)  # type: ignore[arg-type]  # what arrived has any type
        else:
            assert item == one


def test_an_end_that_is_gone_is_told() -> None:
    """Before an object and in the middle of one: EOFError, not a wait; sending says so too."""
    ours, theirs = socket_pair()
    theirs.sendall(b"\0\0\0\1")
    theirs.close()
    with pytest.raises(EOFError):
        receive(ours)
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        send(ours, np.zeros(10_000_000))
    ours.close()
