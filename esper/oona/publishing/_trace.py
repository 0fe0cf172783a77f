"""W3C trace context in a record's header: who may be asked what a record belongs to, and believed in nothing.

The header lies outside the MAC, so anyone may write anything into it: it is length-capped, parsed by one strict
pattern, ignored where it does not fit, and decides nothing. Format: W3C Trace Context, Recommendation of
2021-11-23, section 3.2.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from esper.core.ids import derive_id
from esper.leyline import Record

TRACEPARENT_HEADER: Final = "traceparent"
#: Version 00 has 55 characters; a later version may append fields, of which this many in all are looked at.
_HEADER_BYTES_MAX: Final = 128
_PATTERN: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_FIRST_VERSION: Final = b"00"
_NO_VERSION: Final = b"ff"
_SPAN_HEX_LENGTH: Final = 16


@dataclass(frozen=True)
class TraceContext:
    """The trace that something belongs to, and the span that it follows from."""

    #: 32 lower-case hexadecimal digits, not all zero.
    trace_id: str
    #: 16 lower-case hexadecimal digits, not all zero.
    span_id: str
    sampled: bool = True

    def header(self) -> bytes:
        """Return the value of a `traceparent` header."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}".encode()


_current: ContextVar[TraceContext | None] = ContextVar("esper_trace", default=None)


def parse_traceparent(raw: bytes | None) -> TraceContext | None:
    """Return the context that a header's value states, or None for anything that is none; never raises."""
    if raw is None or len(raw) > _HEADER_BYTES_MAX:
        return None
    match = _PATTERN.fullmatch(raw)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == _NO_VERSION or (version == _FIRST_VERSION and more is not None):
        return None
    if not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceContext(trace_id.decode(), span_id.decode(), sampled=bool(int(flags, 16) & 1))


def trace_of(record: Record) -> TraceContext | None:
    """Return the context in a record's header; None when it has none, more than one, or a malformed one."""
    return parse_traceparent(record.header(TRACEPARENT_HEADER))


def trace_for(*, correlation_id: str, event_id: str) -> TraceContext:
    """Return the context that an event is published with.

    Inside `tracing` the trace is the one given there. Otherwise it follows from the correlation id, so that all
    events of one run share a trace whoever writes them. The span follows from the event's id.
    """
    outer = _current.get()
    span_id = derive_id("span", event_id)[:_SPAN_HEX_LENGTH]
    if outer is not None:
        return TraceContext(outer.trace_id, span_id, sampled=outer.sampled)
    return TraceContext(derive_id("trace", correlation_id), span_id)


@contextmanager
def tracing(context: TraceContext | None) -> Iterator[None]:
    """Have what is published inside belong to the trace of `context`; None: to none in particular."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)
