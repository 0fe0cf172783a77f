"""The forge's jobs as a fold of its own output, and what one request for a compilation still needs."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from google.protobuf.message import Message

from esper.core.ids import EventId, derive_id
from esper.leyline import messages as ly

SOURCE: Final = "tezzeret"


@dataclass(frozen=True)
class KernelFacts:
    """What the log says of one kernel: its last artifact, how often it was begun, which requests were ended."""

    artifact_ref: str = ""
    compile_ms: float = 0.0
    attempts: int = 0
    ended_requests: frozenset[str] = frozenset()


def fold(facts: KernelFacts, message: Message) -> KernelFacts:
    """Return the facts of a kernel after one more of its events on kernel-catalog."""
    if isinstance(message, ly.CompileStarted):
        return replace(facts, attempts=facts.attempts + 1)
    if isinstance(message, ly.KernelCatalogUpdate):
        return replace(facts, artifact_ref=message.artifact_ref, compile_ms=message.compile_ms)
    if isinstance(message, ly.CompileFinished | ly.CompileFailed):
        return replace(facts, ended_requests=facts.ended_requests | {message.meta.causation_id})
    return facts


class Step(Enum):
    """What a request for a compilation still needs."""

    NOTHING = "it was ended before"
    FINISH = "the kernel is there; only the end is missing in the log"
    COMPILE = "the kernel has to be made"


def decide(facts: KernelFacts, request_event_id: str, *, stored: bool) -> Step:
    """Return what is to be done; `stored` says whether all bytes of the last artifact are there and right."""
    if request_event_id in facts.ended_requests:
        return Step.NOTHING
    if facts.artifact_ref and stored:
        return Step.FINISH
    return Step.COMPILE


def started_id(request_event_id: str, attempt: int) -> EventId:
    """Return the id of the event that a compilation began."""
    return derive_id(SOURCE, request_event_id, "started", attempt)


def updated_id(request_event_id: str, attempt: int) -> EventId:
    """Return the id of the catalogue's update by one attempt."""
    return derive_id(SOURCE, request_event_id, "updated", attempt)


def ended_id(request_event_id: str) -> EventId:
    """Return the id of the one event that ends a request, well or badly."""
    return derive_id(SOURCE, request_event_id, "ended")


def reason_of(error: BaseException) -> str:
    """Return why a compilation failed: a word made of the error's name, a colon, and the error in words."""
    word = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).lower()
    return f"{word}: {error}"[:1000]
