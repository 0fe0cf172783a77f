"""Field reports by run and by decision, folded from the topic `field-reports`."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

from esper.core.ids import EventId, RunId
from esper.leyline import messages as ly

_NS_PER_SECOND = 1_000_000_000


class FieldReportStore:
    """A fold in memory: feed it reports in the order of the log, ask it for them.

    The log keeps the reports; this is a view of them that can be thrown away and read again. Of two reports that
    close one decision the first counts. Whole episodes are dropped together, never single reports, so that what
    is left can still be learned from; a report of an episode that was dropped brings no part of it back.

    Args:
        episodes_max: Most episodes that are kept; beyond, the one that was silent longest goes. None: all.
        ttl_seconds: How much older than the newest report of all an episode's own newest may be. Both times are
            those that the reports were written with, so the same reports leave the same ones behind whenever they
            are read. None: for ever.
    """

    def __init__(self, *, episodes_max: int | None = None, ttl_seconds: float | None = None) -> None:
        assert episodes_max is None or episodes_max >= 1, "a store without room keeps nothing"
        assert ttl_seconds is None or ttl_seconds > 0, "a report is as old as itself"
        self._episodes_max = episodes_max
        self._ttl_ns = None if ttl_seconds is None else int(ttl_seconds * _NS_PER_SECOND)
        self._by_decision: dict[str, ly.FieldReport] = {}
        self._by_run: dict[str, list[ly.FieldReport]] = {}
        #: Time of each episode's newest report; who was heard last stands last.
        self._heard_ns: dict[str, int] = {}
        #: What may come to be too old, the oldest on top; entries that a newer report replaced are passed over.
        self._ages: list[tuple[int, str]] = []
        self._newest_ns = 0
        self._dropped: set[str] = set()

    def fold(self, report: ly.FieldReport) -> bool:
        """Take in one report; return False where its decision was closed before or its episode dropped."""
        run_id = report.training_run_id
        if report.decision_id in self._by_decision or run_id in self._dropped:
            return False
        self._by_decision[report.decision_id] = report
        self._by_run.setdefault(run_id, []).append(report)
        at = report.issued_at.ToNanoseconds()
        self._heard_ns[run_id] = max(at, self._heard_ns.pop(run_id, 0))
        self._newest_ns = max(at, self._newest_ns)
        if self._ttl_ns is not None:
            heappush(self._ages, (self._heard_ns[run_id], run_id))
        self._retain()
        return run_id not in self._dropped

    def of_decision(self, decision_id: EventId) -> ly.FieldReport | None:
        """Return the report that closes a decision, or None while it is open."""
        return self._by_decision.get(decision_id)

    def of_run(self, run_id: RunId) -> tuple[ly.FieldReport, ...]:
        """Return a run's reports in the order of its epochs."""
        return tuple(sorted(self._by_run.get(run_id, ()), key=lambda report: report.epoch))

    def runs(self) -> tuple[RunId, ...]:
        """Return the runs that have reports, in the order of their first one."""
        return tuple(RunId(run_id) for run_id in self._by_run)

    def drop_run(self, run_id: RunId) -> None:
        """Forget a whole episode for good; unknown ones are no error."""
        for report in self._by_run.pop(run_id, ()):
            del self._by_decision[report.decision_id]
        self._heard_ns.pop(run_id, None)
        self._dropped.add(run_id)

    def _retain(self) -> None:
        """Drop the episodes that are too old, then those that are too many."""
        if self._ttl_ns is not None:
            while self._ages and self._ages[0][0] < self._newest_ns - self._ttl_ns:
                at, run_id = heappop(self._ages)
                if self._heard_ns.get(run_id) == at:
                    self.drop_run(RunId(run_id))
        while self._episodes_max is not None and len(self._by_run) > self._episodes_max:
            self.drop_run(RunId(next(iter(self._heard_ns))))

    def __len__(self) -> int:
        return len(self._by_decision)

    def __iter__(self) -> Iterator[ly.FieldReport]:
        """Yield every report, run by run."""
        for reports in self._by_run.values():
            yield from reports
