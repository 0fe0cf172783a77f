# ruff: noqa: SLF001 - librdkafka gives its own error codes names that begin with an underscore
"""What Kafka's error codes mean to us: wait, stop and say why, or never mind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

from confluent_kafka import KafkaError, KafkaException

from esper.core.clock import SYSTEM_CLOCK, Clock, Deadline
from esper.core.errors import BrokerUnavailable, Busy, EsperError, IntegrityError, NotReadyError, OperationFailed
from esper.core.rng import jitter

_logger = logging.getLogger("esper.oona.broker_watch")
_T = TypeVar("_T")

_ACCESS: Final = frozenset(
    {
        # A wrong password never fails a call by itself; librdkafka only reports it and tries again for ever.
        KafkaError._AUTHENTICATION,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
)
_MISSING_TOPIC: Final = frozenset(
    {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}
)
_OUTSIDE_LOG: Final = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE})
_FENCED: Final = frozenset({KafkaError._FATAL, KafkaError._FENCED, KafkaError.FENCED_INSTANCE_ID})
#: After these the client cannot go on, whatever it waits for.
FATAL: Final = _ACCESS | _OUTSIDE_LOG | _FENCED
_AWAY: Final = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._MSG_TIMED_OUT,
        KafkaError._WAIT_COORD,
        KafkaError._PURGE_QUEUE,
        KafkaError._PURGE_INFLIGHT,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.NETWORK_EXCEPTION,
    }
)
#: A cluster that starts, elects or creates says these for a moment; not all of them are flagged as retriable.
_SETTLING: Final = frozenset(
    {
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.NOT_CONTROLLER,
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError._WAIT_CACHE,
        # "No leaders found", while a broker that just came back elects them.
        KafkaError._NOENT,
    }
)
END_OF_PARTITION: Final = KafkaError._PARTITION_EOF
#: A member asked for no records for too long: librdkafka has given its partitions up.
STOOD_STILL: Final = KafkaError._MAX_POLL_EXCEEDED
#: A commit came too late: the partitions are another member's now.
NO_LONGER_MINE: Final = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError._ASSIGNMENT_LOST,
    }
)
_NEXT_START: Final = "Start the broker (`esper up`) or correct ESPER_KAFKA_BOOTSTRAP"
#: Twice the longest time that an administrative request is given; a client that stood still settles even later.
_ANSWER_SECONDS: Final = 30.0
_PROBE_EVERY_SECONDS: Final = 0.5
#: How long after an outage its consequences may still show: a session and the retries of one request.
_LATELY_SECONDS: Final = 60.0


class Refused(NotReadyError):
    """Kafka refused the login, or what the principal that logged in asked for; trying again changes nothing."""

    retriable = False


class Fenced(Busy):
    """Kafka gave this static member's place to another process, or to a later life of this one."""


def error_of(exception: KafkaException) -> KafkaError:
    """Return the KafkaError that a KafkaException carries."""
    error = exception.args[0]
    assert isinstance(error, KafkaError), "confluent_kafka raises KafkaException(KafkaError)"
    return error


def passes(error: KafkaError) -> bool:
    """Return whether the same request may succeed a little later."""
    return error.code() in _AWAY or error.code() in _SETTLING or error.retriable()


def commit_may_pass(error: KafkaError) -> bool:
    """Return whether offsets that were refused may be taken a little later."""
    return passes(error) or error.code() == KafkaError.REBALANCE_IN_PROGRESS


def lacks_leader(error: KafkaError) -> bool:
    """Return whether the client knows no leader: there is none for a moment, or the topic is hidden from it."""
    return error.code() == KafkaError._NOENT


def is_denied(error: KafkaError) -> bool:
    """Return whether the principal may not do what it asked for."""
    return error.code() in _ACCESS


def is_outside_log(error: KafkaError) -> bool:
    """Return whether the log does not hold the position that was to be read."""
    return error.code() in _OUTSIDE_LOG


def ends_consumer(error: KafkaError) -> bool:
    """Return whether a consumer that meets this error must stop."""
    return error.fatal() or error.code() in FATAL or error.code() in _MISSING_TOPIC


def translate(error: KafkaError, what: str) -> EsperError:
    """Return our error for Kafka's, saying `what` was tried, why it failed and what to do."""
    code, cause = error.code(), error.str()
    if code in _ACCESS:
        return Refused(
            what,
            cause=cause,
            next_step="Check the user, password and ACLs (ESPER_KAFKA_SASL_USERNAME and others); "
            "a home's own secure broker learns them anew by `esper up`",
        )
    if code in _MISSING_TOPIC:
        return NotReadyError(what, cause=cause, next_step="Run `esper topics apply`")
    if code in _OUTSIDE_LOG:
        return IntegrityError(
            what,
            cause=f"the log does not hold the wanted position ({cause})",
            next_step="`esper topics describe` shows what each topic still holds; its history was cut or replaced",
        )
    # A fenced static member is told so by _FATAL, which an idempotent producer's end is called, too.
    if code in _FENCED and (code != KafkaError._FATAL or "fenced" in cause):
        return _fenced(what, cause)
    if code in _AWAY:
        return BrokerUnavailable(what, cause=cause, next_step=_NEXT_START)
    return OperationFailed(what, cause=f"{error.name()}: {cause}", next_step="The broker's log says more")


