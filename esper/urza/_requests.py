"""Requests for kernels as a fold of three topics, and what the waiting ones are to be told.

Each topic is folded on its own: kernel-catalog into entries, kernel-requests into what was asked, kernel-replies
into what was answered. Only `decide` sees them together, so the order between topics does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import Message

from esper.core.errors import UsageError
from esper.core.ids import EventId, derive_id
from esper.core.kernel import kernel_id
from esper.leyline import messages as ly
from esper.urza._catalog import KernelEntry, fold_catalogue

SOURCE: Final = "urza"


@dataclass(frozen=True)
class Waiting:
    """A request that nobody answered yet, and where it stands in its partition."""

    request_id: str
    message: ly.KernelPrefetchRequest
    offset: int
    #: Whether its producer sat on it for longer than the window.
    stale: bool = False


@dataclass(frozen=True)
class Asked:
    """The last compilation that was asked of the forge for a kernel, and where that stands in the partition."""

    event_id: str
    offset: int


@dataclass
class PrefetchState:
    """All that Urza knows; every part is by kernel id but `answered` and `requested`, which hold request ids."""

    catalogue: dict[str, KernelEntry] = field(default_factory=dict)
    waiting: dict[str, dict[str, Waiting]] = field(default_factory=dict)
    asked: dict[str, Asked] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    #: Request id -> offset of the first event that asked under it: only that one is a request.
    requested: dict[str, int] = field(default_factory=dict)

    def fold(self, message: Message, offset: int, *, stale: bool = False) -> None:
        """Take one more event into the state; folding one again changes nothing.

        `stale` says of a request that its append time lies too far behind its issue time.
        """
        if isinstance(message, ly.KernelPrefetchRequest):
            self._fold_request(message, offset, stale=stale)
        elif isinstance(message, ly.CompileRequested):
            known = self.asked.get(message.meta.subject)
            if known is None or known.offset < offset:
                self.asked[message.meta.subject] = Asked(message.meta.event_id, offset)
        elif isinstance(message, ly.KernelArtifactReady | ly.KernelArtifactError):
            self._fold_reply(message.meta.subject, message.request_id)
        else:
            fold_catalogue(self.catalogue, message)

    def of(self, name: str) -> list[Waiting]:
        """Return what waits for a kernel, in the order of the log."""
        return sorted(self.waiting.get(name, {}).values(), key=lambda request: request.offset)

    def replays(self, message: ly.KernelPrefetchRequest, offset: int) -> int | None:
        """Return the offset of the event that asked under this one's request id before; None when it is the first."""
        first = self.requested.get(request_id_of(message), offset)
        return None if first == offset else first

    def _fold_request(self, message: ly.KernelPrefetchRequest, offset: int, *, stale: bool) -> None:
        request_id = request_id_of(message)
        self.requested.setdefault(request_id, offset)
        if request_id not in self.answered and self.requested[request_id] == offset:
            requests = self.waiting.setdefault(message.meta.subject, {})
            requests.setdefault(request_id, Waiting(request_id, message, offset, stale))

    def _fold_reply(self, name: str, request_id: str) -> None:
        self.answered.add(request_id)
        requests = self.waiting.get(name, {})
        requests.pop(request_id, None)
        if not requests:
            self.waiting.pop(name, None)


@dataclass(frozen=True)
class Answers:
    """What is to be appended for one kernel."""

    ready: Sequence[Waiting] = ()
    errors: Sequence[tuple[Waiting, str]] = ()
    #: The request on whose behalf the forge is asked; None when it is not.
    compile_for: Waiting | None = None


def decide(entry: KernelEntry, requests: Sequence[Waiting], asked: Asked | None, *, problem: str) -> Answers:
    """Return what the waiting `requests` for one kernel are to be told.

    `problem` says why the catalogued artifact cannot be handed out, "" if it can; it means nothing while there is
    none. A compilation answers the requests that stand before it in the log: its success all of them, its
    failure these. Later requests ask anew, so that a passing fault or an older forge does not ban a kernel.
    """
    errors = [(request, why) for request in requests if (why := refusal(request))]
    sound = [request for request in requests if not refusal(request)]
    if not sound:
        return Answers(errors=errors)
    if entry.artifact_ref and not problem:
        return Answers(ready=sound, errors=errors)
    if asked is not None and asked.event_id != entry.last_request:
        return Answers(errors=errors)  # the forge is at it
    unanswered = sound
    if asked is not None:
        reason = entry.failure or f"artifact_unusable: {problem or 'the forge ended without an artifact'}"
        errors += [(request, reason) for request in sound if request.offset < asked.offset]
        unanswered = [request for request in sound if request.offset > asked.offset]
    return Answers(errors=errors, compile_for=unanswered[0] if unanswered else None)


def refuse_all(requests: Sequence[Waiting], reason: str) -> Answers:
    """Return that everybody who waits is told `reason`, and the forge nothing; malformed requests hear their own."""
    return Answers(errors=[(request, refusal(request) or reason) for request in requests])


def request_id_of(request: ly.KernelPrefetchRequest) -> str:
    """Return the id that a reply names its request by."""
    return request.request_id or request.meta.event_id


def refusal(request: Waiting) -> str:
    """Return why a request gets no kernel whatever the catalogue holds; "" if it may get one."""
    if request.stale:
        return "stale_request: its append time lies too far behind its issue time"
    return contradiction(request.message)


def contradiction(request: ly.KernelPrefetchRequest) -> str:
    """Return why a request cannot be answered at all; "" if it can."""
    try:
        digest = kernel_id(request.request)
    except UsageError as error:
        return f"usage_error: {error}"
    if not digest == request.kernel_id == request.meta.subject:
        return f"kernel_id_mismatch: what is asked for is kernel {digest}, not {request.meta.subject}"
    return ""


def compile_id(name: str, entry: KernelEntry) -> EventId:
    """Return the id of the next request for a compilation: one per kernel, and one more after each that ended."""
    return derive_id(SOURCE, "compile", name, entry.ended)


def reply_id(request_id: str) -> EventId:
    """Return the id of the one reply to a request, good or bad."""
    return derive_id(SOURCE, "reply", request_id)
