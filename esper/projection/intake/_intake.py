"""From a source to batches: read and verify a little at a time, decode and fold a lot at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from esper.oona import Position
from esper.projection.columnar import Batch
from esper.projection.intake._admission import Admission
from esper.projection.records._source import LogState, RecordSource

#: Small reads are the fast ones (3.1M records per CPU-second at 500, 0.9M at 10,000) ...
READ_RECORDS: Final = 500
#: ... and large commits: a commit costs 5 ms whatever it holds.
COMMIT_RECORDS: Final = 20_000
#: A rebuild answers nobody meanwhile, so that its batches may be larger still; they are committed together (`_bulk`).
REBUILD_RECORDS: Final = 50_000
COMMIT_BYTES: Final = 32 * 1024 * 1024


@dataclass(frozen=True)
class Taken:
    """A batch, and whether the log held more when it was full."""

    batch: Batch
    more: bool


class Intake(Protocol):
    """Reads a log from given positions on and hands out batches; one thread at a time."""

    def topic_ids(self) -> Mapping[str, str]:
        """Return the id of each topic."""

    def state(self) -> LogState:
        """Return what the log holds of every partition now."""

    def seek(self, positions: Mapping[Position, int]) -> None:
        """Forget what was read and not handed out; read on from these offsets."""

    def take(self, timeout: float) -> Taken | None:
        """Return the next batch; None while it grows, or when nothing came for `timeout` seconds.

        Raises what reading raises.
        """

    def flush(self) -> Taken | None:
        """Return what was read and not handed out; None when there is nothing."""

    def positions(self) -> Mapping[Position, int]:
        """Return the offset after the last record that was handed out, or would be next, of each partition."""

    @property
    def pending(self) -> bool:
        """Whether something was read and not handed out."""

    def close(self) -> None:
        """Release what it holds."""


class LocalIntake:
    """Reads, verifies and decodes in this thread."""

    def __init__(self, source: RecordSource, admission: Admission, *, records_max: int | None = None) -> None:
        self._source = source
        self._admission = admission
        self._records_max = records_max or COMMIT_RECORDS
        self._gathering = admission.gathering()

    def topic_ids(self) -> Mapping[str, str]:
        """Return the id of each topic."""
        return self._source.topic_ids()

    def state(self) -> LogState:
        """Return what the log holds of every partition now."""
        return self._source.state()

    def seek(self, positions: Mapping[Position, int]) -> None:
        """Forget what was read and not handed out; read on from these offsets."""
        self._drop()
        self._source.seek(positions)

    def take(self, timeout: float) -> Taken | None:
        """Return the next batch; None while it grows, or when nothing came for `timeout` seconds."""
        records = self._source.read(0 if self.pending else timeout, READ_RECORDS)
        if not len(records):
            return self.flush()
        self._gathering.add(records)
        if len(self._gathering) >= self._records_max or self._gathering.value_bytes >= COMMIT_BYTES:
            return self._handed_out(more=True)
        return None

    def flush(self) -> Taken | None:
        """Return what was read and not handed out; None when there is nothing."""
        return self._handed_out(more=False) if self.pending else None

    def positions(self) -> Mapping[Position, int]:
        """Return where the source stands."""
        return self._source.positions()

    @property
    def pending(self) -> bool:
        """Whether something was read and not handed out."""
        return len(self._gathering) > 0

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def _handed_out(self, *, more: bool) -> Taken:
        gathering = self._gathering
        self._drop()
        return Taken(self._admission.admit(gathering), more)

    def _drop(self) -> None:
        self._gathering = self._admission.gathering()