def translate_for_member(error: KafkaError, what: str) -> EsperError:
    """Return our error for Kafka's as a group's member meets it.

    Nothing is fatal to a member but that it was fenced, and a commit is told only that something was.
    """
    return _fenced(what, error.str()) if error.code() == KafkaError._FATAL else translate(error, what)


def _fenced(what: str, cause: str) -> Fenced:
    return Fenced(
        what,
        cause=f"another process took this member's place ({cause})",
        next_step="`esper status` lists the members; run one process under each name",
    )


def is_existing_topic(error: EsperError) -> bool:
    """Return whether a topic could not be created because it is there."""
    origin = error.__cause__
    return isinstance(origin, KafkaException) and error_of(origin).code() == KafkaError.TOPIC_ALREADY_EXISTS


def answer_of(future: Future[_T], what: str) -> _T:
    """Return what an administrative request came to.

    Raises:
        BrokerUnavailable: no broker answered, or librdkafka did not settle the request long after its own time-out.
        EsperError: Kafka refused it; the message says `what` was tried.
    """
    try:
        return future.result(_ANSWER_SECONDS)
    except KafkaException as exception:
        raise translate(error_of(exception), what) from exception
    except TimeoutError as error:
        cause = f"the request was not answered within {_ANSWER_SECONDS:g} seconds"
        raise BrokerUnavailable(what, cause=cause, next_step=_NEXT_START) from error


def no_broker(what: str, *, seconds: float, bootstrap: str) -> BrokerUnavailable:
    """Return the error for a broker that stayed away."""
    return BrokerUnavailable(
        what, cause=f"no broker at {bootstrap} answered for {seconds:g} seconds", next_step=_NEXT_START
    )


class BrokerWatch:
    """What one Kafka client has noticed: an error that ends it, and since when no broker answers.

    librdkafka reports the loss of all brokers once and never their return, so that from the first
    report on `check` asks a broker itself, twice a second, until one answers.
    """

    def __init__(self, what: str, *, bootstrap: str, retry_seconds: float, clock: Clock = SYSTEM_CLOCK) -> None:
        self._what = what
        self._bootstrap = bootstrap
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._failure: EsperError | None = None
        self._away_since: float | None = None
        self._next_probe = 0.0
        self._last_trouble: float | None = None

    @property
    def retry_seconds(self) -> float:
        """How long a broker may stay away."""
        return self._retry_seconds

    def on_error(self, error: KafkaError) -> None:
        """Take note of an error that the client reports (librdkafka's `error_cb`)."""
        if error.code() in FATAL or error.fatal():
            self.fail(translate(error, self._what))
        elif error.code() in _AWAY:
            self._last_trouble = self._clock.monotonic()
            if self._away_since is None:
                _logger.info("%s: %s", self._what, error.str())
                self._away_since = self._next_probe = self._last_trouble

    def fail(self, failure: EsperError) -> None:
        """Make every later `check` raise; the first failure counts."""
        self._failure = self._failure or failure

    def raise_failure(self) -> None:
        """Raise the error that ended this client, if one did."""
        if self._failure is not None:
            raise self._failure

    def note_trouble(self) -> None:
        """Take note that this client itself stood still for too long, which `forgive` treats as an absence."""
        self._last_trouble = self._clock.monotonic()

    def forgive(self) -> bool:
        """Forget failures and troubles if a broker was away lately; return whether one was.

        What a broker's absence did to a client is mended by a new client, once.
        """
        if self._last_trouble is None or self._clock.monotonic() - self._last_trouble > _LATELY_SECONDS:
            return False
        self._failure = self._last_trouble = None
        return True

    def check(self, answers: Callable[[], bool]) -> None:
        """Raise when this client cannot go on.

        `answers` asks a broker and says whether one replied.

        Raises:
            BrokerUnavailable: none replied for the retry time.
            EsperError: the client was fenced, refused or lost its place in the log.
        """
        self.raise_failure()
        now = self._clock.monotonic()
        if self._away_since is None or now < self._next_probe:
            return
        if answers():
            _logger.info("%s: the broker is back", self._what)
            self._away_since = None
            self._last_trouble = now
        elif self._clock.monotonic() - self._away_since >= self._retry_seconds:
            raise no_broker(self._what, seconds=self._retry_seconds, bootstrap=self._bootstrap)
        self._next_probe = self._clock.monotonic() + _PROBE_EVERY_SECONDS

    def retrying(self, what: str, call: Callable[[], _T], *, seconds: float | None = None) -> _T:
        """Return what `call` returns, trying again with jitter while no broker answers.

        Raises:
            BrokerUnavailable: none answered for `seconds` (by default the retry time).
            EsperError: Kafka refused the call for another reason.
        """
        limit = self._retry_seconds if seconds is None else seconds
        deadline = Deadline(limit, clock=self._clock)
        while True:  # ends by return, by a refusal, or at the deadline
            try:
                return call()
            except KafkaException as exception:
                error = error_of(exception)
                if not passes(error):
                    raise translate(error, what) from exception
                self._last_trouble = self._clock.monotonic()
                self.raise_failure()
                if deadline.expired:
                    raise no_broker(what, seconds=limit, bootstrap=self._bootstrap) from exception
            self._clock.sleep(jitter(min(_PROBE_EVERY_SECONDS, max(deadline.remaining_seconds, 0.01))))
