"""What ends a request for a kernel, as whoever waits for it reads the log."""

from __future__ import annotations

import pytest

from esper.core.kernel import make_request
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.oona import Event, Record
from esper.weatherlight._compiling import end_of

REQUEST = make_request("BP005", {}, layout="vector", in_shape=[8])


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (ly.CompileFinished(kernel_id="k", artifact_ref="r", strategy="eager"), "finished"),
        (ly.CompileFailed(kernel_id="k", reason="no", retried=False), "failed"),
        (ly.CompileFailed(kernel_id="k", reason="no", retried=True, retry_after_ms=5), None),
        (ly.CompileStarted(kernel_id="k", attempt=1), None),
        (ly.KernelCatalogUpdate(kernel_id="k"), None),
    ],
)
def test_only_an_end_ends_a_request(message: EventMessage, status: str | None) -> None:
    """Goal: who waits goes on waiting while the forge tries again. Method: each event of a job, judged alone."""
    record = Record("kernel-catalog", 0, 3, b"k", b"", (), 0)
    end = end_of(Event(record, message.meta, message), REQUEST)
    assert (end and end.status) == status
    assert end is None or (end.blueprint_id, end.shape) == ("BP005", (8,))
