"""`esper evaluate`: drives the arms of a plan until the log holds all their runs, and reports from the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from esper.core.errors import EsperError, UsageError
from esper.core.home import member_lock
from esper.oona import Fabric, Position
from esper.weatherlight._cancel import end_run
from esper.weatherlight._learned import check_learned
from esper.weatherlight._trial_log import EvaluationLog
from esper.weatherlight._trial_pedigree import cells_learned_from
from esper.weatherlight._trial_runs import Advance, Tell, TrialTrainer

if TYPE_CHECKING:
    from esper.simic.trials import Pair, Plan, Routine, TrialRun, Wanted

#: Of the plan's digest, in the name of the lock that keeps two evaluations of one plan apart.
_DIGEST_SHOWN: Final = 16


@dataclass
class _Drive:
    """One arm in one pair: its routine, and what it waits for."""

    pair: Pair
    arm: str
    steps: Routine
    waits: list[Wanted] = field(default_factory=list)
    begun: bool = False
    over: bool = False

    def advance(self, log: EvaluationLog) -> list[Wanted]:
        """Go on as far as the log allows; return the runs that are missing."""
        from esper.simic.trials import Unfit, checked

        try:
            if not self.begun:
                self.waits, self.begun = next(self.steps), True
            while True:  # ends with the routine, or where a run is missing
                runs = [log.at(wanted.place) for wanted in self.waits]
                missing = [wanted for wanted, run in zip(self.waits, runs, strict=True) if run is None]
                if missing:
                    return missing
                found = [checked(run, each) for run, each in zip(runs, self.waits, strict=True) if run is not None]
                self.waits = self.steps.send(found)
        except (StopIteration, Unfit):
            # What does not fit is the verdict's to name.
            self.over = True
            return []


def check_evaluation(fabric: Fabric, plan: Plan, *, only: Sequence[str] = ()) -> dict[str, str]:
    """Return the arms that cannot be run here, each with why; an evaluation leaves them out, and is blocked by it.

    Raises:
        UsageError: a task or host is none, or `only` names an arm that the plan does not have.
    """
    from esper.simic.trials import check_search
    from esper.tamiyo import check_policy
    from esper.tolaria import check_device_name, check_task

    check_device_name(plan.device)
    unknown = sorted(set(only) - set(plan.arms.names()))
    if unknown:
        raise UsageError(
            f"the plan has no arm {unknown[0]!r}",
            cause=f"its arms are {', '.join(plan.arms.names())}",
            next_step="Name one of them",
        )
    for cell in plan.cells:
        check_task(cell.task, cell.host)
    absent: dict[str, str] = {}
    for arm in plan.arms.names():
        try:
            check_policy(*plan.policy_of(arm))
            check_learned(fabric, *plan.policy_of(arm))
        except EsperError as error:
            absent[arm] = str(error)
    try:
        check_search(plan)
    except UsageError as error:
        absent["search"] = str(error)
    return absent


def evaluate(
    fabric: Fabric,
    plan: Plan,
    *,
    only: Sequence[str] = (),
    absent: Mapping[str, str] | None = None,
    stack: int = 64,
    workers: int = 1,
    tell: Tell = lambda _words: None,
    advance: Advance = lambda _done, _total: None,
) -> dict[str, Any]:
    """Have every run of a plan that the log lacks, and return the report.

    A run that the log holds is never run again: an evaluation that was ended goes on where it was. What an ended one
    left open is cancelled first. `only` names arms to run, with what they are measured by; `absent` those to leave out.

    Raises:
        Busy: another evaluation of the same plan runs in this home.
        UsageError: a run cannot be asked for.
        OperationFailed, NotReadyError: runs could not be trained to their ends.
    """
    with member_lock(fabric.home, f"evaluation-{plan.digest[:_DIGEST_SHOWN]}"):
        log = EvaluationLog(fabric, plan)
        log.refresh()
        _end_open(fabric, log, tell)
        drives = _drives(plan, only=only or plan.arms.names(), absent=absent or {})
        with TrialTrainer(fabric, plan, stack=stack, workers=workers, tell=tell, advance=advance) as trainer:
            asked: set[object] = set()
            while missing := _missing(drives, log, absent or {}):  # ends when the log has what can be had
                fresh = [each for each in missing if each.place not in asked]
                if not fresh:
                    break  # What was lost on the way is asked for again by the next evaluation.
                asked |= {each.place for each in fresh}
                trainer.train(fresh, log)
                log.refresh()
        return _report(fabric, plan, log)


def report_evaluation(fabric: Fabric, plan: Plan, *, at: Mapping[Position, int] | None = None) -> dict[str, Any]:
    """Return the report of what the log holds of a plan, up to its present ends or `at`; runs nothing.

    Raises:
        UsageError: the log does not reach as far as `at`.
        BrokerUnavailable, IntegrityError, NotReadyError: it cannot be read.
    """
    log = EvaluationLog(fabric, plan)
    log.refresh(at)
    return _report(fabric, plan, log)


def evaluation_runs(fabric: Fabric, plan: Plan, *, at: Mapping[Position, int] | None = None) -> list[TrialRun]:
    """Return the runs of a plan that the log holds, as `esper.simic.trials.verdict` judges them.

    Raises:
        UsageError: the log does not reach as far as `at`.
        BrokerUnavailable, IntegrityError, NotReadyError: it cannot be read.
    """
    log = EvaluationLog(fabric, plan)
    log.refresh(at)
    return log.runs()


def _report(fabric: Fabric, plan: Plan, log: EvaluationLog) -> dict[str, Any]:
    from esper.simic.trials import report

    runs = log.runs()
    return report(plan, runs, log.offsets(), learned_from=cells_learned_from(fabric, plan, runs))


def _end_open(fabric: Fabric, log: EvaluationLog, tell: Tell) -> None:
    """End what an earlier evaluation left without an end: its process is gone, for its lock is ours."""
    left = [run for run in log.runs() if run.status == "open"]
    if left:
        tell(f"{len(left)} runs of an evaluation that was ended are cancelled and run again")
    for run in left:
        end_run(fabric, run.run_id, "cancelled", epochs=len(run.curve))
    if left:
        log.refresh()


def _drives(plan: Plan, *, only: Sequence[str], absent: Mapping[str, str]) -> list[_Drive]:
    from esper.simic.trials import SEARCH, pairs_of, routine, search

    return [
        _Drive(pair, arm, search(plan, pair) if arm == SEARCH else routine(plan, pair, arm))
        for arm in plan.arms.names()
        if arm in only and arm not in absent
        for pair in pairs_of(plan)
    ]


def _missing(drives: Sequence[_Drive], log: EvaluationLog, absent: Mapping[str, str]) -> list[Wanted]:
    """Return the runs that the drives wait for, each once; drives that wait for what cannot be run are over."""
    found: dict[object, Wanted] = {}
    for drive in drives:
        if drive.over:
            continue
        missing = drive.advance(log)
        if any(wanted.place.arm in absent for wanted in missing):
            drive.over = True
            continue
        found |= {wanted.place: wanted for wanted in missing}
    return list(found.values())
