"""Requests: what the waiting ones are told follows from the three topics, in whatever order they are read."""

from __future__ import annotations

import random

from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from esper.core.kernel import kernel_id, make_request
from esper.leyline import messages as ly
from esper.urza._catalog import KernelEntry
from esper.urza._requests import Answers, PrefetchState, compile_id, contradiction, decide, reply_id

WANTED = make_request("BP002", {"scale": 1.0}, layout="vector", in_shape=[5], out_shape=[3])
NAME = kernel_id(WANTED)


def meta(event_id: str = "", causation_id: str = "") -> ly.EventMeta:
    """Return a meta of an event about the kernel."""
    return ly.EventMeta(event_id=event_id, causation_id=causation_id, subject=NAME)


def wanted(request_id: str, **changes: object) -> ly.KernelPrefetchRequest:
    """Return a request as Kasmina writes it."""
    fields = {"meta": meta(request_id), "request_id": request_id, "kernel_id": NAME, "request": WANTED}
    return ly.KernelPrefetchRequest(**(fields | changes))  # type: ignore[arg-type]  # as the message has them


def asked(event_id: str) -> ly.CompileRequested:
    """Return a request to the forge."""
    return ly.CompileRequested(meta=meta(event_id), kernel_id=NAME, request=WANTED)


def failed(of: str, reason: str = "oserror: disk full") -> ly.CompileFailed:
    """Return a bad end."""
    return ly.CompileFailed(meta=meta(causation_id=of), kernel_id=NAME, reason=reason)


def updated() -> ly.KernelCatalogUpdate:
    """Return an update of the catalogue."""
    return ly.KernelCatalogUpdate(
        meta=meta(), kernel_id=NAME, artifact_ref="a" * 64, checksum="b" * 64, guard_digest="c" * 64
    )


def finished(of: str) -> ly.CompileFinished:
    """Return a good end."""
    return ly.CompileFinished(meta=meta(causation_id=of), kernel_id=NAME, artifact_ref="a" * 64)


def state_of(*messages: Message) -> PrefetchState:
    """Return the state after these messages, each at the offset of its place."""
    state = PrefetchState()
    for offset, message in enumerate(messages):
        state.fold(message, offset)
    return state


def told(state: PrefetchState, problem: str = "") -> tuple[list[str], dict[str, str], str | None]:
    """Return who is told ready, who an error, and for whom the forge is asked."""
    answers: Answers = decide(
        state.catalogue.get(NAME, KernelEntry()), state.of(NAME), state.asked.get(NAME), problem=problem
    )
    return (
        [each.request_id for each in answers.ready],
        {each.request_id: reason for each, reason in answers.errors},
        answers.compile_for.request_id if answers.compile_for else None,
    )


def test_first_request_asks_the_forge() -> None:
    """Nothing is known of the kernel: the first in line asks on behalf of all."""
    assert told(state_of(wanted("one"), wanted("two"))) == ([], {}, "one")


def test_requests_wait_while_the_forge_works() -> None:
    """A compilation is open: nobody is told anything and the forge is not asked again."""
    assert told(state_of(wanted("one"), asked("job"), wanted("two"))) == ([], {}, None)


def test_a_catalogued_kernel_is_ready_for_all() -> None:
    """As soon as the catalogue has it, all who wait are told, also before the job's end is known."""
    assert told(state_of(wanted("one"), asked("job"), wanted("two"), updated())) == (["one", "two"], {}, None)
    assert told(state_of(updated(), wanted("one"))) == (["one"], {}, None)


def test_a_failure_answers_those_before_it_and_later_ones_ask_anew() -> None:
    """Who stood in the log before the job hears of its failure; who came after it gets a job of its own."""
    state = state_of(wanted("one"), asked("job"), wanted("two"), failed("job"))
    assert told(state) == ([], {"one": "oserror: disk full"}, "two")
    # Once the forge has been asked again, only the outcome of that job counts.
    again = state_of(wanted("one"), asked("job"), wanted("two"), failed("job"), asked("job 2"))
    assert told(again) == ([], {}, None)
    again.fold(failed("job 2", "memory_error: "), 5)
    assert told(again) == ([], {"one": "memory_error: ", "two": "memory_error: "}, None)


