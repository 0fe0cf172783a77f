"""The runs of an evaluation, read from the log up to a vector of offsets that can be named and read again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import NotReadyError, UsageError
from esper.oona import Event, Fabric, Position, Record

if TYPE_CHECKING:
    from esper.simic.trials import Place, Plan, TrialRun

_REQUESTS: Final = "run-requests"
_TOPICS: Final = ("runs", "system-state", "decisions")
_POLL_SECONDS: Final = 1.0
_BATCH: Final = 2_000
#: Ten million records that are passed over take some minutes.
_READ_SECONDS: Final = 3_600.0

#: Topic -> partition -> first offset that was not read, as a report names it.
Offsets = dict[str, dict[str, int]]


class EvaluationLog:
    """All runs of a plan that the log holds; `refresh` reads on. One thread at a time.

    Records of other runs are passed over unverified, those of the plan are verified one by one.
    """

    def __init__(self, fabric: Fabric, plan: Plan) -> None:
        from esper.simic.trials import TrialLog

        self._fabric = fabric
        self._log = TrialLog(plan.digest)
        places = [
            (topic, number) for topic in (_REQUESTS, *_TOPICS) for number in range(fabric.topics[topic].partitions)
        ]
        self._next = {place: low for place, (low, _) in fabric.cluster.watermarks(places).items()}
        self._runs: dict[Place, list[TrialRun]] = {}

    def refresh(self, until: Mapping[Position, int] | None = None) -> None:
        """Read on: to the ends that the partitions have now, or to `until`.

        Raises:
            UsageError: the log does not reach as far as `until`.
            BrokerUnavailable, IntegrityError, NotReadyError: it cannot be read, or not in time.
        """
        held = {place: high for place, (_, high) in self._fabric.cluster.watermarks(self._next).items()}
        ends = held if until is None else dict(until)
        beyond = [place for place in ends if place not in held or ends[place] > held[place]]
        if beyond or set(ends) != set(self._next):
            raise UsageError(
                "the log cannot be read at these offsets",
                cause=f"it does not hold {beyond[0][0]}-{beyond[0][1]} so far" if beyond else "partitions are missing",
                next_step="Give a report of an evaluation on this log",
            )
        # Requests first, so that it is known which runs' records are wanted. A record of a run whose request came
        # later than these ends lies beyond them too.
        self._read({place: end for place, end in ends.items() if place[0] == _REQUESTS})
        self._read({place: end for place, end in ends.items() if place[0] != _REQUESTS})
        self._runs = {}
        for run in self._log.runs():
            self._runs.setdefault(run.place, []).append(run)

    def runs(self) -> list[TrialRun]:
        """Return the plan's runs as they stand, in the order in which they were asked for."""
        return sorted((run for runs in self._runs.values() for run in runs), key=lambda run: (run.offset, run.run_id))

    def at(self, place: Place) -> TrialRun | None:
        """Return the run that counts for a place; None where there is none, or those that were are lost."""
        return next((run for run in self._runs.get(place, ()) if not run.lost), None)

    def run(self, run_id: str) -> TrialRun:
        """Return the plan's run of this id, which there is."""
        return next(run for runs in self._runs.values() for run in runs if run.run_id == run_id)

    def offsets(self) -> Offsets:
        """Return how far it was read."""
        found: Offsets = {}
        for (topic, partition), offset in sorted(self._next.items()):
            found.setdefault(topic, {})[str(partition)] = offset
        return found

    def _read(self, ends: Mapping[Position, int]) -> None:
        begin = {place: self._next[place] for place in ends if self._next[place] < ends[place]}
        if not begin:
            return
        ids = self._log.run_ids
        keys = {run_id.encode() for run_id in ids}

        def wanted(record: Record) -> bool:
            inside = record.offset < ends[record.topic, record.partition]
            return inside and (record.topic == _REQUESTS or record.key in keys)

        deadline = Deadline(_READ_SECONDS, clock=SYSTEM_CLOCK)
        with self._fabric.reader(begin) as reader:
            while any(reader.positions()[place] < ends[place] for place in begin):
                if deadline.expired:
                    raise NotReadyError("the log of the evaluation was not read in time", next_step="Try again")
                events: list[Event] = reader.read(_POLL_SECONDS, limit=_BATCH, only=wanted)
                self._log.see(events)
        self._next |= {place: ends[place] for place in begin}


def positions_of(offsets: object) -> dict[Position, int]:
    """Return the vector that a report names.

    Raises:
        UsageError: it is none.
    """
    try:
        assert isinstance(offsets, dict), "a report's offsets are an object"
        return {
            (str(topic), int(partition)): int(offset)
            for topic, places in offsets.items()
            for partition, offset in places.items()
        }
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            "the report names no offsets", cause=str(error), next_step="Give a report.json of `esper evaluate`"
        ) from error
