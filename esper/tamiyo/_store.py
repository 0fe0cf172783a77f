"""Field reports by run and by decision, folded from the topic `field-reports`."""

from __future__ import annotations

from collections.abc import Iterator

from esper.core.ids import EventId, RunId
from esper.leyline import messages as ly


class FieldReportStore:
    """A fold in memory: feed it reports in the order of the log, ask it for them.

    The log keeps the reports; this is a view of them that can be thrown away and read again. Of two reports that
    close one decision the first counts. Whole episodes are dropped together, never single reports, so that what
    is left can still be learned from.
    """

    def __init__(self) -> None:
        self._by_decision: dict[str, ly.FieldReport] = {}
        self._by_run: dict[str, list[ly.FieldReport]] = {}

    def fold(self, report: ly.FieldReport) -> bool:
        """Take in one report; return False where its decision was closed before."""
        if report.decision_id in self._by_decision:
            return False
        self._by_decision[report.decision_id] = report
        self._by_run.setdefault(report.training_run_id, []).append(report)
        return True

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
        """Forget a whole episode; unknown ones are no error."""
        for report in self._by_run.pop(run_id, ()):
            del self._by_decision[report.decision_id]

    def __len__(self) -> int:
        return len(self._by_decision)

    def __iter__(self) -> Iterator[ly.FieldReport]:
        """Yield every report, run by run."""
        for reports in self._by_run.values():
            yield from reports
