"""What the successive publishers of one source share: the breaker, how their predecessors ended, and the counts."""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from google.protobuf import json_format

from esper.core.breaker import CircuitBreaker
from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import BrokerUnavailable
from esper.core.files import write_atomically
from esper.core.settings import Settings
from esper.leyline import messages as ly
from esper.oona._latency import LatencyHistogram

if TYPE_CHECKING:
    from collections.abc import Iterator

_logger = logging.getLogger("esper.oona.publisher")

#: How long a successor waits until all of its predecessor's records have their outcome.
_ENDING_SECONDS: Final = 5.0
_CAUSE_CHARACTERS_MAX: Final = 500
_SUFFIX: Final = ".ending"


@dataclass(frozen=True)
class PublisherMetrics:
    """Counters of one publisher, or of all publishers of a source, since they began."""

    submitted: int = 0
    acknowledged: int = 0
    failed: int = 0
    #: Waits for room in a full queue; they are no failures.
    backpressure_waits: int = 0
    #: Telemetry packets that were dropped under pressure.
    telemetry_dropped: int = 0

    def __add__(self, other: PublisherMetrics) -> PublisherMetrics:
        return PublisherMetrics(
            self.submitted + other.submitted,
            self.acknowledged + other.acknowledged,
            self.failed + other.failed,
            self.backpressure_waits + other.backpressure_waits,
            self.telemetry_dropped + other.telemetry_dropped,
        )


class PublisherLine:
    """The line of publishers that write as one source for one member; safe to share between threads.

    The breaker counts failed deliveries in a row, of whatever life: at `settings.publish_failures_max` it opens
    and refuses at once; after `settings.publish_open_seconds` one record passes as a probe, and its
    acknowledgement closes the breaker. A full queue is backpressure and is not counted.

    How a life ended that had acknowledged records is kept until a successor has told it: in memory, and as a
    note in `folder` for the process that follows this one.
    """

    def __init__(
        self, *, member: str, source: str, folder: Path, settings: Settings, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.member = member
        self.source = source
        self.latency = LatencyHistogram()
        self._folder = folder
        self._clock = clock
        self._breaker = CircuitBreaker(
            failures_max=settings.publish_failures_max, open_seconds=settings.publish_open_seconds
        )
        self._changed = threading.Condition()
        self._dying = 0
        self._endings: dict[str, ly.ProducerStarted] = {}
        self._closed_lives = PublisherMetrics()

    # Breaker ------------------------------------------------------------------------------------------------

    def breaker_state(self) -> ly.CircuitBreakerState:
        """Return CLOSED, OPEN or HALF_OPEN as of now."""
        return self._breaker.state(self._clock.monotonic())

    def admit(self, what: str) -> None:
        """Let one record pass; called right before it is enqueued, so that every probe has an outcome.

        Raises:
            BrokerUnavailable: the breaker is open, or its probe is still on its way.
        """
        if self._breaker.opened_at is None:
            return
        with self._changed:
            now, breaker = self._clock.monotonic(), self._breaker
            if not breaker.allows(now):
                wait = "its probe is on its way" if breaker.probing else _in_seconds(breaker.seconds_until_probe(now))
                cause = f"the publish breaker of {self.source} is open after {breaker.failures} failures; {wait}"
                raise BrokerUnavailable(what, cause=cause, next_step="Is the broker up?")
            self._breaker = breaker.began(now)

    def succeeded(self) -> None:
        """Count an acknowledged record: it closes an open breaker."""
        if not self._breaker.failures:
            return
        with self._changed:
            if self._breaker.opened_at is not None:
                _logger.warning("the publish breaker of %s is closed again", self.source)
            self._breaker = self._breaker.succeeded()

    def failed(self) -> None:
        """Count a delivery that failed."""
        with self._changed:
            self._breaker = self._breaker.failed(self._clock.monotonic())
            if self._breaker.opened_at is not None:
                _logger.warning(
                    "the publish breaker of %s is open after %d failures", self.source, self._breaker.failures
                )

    # Succession ---------------------------------------------------------------------------------------------

    def dying(self) -> None:
        """Take note that a life ends in failure; `ended` follows when its last record has its outcome."""
        with self._changed:
            self._dying += 1

    def ended(self, producer_id: str, links: list[ly.ChainLink], cause: str) -> None:
        """Keep what a life that failed had acknowledged, until a successor has told it."""
        ending = ly.ProducerStarted(
            member=self.member, predecessor_id=producer_id, links=links, cause=cause[:_CAUSE_CHARACTERS_MAX]
        )
        if links:
            self._write_note(ending)
        with self._changed:
            self._dying -= 1
            if links:
                self._endings[producer_id] = ending
            self._changed.notify_all()

    def untold(self) -> list[ly.ProducerStarted]:
        """Return how earlier lives of this member and source ended, as far as no successor has told it."""
        with self._changed:
            self._changed.wait_for(lambda: self._dying == 0, timeout=_ENDING_SECONDS)
            endings = dict(self._endings)
        for note in self._notes():
            endings.setdefault(note.predecessor_id, note)
        return [endings[producer_id] for producer_id in sorted(endings)]

    def told(self, ending: ly.ProducerStarted) -> None:
        """Forget an ending that now stands in the log."""
        with self._changed:
            self._endings.pop(ending.predecessor_id, None)
        self._note_path(ending.predecessor_id).unlink(missing_ok=True)

    # Counts -------------------------------------------------------------------------------------------------

    def closed(self, metrics: PublisherMetrics) -> None:
        """Keep the counts of a life that was closed."""
        with self._changed:
            self._closed_lives += metrics

    @property
    def closed_lives(self) -> PublisherMetrics:
        """Counts of all lives that were closed."""
        return self._closed_lives

    def _note_path(self, producer_id: str) -> Path:
        return self._folder / f"{_file_words(self.member)}.{_file_words(producer_id)}{_SUFFIX}"

    def _write_note(self, ending: ly.ProducerStarted) -> None:
        """Leave a note to the process that follows; without it the log still holds the whole chain."""
        try:
            text = json_format.MessageToJson(ending)
            write_atomically(self._note_path(ending.predecessor_id), text.encode(), mode=0o600)
        except OSError as error:
            _logger.warning("the end of %s could not be noted: %s", ending.predecessor_id, error)

    def _notes(self) -> Iterator[ly.ProducerStarted]:
        pattern = f"{_file_words(self.member)}.{_file_words(self.source)}-*{_SUFFIX}"
        for path in sorted(self._folder.glob(pattern)):
            try:
                note = json_format.Parse(path.read_bytes(), ly.ProducerStarted())
            except FileNotFoundError:
                continue  # Another process of this member has told it meanwhile.
            except (OSError, json_format.ParseError) as error:
                _logger.warning("the note %s cannot be read and is left alone: %s", path, error)
                continue
            if note.member == self.member:
                yield note


def _file_words(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "-", text)


def _in_seconds(seconds: float) -> str:
    return f"the next attempt is let pass in {seconds:.1f} seconds"
