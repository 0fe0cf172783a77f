"""Asks the forge for kernels and waits for their ends in the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import OperationFailed
from esper.core.kernel import kernel_id
from esper.leyline import messages as ly
from esper.oona import Event, Fabric, Reader
from esper.weatherlight._readiness import READY_SECONDS, await_answering
from esper.weatherlight._supervisor import Supervisor

#: Who makes kernels: Karn says what may be made, Tezzeret makes it.
MAKERS = ("karn", "tezzeret")

_TOPIC = "kernel-catalog"
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Compiled:
    """What became of one request for a kernel."""

    blueprint_id: str
    layout: str
    shape: tuple[int, ...]
    kernel_id: str
    #: "finished" or "failed".
    status: str
    artifact_ref: str = ""
    strategy: str = ""
    compile_ms: float = 0.0
    #: Why it failed, or why it is not the strategy that was asked for.
    reason: str = ""


def compile_kernels(
    fabric: Fabric,
    requests: Sequence[ly.KernelRequestSpec],
    supervisor: Supervisor,
    *,
    seconds: float,
    ready_seconds: float = READY_SECONDS,
    tell: Callable[[Compiled], None] = lambda _: None,
) -> list[Compiled]:
    """Ask for each kernel, wait for the end of each, and return them in the order asked; `tell` hears of each.

    A kernel that is there already ends at once. One that fails and is tried again has not ended.

    Raises:
        OperationFailed: not all ended within `seconds` after the makers were at work; what was asked for stays asked.
        NotReadyError: a member cannot run, or none answers within `ready_seconds`.
        BrokerUnavailable: the broker was away for longer than `broker_retry_seconds`.
    """
    await_answering(fabric, supervisor, answering=MAKERS, seconds=ready_seconds)
    partitions = range(fabric.topics[_TOPIC].partitions)
    with (
        fabric.reader({(_TOPIC, partition): "end" for partition in partitions}) as reader,
        fabric.publisher("cli") as publisher,
    ):
        asked: dict[str, ly.KernelRequestSpec] = {}
        for request in requests:
            name = kernel_id(request)
            receipt = publisher.publish(ly.CompileRequested(kernel_id=name, request=request), key=name)
            asked[receipt.event_id] = request
        ends = _ends(reader, asked, supervisor, Deadline(seconds, clock=SYSTEM_CLOCK), tell)
    if missing := [request for event_id, request in asked.items() if event_id not in ends]:
        raise OperationFailed(
            f"{len(missing)} of {len(asked)} kernels were not made within {seconds:g} s",
            cause=f"the first is one of {missing[0].blueprint_id} for layout {missing[0].layout}",
            next_step="they stay asked for; run the command again to wait on, `esper status` shows the members",
        )
    return [ends[event_id] for event_id in asked]


def _ends(
    reader: Reader,
    asked: dict[str, ly.KernelRequestSpec],
    supervisor: Supervisor,
    deadline: Deadline,
    tell: Callable[[Compiled], None],
) -> dict[str, Compiled]:
    ends: dict[str, Compiled] = {}
    while len(ends) < len(asked) and not deadline.expired:
        supervisor.check()
        for event in reader.read(_POLL_SECONDS):
            cause = event.meta.causation_id
            end = end_of(event, asked[cause]) if cause in asked and cause not in ends else None
            if end is not None:
                ends[cause] = end
                tell(end)
    return ends


def end_of(event: Event, request: ly.KernelRequestSpec) -> Compiled | None:
    """Return what an event of kernel-catalog says of the end of the request that caused it; None: not ended. Pure."""
    message = event.message
    shape = tuple(request.in_shape)
    if isinstance(message, ly.CompileFinished):
        return Compiled(
            request.blueprint_id,
            request.layout,
            shape,
            message.kernel_id,
            "finished",
            message.artifact_ref,
            message.strategy,
            message.compile_ms,
            message.fallback_reason,
        )
    if isinstance(message, ly.CompileFailed) and not message.retried:
        return Compiled(request.blueprint_id, request.layout, shape, message.kernel_id, "failed", reason=message.reason)
    return None
