"""Who trains which run: a fold of the topic `runs`, and the protocol by which a worker takes one.

A claim is an event. Of two claims of one attempt the lower offset wins, so a worker appends its claim, reads
the partition back up to it, and only then knows. A higher attempt fences all lower ones; what a fenced
attempt still appends counts for nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final

from esper.core.clock import Deadline
from esper.core.errors import BrokerUnavailable
from esper.core.ids import derive_id
from esper.leyline import messages as ly
from esper.oona import Event, Fabric, Publisher

_log = logging.getLogger("esper.tolaria.claims")

RUNS_TOPIC: Final = "runs"
#: After so many attempts a run that ends no worker's life cleanly is given up.
ATTEMPTS_MAX: Final = 3
#: A backlog of a million records is read in a minute or two; more than this means that nothing moves.
_CATCH_UP_SECONDS: Final = 600.0
#: The book is read only when a run is claimed, but its client hears of every record.
_GATHER_SECONDS: Final = 0.1


@dataclass(frozen=True)
class RunClaim:
    """How a run stands: its highest attempt, who won it, and whether the run is over."""

    run_id: str
    attempt: int = 0
    worker: str = ""
    producer_id: str = ""
    claim_event_id: str = ""
    request_event_id: str = ""
    #: Home of the worker.
    home_id: str = ""
    partition: int = 0
    #: Of the winning claim of the highest attempt, and of the first attempt's.
    claim_offset: int = 0
    first_offset: int = 0
    ended: bool = False

    def fold(self, event: Event) -> RunClaim:
        """Return the run after one more event of its partition; pure.

        Attempts follow each other one by one and name one request; a claim that does not counts for nothing.
        """
        message = event.message
        if isinstance(message, ly.TrainingRunClaimed) and self._is_next(message):
            return replace(
                self,
                attempt=message.attempt,
                worker=message.worker,
                producer_id=message.producer_id,
                claim_event_id=event.meta.event_id,
                request_event_id=message.request_event_id,
                home_id=message.home_id,
                partition=event.partition,
                claim_offset=event.offset,
                first_offset=self.first_offset if self.attempt else event.offset,
            )
        if isinstance(message, ly.TrainingRunFinished | ly.TrainingRunFailed):
            # Attempt 0 is whoever asked for the run giving it up, whatever its attempt.
            fenced = 0 < message.attempt < self.attempt
            return self if fenced else replace(self, ended=True)
        return self

    def _is_next(self, claim: ly.TrainingRunClaimed) -> bool:
        same_request = not self.attempt or claim.request_event_id == self.request_event_id
        return claim.attempt == self.attempt + 1 and same_request

    def falls_to(self, worker: str, *, home_id: str, alive: Collection[str]) -> bool:
        """Return whether `worker` is to go on with this run: it is its own, or its worker is dead.

        `alive` names the living members of the home `home_id`; of another home's members nothing is known here.
        """
        if self.ended or not self.attempt:
            return False
        if self.worker == worker:
            return self.home_id in ("", home_id)
        return self.home_id == home_id and self.worker not in alive


@dataclass(frozen=True)
class Claimed:
    """A run that this worker has won: the request and its append time, the attempt, and where its claim stands."""

    request: ly.TrainingRunRequested
    attempt: int
    partition: int
    offset: int
    first_offset: int
    #: LogAppendTime of the request, milliseconds since the epoch.
    requested_ms: int = 0

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.request.run_id


class ClaimBook:
    """The state of every run, folded in memory from the whole topic `runs`; one thread at a time."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        partitions = range(fabric.topics[RUNS_TOPIC].partitions)
        self._reader = fabric.reader(
            {(RUNS_TOPIC, partition): "begin" for partition in partitions}, gather_seconds=_GATHER_SECONDS
        )
        self._runs: dict[str, RunClaim] = {}

    def catch_up(self) -> None:
        """Read to the ends that the partitions have now."""
        self._fold(self._reader.read_to_end(_CATCH_UP_SECONDS))

    def catch_up_past(self, partition: int, offset: int) -> None:
        """Read until the record at `offset` of `partition` is folded.

        Raises:
            BrokerUnavailable: it could not be read within `settings.broker_retry_seconds`.
        """
        seconds = self._fabric.settings.broker_retry_seconds
        deadline = Deadline(seconds)
        while self._reader.positions()[(RUNS_TOPIC, partition)] <= offset:
            if deadline.expired:
                raise BrokerUnavailable(
                    f"{RUNS_TOPIC}-{partition} cannot be read up to offset {offset}",
                    cause=f"it did not come within {seconds:g} seconds",
                    next_step="Is the broker up?",
                )
            self._fold(self._reader.read(min(1.0, deadline.remaining_seconds)))

    def run(self, run_id: str) -> RunClaim | None:
        """Return how a run stands; None when nobody ever claimed it."""
        return self._runs.get(run_id)

    def unfinished(self, worker: str, *, home_id: str, alive: Collection[str]) -> list[RunClaim]:
        """Return the runs that `worker` is to go on with, in the order of their ids (`RunClaim.falls_to`)."""
        runs = (run for _, run in sorted(self._runs.items()))
        return [run for run in runs if run.falls_to(worker, home_id=home_id, alive=alive)]

    def close(self) -> None:
        """Release the connection."""
        self._reader.close()

    def _fold(self, events: Iterable[Event]) -> None:
        for event in events:
            run_id = event.meta.subject
            before = self._runs.get(run_id, RunClaim(run_id))
            after = before.fold(event)
            if after.attempt or after.ended:
                self._runs[run_id] = after


def claim(
    book: ClaimBook,
    publisher: Publisher,
    request: ly.TrainingRunRequested,
    *,
    worker: str,
    attempt: int,
    home_id: str = "",
    requested_ms: int = 0,
) -> Claimed | None:
    """Claim `attempt` of a run and return it if this worker won; None when another was first.

    Doing it twice with one publisher does no harm: the claim has the same id both times.

    Raises:
        BrokerUnavailable: the claim was not acknowledged, or could not be read back.
    """
    run_id = request.run_id
    claim_id = derive_id(run_id, "claim", attempt, publisher.producer_id)
    message = ly.TrainingRunClaimed(
        run_id=run_id,
        attempt=attempt,
        worker=worker,
        producer_id=publisher.producer_id,
        request_event_id=request.meta.event_id,
        home_id=home_id,
    )
    receipt = publisher.publish(
        message,
        key=run_id,
        causation_id=request.meta.event_id,
        event_id=claim_id,
    )
    book.catch_up_past(receipt.partition, receipt.offset)
    run = book.run(run_id)
    assert run is not None, "the claim that was read back is folded"
    if run.claim_event_id != claim_id or run.ended:
        _log.info("attempt %d of run %s went to %s", attempt, run_id, run.worker)
        return None
    return Claimed(
        request=request,
        attempt=attempt,
        partition=run.partition,
        offset=run.claim_offset,
        first_offset=run.first_offset,
        requested_ms=requested_ms,
    )
