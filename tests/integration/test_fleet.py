"""Many runs at once over several workers, one of which is killed."""

from __future__ import annotations

from tests.integration.driver import Esper, eventually, finish, kill

RUNS = 6


def test_a_killed_worker_leaves_no_run_behind(esper: Esper) -> None:
    """Goal: each run once, none lost. Method: six runs, two workers; kill -9 the one that trains first."""
    process = esper.spawn(
        "fleet", "--task", "spirals", "--policy", "noop", "--policy", "fixed", "--seeds", "0-2",
        "--epochs", "150", "--workers", "2", "--json",
    )  # fmt: skip  # Long enough that the kill comes while the run is on its way, however slow the looking is.

    def trainer() -> str | None:
        claims = [event["payload"] for event in esper.events("runs") if event["type"].endswith("TrainingRunClaimed")]
        return claims[0]["worker"] if claims else None

    victim = eventually(trainer, what="a worker takes a run")
    kill(esper.member_pid(victim))
    answer = finish(process)
    documents = answer.json
    assert [one["status"] for one in documents] == ["finished"] * RUNS, documents
    asked = {("noop", 0), ("noop", 1), ("noop", 2), ("fixed", 0), ("fixed", 1), ("fixed", 2)}
    assert {(one["policy"], one["seed"]) for one in documents} == asked
    assert {one["worker"] for one in documents} == {"tolaria-0", "tolaria-1"}, "both trained"
    assert max(one["attempts"] for one in documents) >= 2, "the killed worker's run was gone on with"
    events = esper.events("runs")
    ends = [event["key"] for event in events if event["type"].endswith("TrainingRunFinished")]
    assert sorted(ends) == sorted(one["run_id"] for one in documents), "each run ends once"
