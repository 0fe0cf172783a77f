"""The writer of checkpoints: reads every partition behind everybody's back and signs what it read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from esper.core._log_key import LogKey, open_log_key
from esper.core.clock import SYSTEM_CLOCK, Clock, Deadline
from esper.core.errors import IntegrityError
from esper.leyline import TYPE_HEADER, Record
from esper.leyline import messages as ly
from esper.oona._cluster import Position
from esper.oona.proof._checkpoint import (
    CHECKPOINT_TYPE,
    OPERATIONS,
    BadCheckpoint,
    CheckpointFold,
    Covered,
    make_checkpoint,
    open_checkpoint,
    renamed,
)
from esper.oona.proof._digest import EMPTY, advance, record_hash
from esper.oona.proof._kafka import KafkaLog
from esper.oona.proof._log import Bounds, RecordLog, Span
from esper.oona.proof._restored import RESTORED_TYPE, bridges_of, open_restored
from esper.oona.publishing._pending import Receipt
from esper.oona.publishing._publisher import Publisher
from esper.oona.reading._reader import Reader

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric

_logger = logging.getLogger("esper.oona.proof")

#: Record key of every checkpoint.
KEY: Final = "log"
_CHECKPOINT_HEADER: Final = CHECKPOINT_TYPE.encode()
_RESTORED_HEADER: Final = RESTORED_TYPE.encode()
_BATCH: Final = 500
#: A checkpoint may be half a second late; the broker and this process are woken that much less often.
_GATHER_SECONDS: Final = 0.5
_POLL_SECONDS: Final = 0.5
#: How long a writer that is told to stop reads on, so that its last checkpoint covers what is there.
_DRAIN_SECONDS: Final = 5.0
#: Whoever asks for a checkpoint waits for it: a minute reads some millions of records.
_COVER_SECONDS: Final = 3_600.0


@dataclass
class _Progress:
    """One partition, as far as this writer read it, and as far as checkpoints cover it."""

    topic_id: str
    covered_to: int
    next_offset: int
    digest: bytes


class CheckpointState:
    """What the next checkpoint will say. Pure: a fold of the log's records in order of each partition's offsets.

    Checkpoints themselves count for nothing here: a log of which only checkpoints are new needs no other one.
    """

    def __init__(self, fold: CheckpointFold, bounds: Mapping[Position, Bounds]) -> None:
        """Go on from the checkpoints in `fold`; partitions that cannot be gone on with are left out, see `refused`."""
        self._fold = fold
        self._progress: dict[Position, _Progress] = {}
        self.refused: dict[Position, str] = {}
        #: Records that no checkpoint covers yet, checkpoints themselves left out.
        self.uncovered = 0
        #: Whether one of them is in a topic that keeps everything: telemetry alone can wait.
        self.pressing = False
        self._keeps_all = frozenset(place for place, found in bounds.items() if found.keeps_all)
        for place, found in bounds.items():
            problem = self._begin(place, found)
            if problem:
                self.refused[place] = problem

    def _begin(self, place: Position, found: Bounds) -> str:
        """Set out on one partition; return in words why that is not possible, or nothing."""
        known = self._fold.covered.get(place)
        if known is None:
            if found.low > 0 and found.keeps_all:
                return f"its first {found.low} records are gone, though its topic keeps everything"
            self._progress[place] = _Progress(found.topic_id, found.low, found.low, EMPTY)
            return ""
        if known.topic_id != found.topic_id:
            return f"its topic was deleted and made again: the id is {found.topic_id}, it was {known.topic_id}"
        if known.next_offset > found.high:
            return f"it is signed up to offset {known.next_offset - 1}, but ends before {found.high}"
        if known.next_offset < found.low:
            if found.keeps_all:
                return f"records {known.next_offset} to {found.low - 1} are gone, though its topic keeps everything"
            self._progress[place] = _Progress(found.topic_id, found.low, found.low, EMPTY)
            return ""
        self._progress[place] = _Progress(found.topic_id, known.next_offset, known.next_offset, known.digest)
        return ""

    @property
    def positions(self) -> dict[Position, int]:
        """The offset of the next record of each partition."""
        return {place: one.next_offset for place, one in self._progress.items()}

    def take(self, record: Record) -> None:
        """Take in the next record of a partition."""
        place = (record.topic, record.partition)
        one = self._progress[place]
        one.digest = advance(one.digest, record_hash(record))
        one.next_offset = record.offset + 1
        if not _is_checkpoint(record):
            self.uncovered += 1
            self.pressing = self.pressing or place in self._keeps_all

    def covered(self) -> dict[Position, Covered]:
        """Return what a checkpoint that is made now says of the partitions that gained records."""
        return {
            place: Covered(one.topic_id, one.covered_to, one.next_offset, one.digest)
            for place, one in self._progress.items()
            if one.next_offset > one.covered_to
        }

    def fold_checkpoint(self, record: Record, public_key: bytes) -> None:
        """Take note of a checkpoint that was read, of this writer or of the one before."""
        try:
            message, content = open_checkpoint(record, public_key=public_key)
        except BadCheckpoint as bad:
            _logger.warning("%s-%d-%d is no checkpoint of this log: %s", *OPERATIONS, record.offset, bad)
            return
        before = self._fold.number
        self._fold.take(message.content, content)
        if self._fold.number > before:
            for found in content.partitions:
                place = (found.topic, found.partition)
                if place in self._progress:
                    self._progress[place].covered_to = found.next_offset

    def make(self, key: LogKey, *, cluster_id: str, topic_ids: Mapping[str, str]) -> ly.LogCheckpoint:
        """Return the next checkpoint; partitions whose topic is another one by now are left out from here on."""
        for place in [place for place, one in self._progress.items() if one.topic_id != topic_ids.get(place[0])]:
            del self._progress[place]
            self.refused[place] = "its topic was deleted and made again while it was read"
        self.uncovered, self.pressing = 0, False
        return make_checkpoint(
            key,
            number=self._fold.number + 1,
            previous_digest=self._fold.digest,
            cluster_id=cluster_id,
            covered=self.covered(),
        )


class CheckpointWriter:
    """Appends a LogCheckpoint every `settings.checkpoint_records` records or `checkpoint_seconds`, and at the end.

    There must be one writer of a log at a time: the housekeeper. A writer that follows another one goes on from the
    last checkpoint in `operations`, so that nothing between the two stays unsigned.
    """

    def __init__(self, fabric: Fabric, publisher: Publisher, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._fabric = fabric
        self._publisher = publisher
        self._clock = clock
        self._log = KafkaLog(fabric)
        #: Offset of this writer's last checkpoint; the next one waits until it was read back.
        self._awaited = -1
        self._waiting_since: float | None = None
        self._abandoned = threading.Event()

    def run(self, stop: threading.Event) -> None:
        """Write checkpoints until `stop` is set, then one that covers what is there.

        Raises:
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
            SecretError: the log key cannot be used.
        """
        opened = self._open()
        if opened is None:
            stop.wait()
            return
        key, state = opened
        with self._fabric.reader(state.positions, gather_seconds=_GATHER_SECONDS) as reader:
            while not stop.is_set():
                self._read(reader, state, key)
                if self._due(state):
                    self._append(state, key)
            if not self._abandoned.is_set():
                self._finish(reader, state, key)

    def abandon(self) -> None:
        """Let `run` end without a last checkpoint, when it is told to stop."""
        self._abandoned.set()

    def write_now(self) -> Receipt | None:
        """Read to the ends that the log has now, and append a checkpoint if there is anything to cover.

        Raises as `run`, and IntegrityError when the log's checkpoints are another key's.
        """
        opened = self._open()
        if opened is None:
            raise IntegrityError(
                "no checkpoint can be written",
                cause="the log's checkpoints were signed with another key",
                next_step="Put the file log-key of the home that wrote them into this home",
            )
        key, state = opened
        with self._fabric.reader(state.positions) as reader:
            return self._finish(reader, state, key, seconds=_COVER_SECONDS)

    def _open(self) -> tuple[LogKey, CheckpointState] | None:
        """Return the key and where the last checkpoints end; None when those are another key's."""
        key = open_log_key(self._fabric.home.root)
        fold, foreign = read_checkpoints(self._log, key.public_key)
        if fold.number == 0 and foreign:
            _logger.error(
                "no checkpoints are written: the %d in operations were signed with another key than %s",
                foreign,
                self._fabric.home.root / "log-key",
            )
            return None
        state = CheckpointState(fold, self._log.bounds())
        for place, problem in state.refused.items():
            _logger.error("%s-%d gets no more checkpoints: %s; `esper verify` says more", *place, problem)
        return key, state

    def _read(self, reader: Reader, state: CheckpointState, key: LogKey) -> int:
        # No batch reaches far beyond where the next checkpoint is due.
        wanted = self._fabric.settings.checkpoint_records - state.uncovered
        records = reader.read_raw(_POLL_SECONDS, min(_BATCH, max(1, wanted)))
        for record in records:
            state.take(record)
            if (record.topic, record.partition) == OPERATIONS and _is_checkpoint(record):
                state.fold_checkpoint(record, key.public_key)
        if state.pressing and self._waiting_since is None:
            self._waiting_since = self._clock.monotonic()
        return len(records)

    def _due(self, state: CheckpointState) -> bool:
        settings = self._fabric.settings
        if not state.uncovered or not self._read_back(state):
            return False
        waited = 0.0 if self._waiting_since is None else self._clock.monotonic() - self._waiting_since
        return state.uncovered >= settings.checkpoint_records or waited >= settings.checkpoint_seconds

    def _read_back(self, state: CheckpointState) -> bool:
        """Return whether this writer's last checkpoint was read: only then is its number known to be its own."""
        return state.positions.get(OPERATIONS, 0) > self._awaited

    def _append(self, state: CheckpointState, key: LogKey) -> Receipt | None:
        self._waiting_since = None
        checkpoint = state.make(key, cluster_id=self._log.cluster_id(), topic_ids=self._log.topic_ids())
        receipt = self._publisher.publish(checkpoint, key=KEY)
        self._awaited = receipt.offset
        return receipt

    def _finish(
        self, reader: Reader, state: CheckpointState, key: LogKey, *, seconds: float = _DRAIN_SECONDS
    ) -> Receipt | None:
        """Read to the ends that the log has now, and cover what no checkpoint covers."""
        ends = {place: found.high for place, found in self._log.bounds().items() if place in state.positions}
        deadline = Deadline(seconds, clock=self._clock)
        # Where the reader stands, not the last record: a partition may end with the marker of a stranger's transaction.
        while not deadline.expired and any(reader.positions()[place] < end for place, end in ends.items()):
            self._read(reader, state, key)
        return self._append(state, key) if state.uncovered and self._read_back(state) else None


