"""The forge's jobs as a fold of its own output, and what one request for a compilation still needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from google.protobuf.message import Message

from esper.core.ids import EventId, derive_id
from esper.leyline import messages as ly
from esper.tezzeret._faults import reason_of

__all__ = [
    "SOURCE",
    "KernelFacts",
    "Step",
    "Strategy",
    "backoff_seconds",
    "decide",
    "ended_id",
    "failed_id",
    "fold",
    "reason_of",
    "reported_id",
    "started_id",
    "updated_id",
]

SOURCE: Final = "tezzeret"
ATTEMPTS_MAX: Final = 3
_BACKOFF_SECONDS_MAX: Final = 10.0


class Strategy(Enum):
    """How the forge works."""

    STANDARD = "standard"
    #: The breaker is open: the canonical part only, at one attempt; nothing is measured, nothing compiled further.
    CONSERVATIVE = "conservative"


@dataclass(frozen=True)
class KernelFacts:
    """What the log says of one kernel: its last artifact, its prewarming, how often it was begun, what was ended.

    `tries` counts the attempts at each request that has no end yet.
    """

    artifact_ref: str = ""
    compile_ms: float = 0.0
    attempts: int = 0
    ended_requests: frozenset[str] = frozenset()
    tries: Mapping[str, int] = field(default_factory=dict)
    prewarm: ly.LatencyFigures | None = None


def fold(facts: KernelFacts, message: Message) -> KernelFacts:
    """Return the facts of a kernel after one more of its events on kernel-catalog."""
    if isinstance(message, ly.CompileStarted):
        request = message.meta.causation_id
        tries = {**facts.tries, request: facts.tries.get(request, 0) + 1}
        return replace(facts, attempts=facts.attempts + 1, tries=tries)
    if isinstance(message, ly.KernelCatalogUpdate):
        # What was measured of an artifact says nothing of another one.
        kept = facts.prewarm if message.artifact_ref == facts.artifact_ref else None
        return replace(facts, artifact_ref=message.artifact_ref, compile_ms=message.compile_ms, prewarm=kept)
    if isinstance(message, ly.BenchmarkReport):
        return replace(facts, prewarm=prewarm_of(message.benchmark) or facts.prewarm)
    if isinstance(message, ly.CompileFinished) or (isinstance(message, ly.CompileFailed) and not message.retried):
        request = message.meta.causation_id
        tries = {name: count for name, count in facts.tries.items() if name != request}
        return replace(facts, ended_requests=facts.ended_requests | {request}, tries=tries)
    return facts


def prewarm_of(benchmark: ly.BlueprintBenchmark) -> ly.LatencyFigures | None:
    """Return the latency of one eager forward; None where it was not measured."""
    found = (each.latency for each in benchmark.profiles if each.name == "eager.forward")
    return next(found, None)


class Step(Enum):
    """What a request for a compilation still needs."""

    NOTHING = "it was ended before"
    FINISH = "the kernel is there; only the end is missing in the log"
    COMPILE = "the kernel has to be made"
    GIVE_UP = "it was begun as often as it may be, and never came to an end"


def decide(facts: KernelFacts, request_event_id: str, *, stored: bool, attempts_max: int = ATTEMPTS_MAX) -> Step:
    """Return what is to be done; `stored` says whether all bytes of the last artifact are there and right."""
    if request_event_id in facts.ended_requests:
        return Step.NOTHING
    if facts.artifact_ref and stored:
        return Step.FINISH
    if facts.tries.get(request_event_id, 0) >= attempts_max:
        return Step.GIVE_UP
    return Step.COMPILE


def backoff_seconds(tries: int, first: float) -> float:
    """Return the longest wait after attempt number `tries` (from 1), without its jitter."""
    return float(min(_BACKOFF_SECONDS_MAX, first * 2.0 ** (tries - 1)))


def started_id(request_event_id: str, attempt: int) -> EventId:
    """Return the id of the event that a compilation began."""
    return derive_id(SOURCE, request_event_id, "started", attempt)


def updated_id(request_event_id: str, attempt: int) -> EventId:
    """Return the id of the catalogue's update by one attempt."""
    return derive_id(SOURCE, request_event_id, "updated", attempt)


def failed_id(request_event_id: str, attempt: int) -> EventId:
    """Return the id of the event that one attempt failed and another will follow."""
    return derive_id(SOURCE, request_event_id, "failed", attempt)


def reported_id(request_event_id: str) -> EventId:
    """Return the id of the measurement that was made for a request."""
    return derive_id(SOURCE, request_event_id, "reported")


def ended_id(request_event_id: str) -> EventId:
    """Return the id of the one event that ends a request, well or badly."""
    return derive_id(SOURCE, request_event_id, "ended")
