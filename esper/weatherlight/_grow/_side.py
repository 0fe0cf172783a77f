"""Where a run's log is: with the process that speaks for it, or with the first of its ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from esper.core.ids import RunId
from esper.core.kernel import DirectoryBlobStore
from esper.core.ports import BlueprintRuntime
from esper.core.ranks import Ranks
from esper.core.settings import Settings
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.tolaria import TrainingJournal
from esper.weatherlight._grow._absence import close_gap, journal_for, runtime_for
from esper.weatherlight._grow._ranks import FollowingJournal, LeadingJournal, ReceivedKernels, await_start, tell_start
from esper.weatherlight._grow._record import GrowRecord
from esper.weatherlight._grow._wishes import Wishes


class Side(Protocol):
    """What a run of the user's own loop needs of its log."""

    ranks: Ranks
    settings: Settings

    @property
    def run_id(self) -> RunId:
        """Id of the run in the log."""

    def runtime(self) -> BlueprintRuntime:
        """Return where kernels come from."""

    def journal(self) -> TrainingJournal:
        """Return the journal of the run's epochs, once."""

    @contextmanager
    def edge(self) -> Iterator[None]:
        """Go through an epoch's edge in the block."""

    def started(self, *, numerics: ly.NumericsFingerprint, parameters: int, digest: str) -> None:
        """Say that the run starts."""

    def close_gap(self) -> None:
        """Wait until nothing is unsaid."""

    def finished(self, end: ly.TrainingRunFinished) -> None:
        """Say that the run came to its end."""

    def failed(self, detail: str, *, epochs: int) -> None:
        """Say that it did not."""


class SpeakingSide:
    """The process that writes the log: the only one, or the first of several ranks."""

    def __init__(self, fabric: Fabric, wishes: Wishes, ranks: Ranks, *, host: str) -> None:
        self.ranks = ranks
        self.settings = fabric.settings
        self._fabric = fabric
        self._wishes = wishes
        self._record = GrowRecord(fabric, wishes, host=host)
        self._journal: TrainingJournal | None = None
        self._leading: LeadingJournal | None = None
        tell_start(ranks, self.run_id)

    @property
    def run_id(self) -> RunId:
        return self._record.run_id

    def runtime(self) -> BlueprintRuntime:
        return runtime_for(self._wishes.on_log_loss, self._fabric)

    def journal(self) -> TrainingJournal:
        self._journal = journal_for(self._wishes.on_log_loss, self._fabric, self._record)
        if self.ranks.size == 1:
            return self._journal
        store = DirectoryBlobStore(self._fabric.home.blobs)
        self._leading = LeadingJournal(self._journal, self.ranks, store)
        return self._leading

    @contextmanager
    def edge(self) -> Iterator[None]:
        if self._leading is None:
            yield
            return
        with self._leading.edge():
            yield

    def started(self, *, numerics: ly.NumericsFingerprint, parameters: int, digest: str) -> None:
        self._record.started(numerics=numerics, parameters=parameters, digest=digest)

    def close_gap(self) -> None:
        close_gap(self._journal, run_id=self.run_id, wait_seconds=self.settings.broker_retry_seconds)

    def finished(self, end: ly.TrainingRunFinished) -> None:
        self._record.finished(end)

    def failed(self, detail: str, *, epochs: int) -> None:
        self._record.failed(detail, epochs=epochs)


class ListeningSide:
    """Any other rank: the first one says what the log holds."""

    def __init__(self, settings: Settings, ranks: Ranks) -> None:
        self.ranks = ranks
        self.settings = settings
        self._kernels = ReceivedKernels()
        self._run_id = RunId(await_start(ranks))

    @property
    def run_id(self) -> RunId:
        return self._run_id

    def runtime(self) -> BlueprintRuntime:
        return self._kernels

    def journal(self) -> TrainingJournal:
        return FollowingJournal(self.ranks, self._kernels)

    @contextmanager
    def edge(self) -> Iterator[None]:
        yield

    def started(self, *, numerics: ly.NumericsFingerprint, parameters: int, digest: str) -> None:
        """Say nothing: the first rank speaks."""

    def close_gap(self) -> None:
        """Say nothing: the first rank speaks."""

    def finished(self, end: ly.TrainingRunFinished) -> None:
        """Say nothing: the first rank speaks."""

    def failed(self, detail: str, *, epochs: int) -> None:
        """Say nothing: the first rank sees that this one is gone."""
