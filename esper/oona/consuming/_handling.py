"""One event and its handler: attempts, waiting times, and how it ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from confluent_kafka import KafkaException

from esper.core.clock import SYSTEM_CLOCK
from esper.core.errors import BrokerUnavailable, EsperError
from esper.core.rng import jitter
from esper.leyline import BadRecord
from esper.oona._counters import Counters
from esper.oona._events import Event, Handler
from esper.oona._failures import error_of, passes
from esper.oona.letters._redrive import Failed, Left

_logger = logging.getLogger("esper.oona.consumer")

#: Attempts that a handler gets at an event before the event is parked.
ATTEMPTS_MAX: Final = 5
_BACKOFF_FIRST_SECONDS: Final = 0.05
_BACKOFF_MAX_SECONDS: Final = 1.0
#: Other keys wait for these attempts, a third of a second in all; what needs longer says so by a retriable error.
_POISON_BACKOFF_FIRST_SECONDS: Final = 0.02


def attempt(
    handler: Handler,
    event: Event,
    *,
    counters: Counters,
    retry_seconds: float,
    stop: threading.Event,
    taken_away: Callable[[], bool],
) -> Failed | None:
    """Call the handler until it succeeds; return why not when the event is poison.

    Raises:
        BadRecord: the handler refuses the event for good; it is set aside and its key goes on.
        Left: a stop came, or the partition was taken away, while the event was being retried.
        EsperError: it kept failing for a passing reason until the retry time was over.
        BrokerUnavailable: the handler found no broker; whoever raised it has waited the retry time already.
    """
    failures, backoff, poison_backoff = 0, _BACKOFF_FIRST_SECONDS, _POISON_BACKOFF_FIRST_SECONDS
    began = SYSTEM_CLOCK.monotonic()
    while True:  # ends by success, after ATTEMPTS_MAX, at the deadline, or by a stop
        try:
            handler(event)
        except (BadRecord, BrokerUnavailable):
            raise
        except Exception as error:  # The poison handler: whatever a handler raises ends here.
            _logger.info("%s-%d-%d failed: %r", event.topic, event.partition, event.offset, error)
            if is_passing(error):
                if SYSTEM_CLOCK.monotonic() - began >= retry_seconds:
                    raise
                wait, backoff = backoff, min(2 * backoff, _BACKOFF_MAX_SECONDS)
            else:
                failures += 1
                if failures >= ATTEMPTS_MAX:
                    place = (event.topic, event.partition, event.offset)
                    _logger.exception("%s-%d-%d is parked after %d attempts", *place, failures)
                    return Failed(f"{type(error).__name__}: {error}", failures)
                wait, poison_backoff = poison_backoff, 2 * poison_backoff
        else:
            return None
        counters.retried += 1
        if stop.wait(jitter(wait)) or taken_away():
            raise Left


def is_passing(error: Exception) -> bool:
    """Return whether the same call may succeed later."""
    if isinstance(error, EsperError):
        return error.retriable
    return isinstance(error, KafkaException) and passes(error_of(error))
