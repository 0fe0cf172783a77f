"""A promoted version on a real broker that does harm: given up once, from the log alone, and the one before decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from esper.core.clock import Deadline
from esper.core.ids import derive_id, new_run_id
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.tamiyo import LearnedPolicies
from esper.tamiyo._watcher import PolicyWatcher
from tests.conftest import RunningBroker
from tests.tamiyo.policy_log import PolicyLog
from tests.tamiyo.scripted_run import ScriptedRun
from tests.tamiyo.test_service import one_run_each
from tests.tamiyo.worker import ANSWER_SECONDS, Worker, serving


@pytest.fixture
def open_fabric(broker: RunningBroker) -> Callable[[], Fabric]:
    """Return a function that opens one more fabric on the session's broker."""
    return lambda: Fabric.open(broker.settings, member="tamiyo-test")


@pytest.fixture
def policies(fabric: Fabric) -> Iterator[PolicyLog]:
    """Write the topic `policy`, and leave it without a version that decides."""
    log = PolicyLog(fabric)
    log.clear()
    yield log
    log.clear()


def append_reports(fabric: Fabric, *, digest: str, promotion: str, gain: float, epochs: int = 9) -> None:
    """Append the reports of a run on each partition, as a promotion's decisions leave them."""
    with fabric.publisher("tamiyo") as publisher:
        for run_id in one_run_each(fabric):
            for epoch in range(1, epochs + 1):
                report_id = derive_id(run_id, "report", epoch)
                report = ly.FieldReport(
                    version=1,
                    report_id=report_id,
                    decision_id=derive_id(run_id, "decision", epoch),
                    training_run_id=run_id,
                    epoch=epoch,
                    outcome=ly.FIELD_REPORT_OUTCOME_SUCCESS if gain > 0 else ly.FIELD_REPORT_OUTCOME_REGRESSION,
                    reward_parts={"validation_gain": gain + 0.001 * (int(report_id[:4], 16) % 7)},
                    next_state_event_id="next",
                    policy_digest=digest,
                    policy_event_id=promotion,
                )
                publisher.submit(report, key=run_id, event_id=report.report_id)


def rollbacks(fabric: Fabric, promotion: str) -> list[ly.PolicyRolledBack]:
    """Return the rollbacks of one promotion that Tamiyo appended."""
    with fabric.reader({("policy", 0): "begin"}) as reader:
        found = [event.message for event in reader.read_to_end() if event.meta.causation_id == promotion]
    return [event for event in found if isinstance(event, ly.PolicyRolledBack)]


def wait_for_rollback(fabric: Fabric, promotion: str) -> ly.PolicyRolledBack:
    """Return the rollback once it is there."""
    deadline = Deadline(ANSWER_SECONDS)
    while not (found := rollbacks(fabric, promotion)):
        assert not deadline.expired, "the version goes on"
    return found[0]


@pytest.mark.parametrize("away", [False, True], ids=["while it serves", "found when it comes back"])
def test_a_version_that_does_harm_is_given_up_once(
    away: bool, policies: PolicyLog, fabric: Fabric, open_fabric: Callable[[], Fabric]
) -> None:
    """Goal: automatic rollback. Method: good reports of one version, bad ones of the next, with and without a life.

    Two members serve, then a third life: there is one rollback, with its figures, and the version before decides.
    """
    one, two = policies.make(seed=1), policies.make(seed=2)
    first = policies.promote(one)
    append_reports(fabric, digest=policies.digest(one), promotion=first, gain=0.1)
    second = policies.promote(two)
    worker = Worker(fabric, ScriptedRun(new_run_id(), epochs=400, policy="learned"))
    worker.request()
    if away:
        append_reports(fabric, digest=policies.digest(two), promotion=second, gain=-0.2)
    with serving(open_fabric), serving(open_fabric, instance="tamiyo-1"):
        worker.answered_epoch()
        if not away:
            assert worker.log.of(ly.DecisionMade)[0].policy_version == two
            append_reports(fabric, digest=policies.digest(two), promotion=second, gain=-0.2)
        event = wait_for_rollback(fabric, second)
        deadline = Deadline(ANSWER_SECONDS)
        while worker.log.of(ly.DecisionMade)[-1].policy_version != one:
            assert not deadline.expired, "the version before does not decide"
            worker.answered_epoch()
    with serving(open_fabric):
        worker.answered_epoch()
    (only,) = rollbacks(fabric, second)
    assert only == event
    assert (event.tamiyo_policy_version, event.restored_policy_version) == (two, one)
    assert (event.policy_digest, event.restored_policy_digest) == (policies.digest(two), policies.digest(one))
    assert (event.meta.source, event.issued_by) == ("tamiyo", "tamiyo")
    assert event.meta.event_id == derive_id("policy-watch", second)
    assert {check.name for check in event.breaches} == {"watch.reward_change_upper", "watch.bad_share_rise_lower"}
    assert not any(check.passed for check in event.breaches)
    assert worker.log.of(ly.DecisionMade)[-1].policy_event_id == event.meta.event_id


@pytest.mark.parametrize(("gain", "given_up"), [(0.1, False), (-0.2, True)])
def test_a_full_window_ends_the_watch(
    gain: float, given_up: bool, policies: PolicyLog, broker: RunningBroker, fabric: Fabric
) -> None:
    """Goal: a watch has an end. Method: exactly as many reports as belong to it, then far worse ones."""
    one, two = policies.make(seed=1), policies.make(seed=2)
    first = policies.promote(one)
    append_reports(fabric, digest=policies.digest(one), promotion=first, gain=0.1)
    second = policies.promote(two)
    append_reports(fabric, digest=policies.digest(two), promotion=second, gain=gain)
    append_reports(fabric, digest=policies.digest(two), promotion=second, gain=-9.0)
    settings = broker.settings.model_copy(update={"policy_watch_reports": 9, "policy_watch_reports_min": 50})
    for _ in range(2):
        with Fabric.open(settings, member="tamiyo-watch") as own, LearnedPolicies(own) as learned:
            watcher = PolicyWatcher(own, learned, own.publisher("tamiyo"), responsible=lambda: True)
            learned.read()
            deadline = Deadline(ANSWER_SECONDS)
            watcher.look()
            while watcher._reader is not None:
                assert not deadline.expired, "the watch does not end"
                watcher.look()
            watcher.look()
            assert watcher._reader is None
    assert len(rollbacks(fabric, second)) == given_up


def test_who_is_not_responsible_does_not_watch(policies: PolicyLog, fabric: Fabric) -> None:
    """Goal: one of several watches. Method: a member without the first partition, and then with it."""
    version = policies.make(seed=1)
    policies.promote(version)
    has_it = False
    with LearnedPolicies(fabric) as learned:
        watcher = PolicyWatcher(fabric, learned, fabric.publisher("tamiyo"), responsible=lambda: has_it)
        learned.read()
        watcher.look()
        assert watcher._reader is None
        has_it = True
        watcher.look()
        assert watcher._reader is not None
        has_it = False
        watcher.look()
        assert watcher._reader is None
