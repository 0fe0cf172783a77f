"""Collecting through the log, on the real broker: what is recorded, verified, restored, refused, and left behind."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from esper.core.digest import state_digest
from esper.core.errors import UsageError
from esper.core.home import member_lock
from esper.core.stacks import STACK_LOST
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.tolaria import ClaimBook
from esper.tolaria.worker._attempt import Wiring
from esper.tolaria.worker._service import _Worker
from esper.weatherlight import Collection, TrainingRequest, cancel_run, fork_request, restore_run, verify_run
from esper.weatherlight._collecting import Collected, collect_stack, stack_requests
from esper.weatherlight._stack_records import read_stack
from tests.kasmina.kernels import RealKernels
from tests.tolaria.live import Log, judge, nudging

_FIRST = TrainingRequest(
    task="tests.tolaria.short:spirals",
    policy="fixed",
    epochs=8,
    seed=3,
    policy_parameters={"germinate": 1, "graft": 3, "blend": 1},
)


def _collected(fabric: Fabric, kernels: RealKernels, *, runs: int = 3) -> Collected:
    collection = Collection(_FIRST, runs=runs, stack=runs)
    with member_lock(fabric.home, "collector-0"):
        return collect_stack(
            fabric, collection, range(runs), worker="collector-0", runtime=kernels, stop=threading.Event()
        )


def test_members_are_runs_of_their_own_and_verify(
    fabric: Fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has all its events in order; its stack computed again gives its record, and the network of an epoch."""
    kernels = RealKernels()
    found = _collected(fabric, kernels)
    assert found.failed == 0
    assert found.seeds == found.fossilized == 3
    run_id = found.runs[1]
    log = Log(fabric, run_id)
    (started,) = log.of(ly.TrainingRunStarted)
    assert started.numerics.stack_size == 3
    packets, outcomes, decisions = log.of(ly.SystemStatePacket), log.of(ly.CommandOutcome), log.of(ly.DecisionMade)
    assert len(packets) == len(outcomes) == len(decisions) == 8
    assert [each.result for each in outcomes] == [ly.COMMAND_RESULT_APPLIED] * 8
    commands = {each.command_id: each for each in log.of(ly.AdaptationCommand)}
    for decision, outcome in zip(decisions, outcomes, strict=True):
        assert commands[decision.command_id].command_id == outcome.command_id
        assert decision.meta.time.ToNanoseconds() < commands[decision.command_id].meta.time.ToNanoseconds()
    assert {each.decision_id for each in log.of(ly.FieldReport)} == {each.meta.event_id for each in decisions}
    monkeypatch.setattr("esper.urza.UrzaRuntime", lambda *_, **__: kernels)
    verified = verify_run(fabric, run_id)
    assert verified.equal
    assert verified.document["epochs"] == 8
    restored = restore_run(fabric, run_id, 5, tmp_path / "net.safetensors")
    assert restored["digest"] == packets[4].weights_digest
    assert state_digest(load_file(tmp_path / "net.safetensors")) == packets[4].weights_digest
    with pytest.raises(UsageError, match="stack"):
        fork_request(fabric, run_id, 3)


def test_a_stack_that_is_stopped_ends_its_runs(fabric: Fabric) -> None:
    """A stop ends every member as cancelled, and none goes on."""
    stop = threading.Event()
    stop.set()
    collection = Collection(replace(_FIRST, experiment="stopped"), runs=2, stack=2)
    seen: list[str] = []
    with member_lock(fabric.home, "collector-0"), pytest.raises(Exception, match="interrupted"):
        collect_stack(
            fabric,
            collection,
            range(2),
            worker="collector-0",
            runtime=RealKernels(),
            stop=stop,
            told=lambda stack, _epoch: seen.append(stack),
        )
    assert not seen
    with fabric.reader({("runs", place): "begin" for place in range(8)}) as reader:
        failed = [event.message for event in reader.read_to_end() if isinstance(event.message, ly.TrainingRunFailed)]
    assert sum(each.reason == "cancelled" for each in failed) >= 2


def test_a_member_falls_to_no_worker(fabric: Fabric) -> None:
    """A worker that finds the claims of a collector that is gone ends the runs, and takes none of them up."""
    requests = stack_requests(Collection(_FIRST, runs=2, stack=2), range(2), fabric.settings)
    with (
        fabric.publisher("cli") as asker,
        fabric.publisher("tolaria") as publisher,
        fabric.publisher("kasmina") as seed_publisher,
    ):
        for request in requests:
            asker.publish(request, key=request.run_id)
            claim = ly.TrainingRunClaimed(
                run_id=request.run_id,
                attempt=1,
                worker="collector-7",
                producer_id="tolaria:gone",
                request_event_id=request.meta.event_id,
                home_id=fabric.home.home_id,
            )
            publisher.publish(claim, key=request.run_id)
        wiring = Wiring(
            fabric=fabric,
            worker="tolaria-5",
            publisher=publisher,
            seed_publisher=seed_publisher,
            controller_factory=nudging,
            judge_factory=judge,
        )
        book = ClaimBook(fabric)
        worker = _Worker(wiring, book, threading.Event())
        mine = {request.run_id for request in requests}
        for unfinished in worker._unfinished():
            if unfinished.run_id in mine:
                worker._take_up(unfinished)
        book.close()
    for request in requests:
        log = Log(fabric, request.run_id)
        assert log.failed().reason == STACK_LOST
        assert len(log.of(ly.TrainingRunClaimed)) == 1


def test_a_member_is_cancelled_only_when_nobody_trains_it(fabric: Fabric) -> None:
    """While a collector lives its members are its own; what it left behind may be ended by hand."""
    requests = stack_requests(Collection(_FIRST, runs=1, stack=1), range(1), fabric.settings)
    with fabric.publisher("cli") as asker:
        asker.publish(requests[0], key=requests[0].run_id)
    with member_lock(fabric.home, "collector-1"), pytest.raises(UsageError, match="stack"):
        cancel_run(fabric, requests[0].run_id)
    cancel_run(fabric, requests[0].run_id)
    assert Log(fabric, requests[0].run_id).failed().reason == "cancelled"
    assert [each.run_id for each in read_stack(fabric, requests[0]).requests] == [requests[0].run_id]
