"""Kafka's errors become ours: what passes is waited for, what does not is told with its next step."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
from confluent_kafka import KafkaError, KafkaException

from esper.core.clock import ManualClock
from esper.core.errors import (
    BrokerUnavailable,
    Busy,
    EsperError,
    IntegrityError,
    NotReadyError,
    OperationFailed,
)
from esper.oona._failures import BrokerWatch, Fenced, Refused, answer_of, passes, translate, translate_for_member


def watch(clock: ManualClock) -> BrokerWatch:
    """Return a watch with 60 seconds of patience."""
    return BrokerWatch("it cannot go on", bootstrap="host:1", retry_seconds=60.0, clock=clock)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (KafkaError._AUTHENTICATION, Refused),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, Refused),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, NotReadyError),
        (KafkaError._AUTO_OFFSET_RESET, IntegrityError),
        (KafkaError.FENCED_INSTANCE_ID, Fenced),
        (KafkaError._ALL_BROKERS_DOWN, BrokerUnavailable),
        (KafkaError._MSG_TIMED_OUT, BrokerUnavailable),
        (KafkaError.INVALID_RECORD, OperationFailed),
    ],
)
def test_codes_become_our_errors(code: int, kind: type[EsperError]) -> None:
    """Every error says what, why and what next: translate one of each family."""
    error = translate(KafkaError(code, "cause"), "what")
    assert type(error) is kind
    assert (error.what, bool(error.next_step)) == ("what", True)
    assert "cause" in error.cause


def test_fatal_means_fenced_only_when_it_says_so() -> None:
    """`_FATAL` is said of a fenced member and of a broken producer: translate both texts."""
    fenced = KafkaError(KafkaError._FATAL, "Static consumer fenced by other consumer with same group.instance.id")
    assert isinstance(translate(fenced, "what"), Busy)
    assert isinstance(translate(KafkaError(KafkaError._FATAL, "out of order sequence"), "what"), OperationFailed)


def test_to_a_member_nothing_else_is_fatal() -> None:
    """A commit of a fenced member is told no more than "Fatal error": translate it for a member, and another error."""
    fatal = KafkaError(KafkaError._FATAL, "Local: Fatal error")
    assert isinstance(translate_for_member(fatal, "what"), Fenced)
    other = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, "denied")
    assert isinstance(translate_for_member(other, "what"), Refused)


def test_settling_cluster_passes() -> None:
    """Elections take a moment, refusals do not pass: ask about both."""
    assert passes(KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION))
    assert passes(KafkaError(KafkaError.COORDINATOR_LOAD_IN_PROGRESS))
    assert not passes(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))


@pytest.mark.parametrize("code", [KafkaError._AUTHENTICATION, KafkaError._FATAL, KafkaError._AUTO_OFFSET_RESET])
def test_ending_errors_raise_at_the_next_check(code: int) -> None:
    """A wrong password never fails by itself: report it to the watch and check."""
    watched = watch(ManualClock())
    watched.on_error(KafkaError(code, "cause"))
    with pytest.raises(EsperError, match="it cannot go on"):
        watched.check(lambda: True)


def test_absent_broker_is_given_its_time_and_no_more() -> None:
    """A broker may be away for 60 seconds: let time pass on a manual clock while no probe is answered."""
    clock = ManualClock()
    watched = watch(clock)
    watched.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    for _ in range(59):
        watched.check(lambda: False)
        clock.advance(1.0)
    watched.check(lambda: False)
    clock.advance(1.0)
    with pytest.raises(BrokerUnavailable, match="no broker at host:1 answered for 60 seconds"):
        watched.check(lambda: False)


def test_broker_that_answers_is_forgiven() -> None:
    """Its return ends the absence: answer one probe, then lose the broker again for 59 seconds."""
    clock = ManualClock()
    watched = watch(clock)
    watched.on_error(KafkaError(KafkaError._TRANSPORT))
    clock.advance(59.0)
    watched.check(lambda: True)
    clock.advance(1_000.0)
    watched.on_error(KafkaError(KafkaError._TRANSPORT))
    clock.advance(59.0)
    watched.check(lambda: False)


def test_only_an_outage_forgives_a_failure_and_only_once() -> None:
    """A fenced member may try again when its broker was away, not when another process took its place."""
    clock = ManualClock()
    watched = watch(clock)
    watched.on_error(KafkaError(KafkaError.FENCED_INSTANCE_ID))
    assert not watched.forgive()
    watched.on_error(KafkaError(KafkaError._TRANSPORT))
    assert watched.forgive()
    watched.raise_failure()
    watched.on_error(KafkaError(KafkaError.FENCED_INSTANCE_ID))
    assert not watched.forgive()
    watched.on_error(KafkaError(KafkaError._TRANSPORT))
    clock.advance(61.0)
    assert not watched.forgive()
    with pytest.raises(Busy):
        watched.raise_failure()


def test_healthy_client_is_not_probed() -> None:
    """A probe costs a request: check without any report of trouble, and more often than twice a second with one."""
    clock, probes = ManualClock(), []
    watched = watch(clock)

    def answers() -> bool:
        probes.append(clock.monotonic())
        return False

    watched.check(answers)
    assert probes == []
    watched.on_error(KafkaError(KafkaError._TRANSPORT))
    for _ in range(10):
        watched.check(answers)
        clock.advance(0.1)
    assert len(probes) == 2


def test_calls_are_retried_while_the_broker_is_away() -> None:
    """A passing fault is waited out with jitter: fail three times, then answer."""
    clock, answers = ManualClock(), [KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError.NOT_COORDINATOR]

    def call() -> str:
        if answers:
            raise KafkaException(KafkaError(answers.pop(0)))
        return "answer"

    assert watch(clock).retrying("what", call) == "answer"
    assert len(clock.slept_seconds) == 3
    assert all(0.2 <= seconds <= 0.5 for seconds in clock.slept_seconds)


def test_retrying_ends_at_the_deadline_and_on_refusals() -> None:
    """Nothing is tried for ever: fail for good, for a passing and for a lasting reason."""
    clock = ManualClock()

    def fail(code: int) -> None:
        raise KafkaException(KafkaError(code))

    with pytest.raises(BrokerUnavailable):
        watch(clock).retrying("what", lambda: fail(KafkaError._TRANSPORT), seconds=5.0)
    assert 5.0 <= clock.elapsed_seconds <= 5.5
    slept = len(clock.slept_seconds)
    with pytest.raises(NotReadyError, match="what"):
        watch(clock).retrying("what", lambda: fail(KafkaError.GROUP_AUTHORIZATION_FAILED))
    assert len(clock.slept_seconds) == slept


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (TimeoutError(), BrokerUnavailable),
        (KafkaException(KafkaError(KafkaError._TIMED_OUT)), BrokerUnavailable),
        (KafkaException(KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED)), Refused),
    ],
)
def test_an_administrative_request_ends_in_our_errors(outcome: Exception, kind: type[EsperError]) -> None:
    """Goal: a request that is never settled kills no thread. Method: a future of each end."""
    future: Future[str] = Future()
    future.set_exception(outcome)
    with pytest.raises(kind, match="it cannot be asked"):
        answer_of(future, "it cannot be asked")
