"""Trace headers: the W3C format, hostile ones ignored, one trace from cause to effect."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.core.ids import new_run_id
from esper.leyline import Record
from esper.leyline import messages as ly
from esper.oona import Event, Fabric
from esper.oona.publishing._trace import (
    TRACEPARENT_HEADER,
    TraceContext,
    parse_traceparent,
    trace_for,
    trace_of,
    tracing,
)
from tests.conftest import RunningBroker
from tests.oona.log import fresh_group, packet, poll_until, read_run

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01".encode()


def test_the_example_of_the_recommendation_is_read_and_written() -> None:
    """The format is W3C's: parse and format the example of its section 3.2.4."""
    context = parse_traceparent(GOOD)
    assert context == TraceContext(TRACE, SPAN, sampled=True)
    assert context.header() == GOOD
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-00".encode()) == TraceContext(TRACE, SPAN, sampled=False)
    assert parse_traceparent(f"cc-{TRACE}-{SPAN}-01-what-comes-later".encode()) == TraceContext(TRACE, SPAN)


@pytest.mark.parametrize(
    "raw",
    [
        None,
        b"",
        GOOD.upper(),
        GOOD + b"-more",
        GOOD + b"\n",
        b"ff" + GOOD[2:],
        f"00-{'0' * 32}-{SPAN}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"cc-{TRACE}-{SPAN}-01-{'x' * 100}".encode(),
        b"00-" + b"\xff" * 32 + b"-" + SPAN.encode() + b"-01",
        b"9" * 10_000_000,
    ],
)
def test_hostile_headers_are_no_context(raw: bytes | None) -> None:
    """Anyone may write the header: give malformed, zero, forbidden, long and huge ones."""
    assert parse_traceparent(raw) is None


@given(st.binary(max_size=200))
def test_no_bytes_raise(raw: bytes) -> None:
    """Parsing never fails: give random bytes, and two headers at once."""
    context = parse_traceparent(raw)
    assert context is None or re.fullmatch("[0-9a-f]{32}", context.trace_id)
    twice = ((TRACEPARENT_HEADER, GOOD), (TRACEPARENT_HEADER, raw))
    assert trace_of(Record("runs", 0, 0, b"k", b"v", twice)) is None


def test_a_run_is_one_trace_and_a_context_is_passed_on() -> None:
    """Who correlates shares a trace: compare contexts of one run, of another, and inside a given trace."""
    first = trace_for(correlation_id="run-1", event_id="a")
    second = trace_for(correlation_id="run-1", event_id="b")
    assert first.trace_id == second.trace_id != trace_for(correlation_id="run-2", event_id="a").trace_id
    assert first.span_id != second.span_id
    with tracing(TraceContext(TRACE, SPAN, sampled=False)):
        inner = trace_for(correlation_id="run-1", event_id="a")
    assert (inner.trace_id, inner.sampled) == (TRACE, False)
    assert trace_for(correlation_id="run-1", event_id="a") == first


def test_headers_travel_from_cause_to_effect_and_change_nothing_else(broker: RunningBroker) -> None:
    """A handler's events belong to what it handles: handle a traced packet on the real broker, with tracing on."""
    settings = broker.settings.model_copy(update={"tracing": True})
    run_id, other = new_run_id(), new_run_id()
    with Fabric.open(settings, member="test") as fabric:
        publisher = fabric.publisher("tamiyo")

        def decide(event: Event) -> None:
            if event.meta.subject == run_id:
                publisher.publish(ly.DecisionMade(run_id=run_id), key=run_id, correlation_id=other)

        with fabric.publisher("tolaria") as states:
            states.publish(packet(run_id, 1), key=run_id)
        consumer = fabric.consumer(
            group=fresh_group(),
            instance="member-0",
            topics=["system-state"],
            handlers={ly.SystemStatePacket: decide},
            publisher=publisher,
        )
        poll_until(consumer, lambda: bool(read_run(fabric, "decisions", run_id)), seconds=60)
        (state,), (decision,) = read_run(fabric, "system-state", run_id), read_run(fabric, "decisions", run_id)
        cause, effect = trace_of(state.record), trace_of(decision.record)
        assert cause is not None
        assert effect is not None
        assert cause.trace_id == effect.trace_id
        assert cause.span_id != effect.span_id


def test_without_the_setting_no_header_is_written(fabric: Fabric) -> None:
    """Tracing costs nothing when it is off: look at the headers of a plain record."""
    run_id = new_run_id()
    with fabric.publisher("tolaria") as publisher:
        publisher.publish(packet(run_id, 1), key=run_id)
    (event,) = read_run(fabric, "system-state", run_id)
    assert [name for name, _ in event.record.headers] == ["signature", "type"]
