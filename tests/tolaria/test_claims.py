"""How a run stands: a fold of its claims and ends, in the order of the log."""

from __future__ import annotations

import pytest

from esper.leyline import EventMessage, Record
from esper.leyline import messages as ly
from esper.oona import Event
from esper.tolaria import RunClaim


def folded(*messages: EventMessage) -> RunClaim:
    """Return the run after these events, at offsets 10, 11, ..."""
    run = RunClaim("run-1")
    for offset, message in enumerate(messages, start=10):
        message.meta.event_id = f"event-{offset}"
        run = run.fold(Event(Record("runs", 3, offset, b"run-1", b""), message.meta, message))  # type: ignore[arg-type]
    return run


def claimed(attempt: int, worker: str) -> ly.TrainingRunClaimed:
    return ly.TrainingRunClaimed(run_id="run-1", attempt=attempt, worker=worker, producer_id=f"{worker}:1")


def test_the_first_claim_of_an_attempt_wins() -> None:
    """Goal: one winner. Method: two claims of attempt 1; the lower offset stands."""
    run = folded(claimed(1, "one"), claimed(1, "two"))
    assert (run.worker, run.attempt, run.claim_event_id, run.claim_offset) == ("one", 1, "event-10", 10)
    assert (run.producer_id, run.partition, run.first_offset, run.ended) == ("one:1", 3, 10, False)


def test_a_higher_attempt_takes_over_and_a_lower_one_changes_nothing() -> None:
    """Goal: attempts fence. Method: attempts 1, 2, and a belated 1; the run's first offset stays."""
    run = folded(claimed(1, "one"), claimed(2, "two"), claimed(1, "three"))
    assert (run.worker, run.attempt, run.claim_offset, run.first_offset) == ("two", 2, 11, 10)


@pytest.mark.parametrize(
    ("end", "ended"),
    [
        (ly.TrainingRunFinished(attempt=2), True),
        (ly.TrainingRunFailed(attempt=2, reason="diverged"), True),
        (ly.TrainingRunFailed(attempt=0, reason="not_claimed"), True),
        (ly.TrainingRunFinished(attempt=1), False),
        (ly.TrainingRunFailed(attempt=1, reason="worker_lost"), False),
        (ly.CommandOutcome(attempt=2), False),
    ],
)
def test_a_run_ends_by_its_own_attempt_or_its_asker_only(end: EventMessage, ended: bool) -> None:
    """Goal: what a fenced attempt says does not count. Method: each kind of end after a claim of attempt 2."""
    assert folded(claimed(1, "one"), claimed(2, "two"), end).ended is ended


def test_a_run_given_up_before_any_claim_is_over() -> None:
    """Goal: nobody takes up what its asker gave up. Method: a failure without a claim."""
    assert folded(ly.TrainingRunFailed(reason="not_claimed")).ended


def test_a_claim_that_skips_attempts_or_names_another_request_counts_for_nothing() -> None:
    """Goal: no stray claim takes a run away. Method: attempt 5 after 1, and attempt 2 for a request of another name."""
    stray = claimed(2, "two")
    stray.request_event_id = "another"
    run = folded(claimed(1, "one"), claimed(5, "five"), stray)
    assert (run.worker, run.attempt) == ("one", 1)


@pytest.mark.parametrize(
    ("worker", "home_id", "alive", "falls"),
    [
        ("tolaria-1", "home", [], True),
        ("tolaria-1", "home", ["tolaria-1"], True),
        ("tolaria-0", "home", [], True),
        ("tolaria-0", "home", ["tolaria-1"], False),
        ("tolaria-0", "elsewhere", [], False),
        ("tolaria-1", "elsewhere", [], False),
    ],
)
def test_who_goes_on_with_a_run(worker: str, home_id: str, alive: list[str], falls: bool) -> None:
    """Goal: a dead worker's run falls to any worker of its home, and to no other. Method: a claim of tolaria-1."""
    claim = claimed(1, "tolaria-1")
    claim.home_id = "home"
    assert folded(claim).falls_to(worker, home_id=home_id, alive=alive) is falls