def read_checkpoints(log: RecordLog, public_key: bytes) -> tuple[CheckpointFold, int]:
    """Return the fold of all checkpoints that `public_key` signed, and how many others there are.

    After a restore that it signed they speak of the topics that hold the records since.
    """
    fold, foreign = CheckpointFold(), 0
    found = log.bounds()[OPERATIONS]
    for record in log.read({OPERATIONS: Span(found.low, found.high)}):
        if record.header(TYPE_HEADER) == _RESTORED_HEADER:
            _cross_restore(record, fold, public_key)
        if not _is_checkpoint(record):
            continue
        try:
            message, content = open_checkpoint(record, public_key=public_key)
        except BadCheckpoint:
            foreign += 1
        else:
            fold.take(message.content, content)
    return fold, foreign


def _cross_restore(record: Record, fold: CheckpointFold, public_key: bytes) -> None:
    try:
        _, content = open_restored(record, public_key=public_key)
    except BadCheckpoint as bad:
        _logger.warning("%s-%d-%d is no restore of this log: %s", *OPERATIONS, record.offset, bad)
        return
    for place, bridge in bridges_of(content.partitions).items():
        if place in fold.covered:
            fold.covered[place] = renamed(fold.covered[place], bridge.leads)


def _is_checkpoint(record: Record) -> bool:
    return record.header(TYPE_HEADER) == _CHECKPOINT_HEADER
