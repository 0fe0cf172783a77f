"""Jobs: what a request still needs follows from the log alone."""

from __future__ import annotations

from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from esper.leyline import messages as ly
from esper.tezzeret._jobs import KernelFacts, Step, decide, ended_id, fold, reason_of, started_id, updated_id


def started() -> ly.CompileStarted:
    """Return a beginning."""
    return ly.CompileStarted()


def updated() -> ly.KernelCatalogUpdate:
    """Return an update of the catalogue."""
    return ly.KernelCatalogUpdate(artifact_ref="a" * 64, compile_ms=3.5)


def finished(request: str) -> ly.CompileFinished:
    """Return a good end of a request."""
    return ly.CompileFinished(meta=ly.EventMeta(causation_id=request))


def failed(request: str) -> ly.CompileFailed:
    """Return a bad end of a request."""
    return ly.CompileFailed(meta=ly.EventMeta(causation_id=request))


def test_each_place_where_a_forge_can_die() -> None:
    """Cut a job after each of its events: the next life does what is missing and nothing else."""
    events = [started(), updated(), finished("one")]
    cuts = [reduce(fold, events[:count], KernelFacts()) for count in range(4)]
    assert [decide(facts, "one", stored=bool(facts.artifact_ref)) for facts in cuts] == [
        Step.COMPILE,
        Step.COMPILE,
        Step.FINISH,
        Step.NOTHING,
    ]
    assert [facts.attempts for facts in cuts] == [0, 1, 1, 1]
    assert cuts[3].compile_ms == 3.5


def test_a_made_kernel_is_not_made_again() -> None:
    """Another request for a kernel that is there only gets its end; without its bytes it is made anew."""
    facts = reduce(fold, [started(), updated(), finished("one")], KernelFacts())
    assert decide(facts, "two", stored=True) is Step.FINISH
    assert decide(facts, "two", stored=False) is Step.COMPILE
    assert decide(facts, "one", stored=False) is Step.NOTHING


def test_a_failure_ends_its_request_only() -> None:
    """A failed request is not tried again, the next one is."""
    facts = reduce(fold, [started(), failed("one")], KernelFacts())
    assert decide(facts, "one", stored=False) is Step.NOTHING
    assert decide(facts, "two", stored=False) is Step.COMPILE


@given(st.lists(st.sampled_from(["one", "two", "three"]), max_size=8), st.data())
def test_every_request_ends_exactly_once(requests: list[str], data: st.DataObject) -> None:
    """Requests in any order, each delivered any number of times, some failing: one end for each."""
    facts, ends = KernelFacts(), []
    for request in requests:
        step = decide(facts, request, stored=bool(facts.artifact_ref))
        if step is Step.NOTHING:
            continue
        if step is Step.COMPILE:
            facts = fold(facts, started())
            if data.draw(st.booleans()):
                facts = fold(fold(facts, failed(request)), started())
                ends.append(request)
                continue
            facts = fold(facts, updated())
        facts = fold(facts, finished(request))
        ends.append(request)
    assert sorted(ends) == sorted(set(requests))


def test_other_events_say_nothing() -> None:
    """Only the forge's own events count: fold another one."""
    assert fold(KernelFacts(attempts=2), ly.CompileRequested()) == KernelFacts(attempts=2)


def test_ids_are_derived_and_differ() -> None:
    """Two lives of the forge name the same event alike, and different events differently."""
    ids = [started_id("one", 1), started_id("one", 2), updated_id("one", 1), ended_id("one"), ended_id("two")]
    assert len(set(ids)) == 5
    assert started_id("one", 1) == started_id("one", 1)


def test_reason_begins_with_a_word() -> None:
    """A machine reads the first word of a reason: it is the error's name, and the rest is bounded."""
    assert reason_of(FileNotFoundError("gone")) == "file_not_found_error: gone"
    assert reason_of(OSError("disk full")) == "oserror: disk full"
    assert len(reason_of(ValueError("x" * 5000))) == 1000
