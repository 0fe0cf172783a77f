"""Kernels that were asked for: one request on its way for each, and the reply that it got."""

from __future__ import annotations

from typing import Final

from esper.core.clock import Clock
from esper.core.errors import UsageError
from esper.core.ids import EventId, new_event_id
from esper.core.kernel import kernel_id
from esper.core.ports import KernelUnavailable
from esper.leyline import messages as ly
from esper.oona import Event, Publisher, Reader, is_stale

#: Requests that nobody waits for any more are forgotten beyond these.
_OPEN_MAX: Final = 256

Reply = ly.KernelArtifactReady | ly.KernelArtifactError


class KernelRequests:
    """What this process asked of Urza, by kernel; nothing without a publisher. For one thread at a time."""

    def __init__(self, publisher: Publisher | None, log: Reader, *, window_seconds: float, clock: Clock) -> None:
        self._publisher = publisher
        self._log = log
        self._window_seconds = window_seconds
        self._clock = clock
        self._of_kernel: dict[str, EventId] = {}
        self._replies: dict[str, Reply | None] = {}

    def ask(self, request: ly.KernelRequestSpec, name: str, run_id: str) -> None:
        """Ask for the kernel `name`, unless it is asked for already.

        Raises:
            KernelUnavailable: there is nobody to ask ("not_in_catalogue").
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
        """
        if name in self._of_kernel:
            return
        if self._publisher is None:
            raise unavailable(request.blueprint_id, "not_in_catalogue", f"nobody made kernel {name} yet")
        request_id = new_event_id()
        wanted = ly.KernelPrefetchRequest(
            request_id=request_id,
            blueprint_id=request.blueprint_id,
            training_run_id=run_id,
            kernel_id=name,
            request=request,
        )
        wanted.issued_at.FromNanoseconds(self._clock.now_ns())
        self._of_kernel[name], self._replies[request_id] = request_id, None
        try:
            self._publisher.publish(wanted, key=name, correlation_id=run_id, event_id=request_id)
        except BaseException:
            self.forget(name)
            raise
        while len(self._of_kernel) > _OPEN_MAX:
            self.forget(next(iter(self._of_kernel)))

    def is_open(self, name: str) -> bool:
        """Whether the kernel was asked for and its reply, if it has come, was not taken yet."""
        return name in self._of_kernel

    def reply(self, name: str) -> Reply | None:
        """Return the reply to the open request for `name`, if it has come."""
        return self._replies[self._of_kernel[name]]

    def taken(self, name: str) -> Reply | None:
        """Return the reply to the open request for `name` and close that; None while it has not come."""
        reply = self.reply(name)
        if reply is not None:
            self.forget(name)
        return reply

    def forget(self, name: str) -> None:
        """Close the request for `name`, whatever came of it."""
        self._replies.pop(self._of_kernel.pop(name), None)

    def fold(self, event: Event, reply: Reply) -> None:
        """Keep the reply to an open request: the first that is its effect and was not sat on."""
        if reply.request_id not in self._replies:
            return
        if is_stale(event, window_seconds=self._window_seconds):
            detail = f"the reply to request {reply.request_id} came too late"
            self._log.set_aside(event, reason=ly.DEAD_LETTER_REASON_STALE, detail=detail)
        elif self._replies[reply.request_id] is not None:
            detail = f"request {reply.request_id} has its reply already"
            self._log.set_aside(event, reason=ly.DEAD_LETTER_REASON_REPLAYED, detail=detail)
        elif event.meta.causation_id == reply.request_id:
            self._replies[reply.request_id] = reply


def name_of(request: ly.KernelRequestSpec) -> str:
    """Return the id of the kernel that is asked for.

    Raises:
        KernelUnavailable: no kernel can be made for such a request ("usage_error").
    """
    try:
        return kernel_id(request)
    except UsageError as error:
        raise unavailable(request.blueprint_id, "usage_error", str(error)) from error


def artifact_of(request: ly.KernelRequestSpec, reply: Reply) -> str:
    """Return the digest that a reply names.

    Raises:
        KernelUnavailable: it is a refusal; its first word is the reason.
    """
    if isinstance(reply, ly.KernelArtifactError):
        word, _, detail = reply.reason.partition(": ")
        raise unavailable(request.blueprint_id, word, detail)
    return reply.artifact_ref


def unavailable(subject: str, reason: str, cause: str) -> KernelUnavailable:
    """Return the error that says why there is no kernel for `subject`, a blueprint or a digest."""
    return KernelUnavailable(
        f"no kernel for {subject!r}",
        reason=reason,
        cause=f"{reason}: {cause}",
        next_step="the seed contributes nothing; `esper status` shows whether urza and tezzeret run",
    )
