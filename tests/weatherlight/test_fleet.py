"""What a fleet asks for, and how it folds what the log says of its runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from esper.cli._fleet import seeds_of
from esper.core.errors import UsageError
from esper.core.ids import RunId
from esper.core.settings import Settings
from esper.leyline import messages as ly
from esper.weatherlight import Fleet, FleetRun, Member, TrainingRequest, grid
from esper.weatherlight._members import own_device

BASE = TrainingRequest("mnist1d", epochs=3)


def fleet_of(*names: str) -> Fleet:
    return Fleet({name: FleetRun(RunId(name), ly.TrainingRunRequested(run_id=name, seed=4)) for name in names})


def event(run_id: str, message: Any) -> Any:
    return SimpleNamespace(meta=SimpleNamespace(subject=run_id), message=message)


def test_a_grid_is_every_host_policy_and_seed() -> None:
    """Goal: nothing left out or asked for twice. Method: two policies, three seeds; a name given twice."""
    found = grid(BASE, seeds=[1, 2, 3], policies=["noop", "fixed"])
    assert [(one.policy, one.seed) for one in found] == [(p, s) for p in ("noop", "fixed") for s in (1, 2, 3)]
    assert {one.epochs for one in found} == {3}
    for wrong in ({"seeds": [1, 1]}, {"seeds": []}, {"seeds": range(10_001)}, {"seeds": [1], "hosts": ["mlp", "mlp"]}):
        with pytest.raises(UsageError):
            grid(BASE, **cast("Any", wrong))


def test_seeds_are_numbers_and_ranges() -> None:
    """Goal: what people write. Method: a mixture, and what is none."""
    assert seeds_of("0-2, 7") == [0, 1, 2, 7]
    for wrong in ("", "a", "1-", "-1", "1--2"):
        with pytest.raises(UsageError, match="--seeds"):
            seeds_of(wrong)


def test_a_fenced_attempt_counts_for_nothing() -> None:
    """Goal: takeover. Method: two claims, the first attempt's end, then the second's; a foreign run beside them."""
    fleet = fleet_of("a", "b")
    events = [
        event("a", ly.TrainingRunClaimed(run_id="a", attempt=1, worker="tolaria-0")),
        event("a", ly.CommandOutcome(run_id="a", epoch=2)),
        event("other", ly.TrainingRunClaimed(run_id="other", attempt=1, worker="tolaria-0")),
        event("a", ly.TrainingRunClaimed(run_id="a", attempt=2, worker="tolaria-1")),
        event("a", ly.TrainingRunFinished(run_id="a", attempt=1, epochs=9)),
    ]
    assert fleet.fold(events) == []
    assert fleet.counts() == {"requested": 1, "running": 1, "finished": 0, "failed": 0, "epochs": 2}
    (ended,) = fleet.fold([event("a", ly.TrainingRunFinished(run_id="a", attempt=2, epochs=3))])
    assert ended.document is not None
    assert (ended.document["epochs"], ended.document["worker"], ended.document["attempts"]) == (3, "tolaria-1", 2)
    (failed,) = fleet.fold([event("b", ly.TrainingRunFailed(run_id="b", attempt=0, reason="cancelled"))])
    assert failed.document is not None
    assert (failed.document["status"], failed.document["reason"], failed.document["seed"]) == ("failed", "cancelled", 4)
    assert fleet.waiting == []


def test_every_worker_sees_its_own_device(tmp_path: Path) -> None:
    """Goal: N workers on N devices. Method: five trainers over two GPUs; another member; names that are none."""
    two = Settings(home=tmp_path, worker_devices="3, GPU-ab")
    assert [own_device(two, Member("tolaria", index)) for index in range(5)] == ["3", "GPU-ab", "3", "GPU-ab", "3"]
    assert own_device(two, Member("tamiyo", 0)) == ""
    assert own_device(Settings(home=tmp_path), Member("tolaria", 0)) == ""
    with pytest.raises(UsageError, match="ESPER_WORKER_DEVICES"):
        own_device(Settings(home=tmp_path, worker_devices="0,,1"), Member("tolaria", 0))
