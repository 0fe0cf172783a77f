"""What a restore needs before it writes anything, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from esper.core._log_key import LogKey, log_public_key, open_log_key
from esper.core.clock import Clock
from esper.core.errors import SecretError, UsageError
from esper.core.home import Home
from esper.core.settings import Settings
from esper.leyline import SIGNATURE_HEADER, TYPE_HEADER, Envelope, Record, Verdict
from esper.oona import Cluster, Position, TopicCatalog
from esper.projection.archive._log import OPERATIONS
from esper.projection.archive._models import Seal
from esper.projection.archive._segments import Segment, read_segment
from esper.projection.archive._survey import Survey

#: Each offset without a record takes two hundredths of a second: so many take minutes.
GAPS_MAX: Final = 10_000
_HOUR_MS: Final = 3_600_000


@dataclass(frozen=True)
class Work:
    """What is to be written, and where."""

    home: Home
    cluster: Cluster
    catalog: TopicCatalog
    found: Survey
    seal: Seal
    segments: dict[Position, list[Segment]]
    key: LogKey

    @property
    def spans(self) -> dict[Position, tuple[int, int]]:
        """First offset of each partition, and the one after its last."""
        return {one.place: (one.first_offset, one.next_offset) for one in self.seal.partitions}


def key_of(home: Home) -> LogKey:
    """Return the log key of a home; raises SecretError where it lacks it: one that is made now has signed nothing."""
    if log_public_key(home.root) is None or not (home.root / "log-key").exists():
        raise SecretError(
            f"home {home.root} cannot restore a log",
            cause="it does not hold the log key that sealed the archive and signs that the log goes on",
            next_step="Put the files log-key, log-key.pub and key (or ESPER_LEYLINE_SECRET) of the home that sealed it "
            "into this home",
        )
    return open_log_key(home.root)


def check_possible(work: Work, settings: Settings, *, clock: Clock) -> None:
    """Refuse what could not be written as it was, or not be verified afterwards.

    Raises:
        UsageError: topics, gaps or times stand against it.
        SecretError: the home holds another signing key.
    """
    _check_layout(work)
    _check_writable(work, clock)
    _check_secret(work, settings)


def _check_layout(work: Work) -> None:
    """Refuse an archive whose topics are not those of the files."""
    counts: dict[str, int] = {}
    for topic, partition in work.spans:
        counts[topic] = max(counts.get(topic, 0), partition + 1)
    for topic, count in counts.items():
        expected = work.catalog[topic].partitions if topic in work.catalog else 0
        if count != expected:
            raise UsageError(
                f"topic {topic} cannot be restored",
                cause=f"the archive has {count} partitions of it, its file says {expected}",
                next_step="Point ESPER_TOPICS_DIR at the topic files of the log that was sealed",
            )


def _check_writable(work: Work, clock: Clock) -> None:
    """Refuse what Kafka would not take as it was."""
    manifests = [one.manifest for found in work.segments.values() for one in found]
    gaps = sum(one.missing for one in manifests)
    if gaps > GAPS_MAX:
        worst = max(manifests, key=lambda one: one.missing)
        raise UsageError(
            "the archive cannot be restored at the offsets that it had",
            cause=f"{gaps} offsets hold no record, most in {worst.topic}-{worst.partition}; up to {GAPS_MAX} can be "
            "left empty again, one by one",
            next_step="Read it where it lies: `esper replay` does, and any Avro tool",
        )
    hour_ahead_ms = clock.now_ns() // 1_000_000 + _HOUR_MS
    for one in manifests:
        if one.records and (one.time_min_ms <= 0 or one.time_max_ms > hour_ahead_ms):
            raise UsageError(
                f"{one.topic}-{one.partition} cannot be restored with the times that it had",
                cause="a record's time is not after 1970, or more than an hour ahead of this machine's clock",
                next_step="Set the clock of this machine and of the brokers",
            )


def _check_secret(work: Work, settings: Settings) -> None:
    """Refuse a home with another signing key: it would take every record of the log for a forgery."""
    keyring = work.home.keyring(settings)
    for segment in reversed(work.segments.get((OPERATIONS, 0), [])):
        for record in read_segment(segment):
            verdict = _verdict(record, keyring.verify)
            if verdict is Verdict.GOOD:
                return
            if verdict is Verdict.UNKNOWN_KEY:
                raise SecretError(
                    "the log cannot be restored into this home",
                    cause="its records were signed with a key that this home does not hold",
                    next_step="Put the file key (or ESPER_LEYLINE_SECRET) of the home that sealed it into this home",
                )


def _verdict(record: Record, verify: Callable[[Envelope, bytes], Verdict]) -> Verdict | None:
    signature, type_name = record.header(SIGNATURE_HEADER), record.header(TYPE_HEADER)
    if signature is None or type_name is None or record.key is None or record.value is None:
        return None
    try:
        envelope = Envelope(record.topic, record.partition, record.key.decode(), type_name.decode(), record.value)
    except UnicodeDecodeError:
        return None
    return verify(envelope, signature)
