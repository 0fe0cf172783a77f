"""Tamiyo killed at every step between reading a packet and appending: one command for each packet, one version each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.core.clock import Deadline
from esper.core.crash_points import CRASH_EXIT_CODE, CRASH_POINTS
from esper.core.ids import derive_id, new_run_id
from esper.leyline import messages as ly
from esper.oona import Fabric, PolicyBoard
from tests.campaigns import WHOLE
from tests.conftest import RunningBroker
from tests.tamiyo.policy_log import PolicyLog
from tests.tamiyo.scripted_run import ScriptedRun
from tests.tamiyo.test_service import assert_one_answer_each, member
from tests.tamiyo.test_watched_promotion import append_reports, rollbacks, wait_for_rollback
from tests.tamiyo.worker import ANSWER_SECONDS, Worker

ROOT = Path(__file__).resolve().parents[2]
OF_A_PACKET = ("tamiyo.read", "tamiyo.decided", "tamiyo.recorded", "tamiyo.commanded", "tamiyo.reported")
OF_A_VERSION = ("tamiyo.appointed", "tamiyo.swapped")
OF_A_WATCH = ("tamiyo.breached", "tamiyo.given-up")


@pytest.fixture
def policies(fabric: Fabric) -> Iterator[PolicyLog]:
    """Write the topic `policy`, and leave it without a version that decides."""
    log = PolicyLog(fabric)
    log.clear()
    yield log
    log.clear()


@pytest.fixture
def settled(broker: RunningBroker, fabric: Fabric) -> None:
    """See to it that Tamiyo owes nothing to runs of other tests: a life that is to die would die over one of theirs.

    A partition is answered in order, so a packet that is answered has none before it that is not.
    """
    left = set(range(fabric.topics["system-state"].partitions))
    with member(broker):
        while left:
            run = ScriptedRun(new_run_id(), epochs=1, policy="noop")
            partition = fabric.partition_of("system-state", run.run_id)
            if partition in left:
                left.remove(partition)
                worker = Worker(fabric, run)
                worker.request()
                worker.answered_epoch()
                worker.finish()
                worker.reported(1)


def dying(broker: RunningBroker, point: str) -> subprocess.Popen[bytes]:
    """Start a real Tamiyo process that dies at `point`."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.tamiyo.member", str(broker.settings.home), "tamiyo-0"],
        cwd=ROOT,
        env=broker.environment | {"ESPER_CRASH_AT": point},
    )


def has_died(process: subprocess.Popen[bytes]) -> None:
    """Wait until the process died where it was told to."""
    try:
        assert process.wait(timeout=ANSWER_SECONDS) == CRASH_EXIT_CODE
    finally:
        process.kill()


def test_every_step_is_killed() -> None:
    """Goal: no crash point is forgotten. Method: Tamiyo's are those of the tests below."""
    listed = {name for name in CRASH_POINTS if name.startswith("tamiyo.")}
    assert listed == {*OF_A_PACKET, *OF_A_VERSION, *OF_A_WATCH}


@pytest.mark.parametrize("point", OF_A_PACKET)
@pytest.mark.parametrize("policy", ["learned", "heuristic"] if WHOLE else ["learned"])
@pytest.mark.usefixtures("settled")
@pytest.mark.campaign
def test_killed_at_any_step_a_packet_has_one_command(
    point: str, policy: str, policies: PolicyLog, broker: RunningBroker, fabric: Fabric
) -> None:
    """Goal: kill -9 costs no answer and doubles none. Method: two packets of a run, each met by a life that dies.

    The next life answers what was not answered; the decision that the log holds stands, though another version was
    promoted meanwhile.
    """
    one, two = policies.make(seed=1), policies.make(seed=2)
    policies.promote(one)
    worker = Worker(fabric, ScriptedRun(new_run_id(), epochs=20, policy=policy))
    worker.request()
    worker.packet()
    if point == "tamiyo.reported":  # A report is due when its window is over.
        with member(broker):
            worker.log.wait_for(lambda: worker.log.command(1))
        worker.outcome(worker.log.command(1))
        worker.packet()
    epoch = worker.run.epoch
    has_died(dying(broker, point))
    worker.log.read_up()
    assert (worker.log.command(epoch) is not None) == (point in ("tamiyo.commanded", "tamiyo.reported"))
    recorded = {made.epoch: made for made in worker.log.of(ly.DecisionMade)}
    policies.promote(two)
    with member(broker):
        worker.log.wait_for(lambda: worker.log.command(epoch))
        worker.outcome(worker.log.command(epoch))
        worker.answered_epoch()
        worker.finish()
        worker.reported(epoch + 1)
    assert_one_answer_each(worker, list(range(1, epoch + 2)))
    assert len({report.decision_id for report in worker.log.of(ly.FieldReport)}) == len(worker.log.of(ly.FieldReport))
    for made in worker.log.of(ly.DecisionMade):
        assert made == recorded.get(made.epoch, made)
    if policy == "learned":
        versions = [made.policy_version for made in worker.log.of(ly.DecisionMade)]
        assert versions == [one if at in recorded else two for at in range(1, epoch + 2)]


@pytest.mark.parametrize("point", OF_A_VERSION)
def test_killed_at_a_swap_the_next_life_decides_by_the_log(
    point: str, policies: PolicyLog, broker: RunningBroker, fabric: Fabric
) -> None:
    """Goal: a swap that was cut short is none or whole. Method: die on the way to a version, and live again."""
    version = policies.make(seed=1)
    promotion = policies.promote(version)
    worker = Worker(fabric, ScriptedRun(new_run_id(), epochs=20, policy="learned"))
    worker.request()
    worker.packet()
    has_died(dying(broker, point))
    with member(broker):
        worker.log.wait_for(lambda: worker.log.command(1))
        worker.outcome(worker.log.command(1))
    assert_one_answer_each(worker, [1])
    (made,) = worker.log.of(ly.DecisionMade)
    assert (made.policy_version, made.policy_event_id) == (version, promotion)


@pytest.mark.parametrize("point", OF_A_WATCH)
def test_killed_at_a_breach_there_is_one_rollback(
    point: str, policies: PolicyLog, broker: RunningBroker, fabric: Fabric
) -> None:
    """Goal: the verdict follows from the log. Method: die before the rollback and after it, and live again."""
    one, two = policies.make(seed=1), policies.make(seed=2)
    append_reports(fabric, digest=policies.digest(one), promotion=policies.promote(one), gain=0.1)
    promotion = policies.promote(two)
    append_reports(fabric, digest=policies.digest(two), promotion=promotion, gain=-0.2)
    has_died(dying(broker, point))
    assert len(rollbacks(fabric, promotion)) == (point == "tamiyo.given-up")
    worker = Worker(fabric, ScriptedRun(new_run_id(), epochs=200, policy="learned"))
    worker.request()
    with member(broker):
        event = wait_for_rollback(fabric, promotion)
        deadline = Deadline(ANSWER_SECONDS)
        while worker.answered_epoch() and worker.log.of(ly.DecisionMade)[-1].policy_version != one:
            assert not deadline.expired, "the version before does not decide"
    assert [found.meta.event_id for found in rollbacks(fabric, promotion)] == [event.meta.event_id]
    assert event.meta.event_id == derive_id("policy-watch", promotion)
    with PolicyBoard(fabric) as board:
        current = board.read().current
    assert current is not None
    assert current.name == one