def test_unusable_bytes_are_made_again_once() -> None:
    """A catalogued artifact that cannot be read asks the forge; if that does not help, the request hears why."""
    before = [wanted("old"), asked("job"), updated(), finished("job")]
    ready = ly.KernelArtifactReady(meta=meta(), request_id="old")
    state = state_of(*before, ready, wanted("new"))
    assert told(state, problem="blob is gone") == ([], {}, "new")
    state.fold(asked("job 2"), 6)
    assert told(state, problem="blob is gone") == ([], {}, None)
    state.fold(finished("job 2"), 7)
    assert told(state, problem="") == (["new"], {}, None)
    ready_for, errors, compile_for = told(state, problem="blob is gone")
    assert (ready_for, compile_for) == ([], None)
    assert errors == {"new": "artifact_unusable: blob is gone"}


def test_contradictions_are_answered_at_once() -> None:
    """A request whose id is not that of what it asks for is refused, and holds up nobody else."""
    other = make_request("BP002", {"scale": 1.5}, layout="vector", in_shape=[5])
    malformed = ly.KernelRequestSpec(blueprint_id="BP002", layout="vector", in_shape=[5], dtype="float32")
    bad = [wanted("a", kernel_id="0" * 64), wanted("b", request=other), wanted("c", request=malformed)]
    ready, errors, compile_for = told(state_of(*bad, wanted("good")))
    assert (ready, compile_for) == ([], "good")
    assert {name: reason.partition(":")[0] for name, reason in errors.items()} == {
        "a": "kernel_id_mismatch",
        "b": "kernel_id_mismatch",
        "c": "usage_error",
    }
    assert contradiction(wanted("good")) == ""


def test_a_reason_is_never_empty() -> None:
    """A forge that gave no reason still failed: the request hears so."""
    assert told(state_of(wanted("one"), asked("job"), failed("job", "")))[1] == {
        "one": "unknown: the forge gave no reason"
    }


def test_jobs_are_named_by_how_many_ended() -> None:
    """One request to the forge per kernel until it ended; two ends of one job count once."""
    state = state_of(wanted("one"), asked("job"), failed("job"), failed("job"))
    entry = state.catalogue[NAME]
    assert entry.ended == 1
    assert len({compile_id(NAME, KernelEntry()), compile_id(NAME, entry), reply_id("one"), reply_id("two")}) == 4
    assert compile_id(NAME, entry) == compile_id(NAME, KernelEntry(ended=1))


TOPICS: dict[str, list[Message]] = {
    "requests": [wanted("one"), asked("job"), wanted("two"), wanted("one"), asked("job 2"), wanted("three")],
    "catalog": [failed("job"), updated(), finished("job 2")],
    "replies": [
        ly.KernelArtifactError(meta=meta(), request_id="one"),
        ly.KernelArtifactReady(meta=meta(), request_id="two"),
    ],
}


@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_order_between_topics_does_not_matter(rng: random.Random, repeats: int) -> None:
    """Folds depend on the order within a topic only: any interleaving, some of it read twice, gives one state."""
    left = {name: list(enumerate(messages)) for name, messages in TOPICS.items()}
    expected, state = PrefetchState(), PrefetchState()
    for messages in TOPICS.values():
        for offset, message in enumerate(messages):
            expected.fold(message, offset)
    while any(left.values()):
        name = rng.choice([name for name, messages in left.items() if messages])
        offset, message = left[name].pop(0)
        state.fold(message, offset)
    for offset, message in enumerate(TOPICS["requests"][:repeats]):
        state.fold(message, offset)
    assert state == expected
    assert [each.request_id for each in state.of(NAME)] == ["three"]


def test_a_stale_request_is_refused_and_asks_nobody() -> None:
    """Goal: what its sender sat on gets no kernel. Method: one stale and one fresh request for a new kernel."""
    state = PrefetchState()
    state.fold(wanted("old"), 0, stale=True)
    assert told(state) == ([], {"old": "stale_request: its append time lies too far behind its issue time"}, None)
    state.fold(wanted("new"), 1)
    assert told(state)[2] == "new"


def test_a_request_id_is_used_once() -> None:
    """Goal: a copy is no request, before and after the reply. Method: the same id at later offsets, in any state."""
    state = state_of(wanted("one"), wanted("one"))
    assert (state.replays(wanted("one"), 0), state.replays(wanted("one"), 1)) == (None, 0)
    assert [request.offset for request in state.of(NAME)] == [0]
    state.fold(ly.KernelArtifactReady(meta=meta(), request_id="one"), 0)
    state.fold(wanted("one"), 2)
    assert state.of(NAME) == []
    assert state.replays(wanted("one"), 2) == 0
