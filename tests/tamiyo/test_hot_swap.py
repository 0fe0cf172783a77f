"""Learned versions on a real broker: swapped between two decisions, brought back, refused, the same after a restart."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from esper.core.clock import Deadline
from esper.core.errors import UsageError
from esper.core.ids import new_run_id
from esper.core.policy import policy_digest
from esper.leyline import EventMessage, Record
from esper.leyline import messages as ly
from esper.oona import Fabric, PolicyBoard, list_dead_letters, show_dead_letter
from esper.tamiyo import LearnedPolicies, NoLearnedPolicy, StackDecider, check_policy
from tests.conftest import RunningBroker
from tests.core.policy.support import network, update
from tests.oona.hostile import STRANGER, with_headers
from tests.oona.log import append, signed_record
from tests.tamiyo.policy_log import KEY, PolicyLog, fresh_version
from tests.tamiyo.scripted_run import ScriptedRun
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


def learned_run(*, policy: str = "learned", epochs: int = 400, **parameters: float) -> ScriptedRun:
    """Return a run that asks for a learned version."""
    return ScriptedRun(new_run_id(), epochs=epochs, policy=policy, parameters=parameters)


def decided_by(worker: Worker) -> list[str]:
    """Return the version of each decision, in order."""
    return [made.policy_version for made in worker.log.of(ly.DecisionMade)]


def epochs_until(worker: Worker, version: str) -> list[str]:
    """Go through epochs until one is decided by `version`; return the versions that decided since the call."""
    before = len(decided_by(worker))
    deadline = Deadline(ANSWER_SECONDS)
    while version not in decided_by(worker)[before:]:
        assert not deadline.expired, f"{version} does not decide"
        worker.answered_epoch()
    return decided_by(worker)[before:]


def test_a_promotion_and_a_rollback_act_between_two_decisions(
    policies: PolicyLog, fabric: Fabric, open_fabric: Callable[[], Fabric]
) -> None:
    """Goal: one running run sees each version that decides. Method: promote twice and roll back while it trains."""
    one, two = policies.make(seed=1), policies.make(seed=2)
    first = policies.promote(one)
    worker = Worker(fabric, learned_run())
    reader = fabric.reader({("telemetry", 0): "end"})
    with serving(open_fabric):
        worker.request()
        for _ in range(3):
            worker.answered_epoch()
        assert decided_by(worker) == [one] * 3
        second = policies.promote(two)
        assert set(epochs_until(worker, two)) <= {one, two}
        for _ in range(3):
            worker.answered_epoch()
        back = policies.roll_back(two, one)
        assert set(epochs_until(worker, one)) <= {one, two}
        gone = policies.roll_back(one)
        versions = epochs_until(worker, "noop-1")
        assert set(versions) <= {one, "noop-1"}
    worker.log.read_up()
    made = worker.log.of(ly.DecisionMade)
    versions = decided_by(worker)
    assert [version for at, version in enumerate(versions) if not at or versions[at - 1] != version] == [
        one,
        two,
        one,
        "noop-1",
    ], "each swap happened once, and none in between"
    appointed = {(each.policy_version, each.policy_event_id) for each in made}
    assert appointed == {(one, first), (two, second), (one, back), ("noop-1", "")}
    for each in made[:-1]:
        assert each.policy_digest == policies.digest(each.policy_version)
        assert [head.name for head in each.heads] == ["operation", "slot", "blueprint", "schedule"]
    assert "none decides in its place" in made[-1].reasons[0]
    assert len(made) == len(worker.log.of(ly.AdaptationCommand)) == worker.run.epoch
    told = [event.message for event in reader.read_to_end() if event.meta.source == "tamiyo"]
    terms = [
        (packet.metrics[0].name, packet.metrics[0].attributes["event_id"], packet.level)
        for packet in told
        if isinstance(packet, ly.TelemetryPacket) and packet.metrics[0].name.startswith("tamiyo.policy.")
    ]
    assert terms == [
        ("tamiyo.policy.swaps", second, ly.TELEMETRY_LEVEL_INFO),
        ("tamiyo.policy.rollbacks", back, ly.TELEMETRY_LEVEL_WARNING),
        ("tamiyo.policy.rollbacks", gone, ly.TELEMETRY_LEVEL_WARNING),
    ]


def test_a_swap_costs_no_decision_its_latency(
    policies: PolicyLog, fabric: Fabric, open_fabric: Callable[[], Fabric]
) -> None:
    """Goal: nobody waits for a new version. Method: forty epochs with a promotion in the middle of them."""
    one, two = policies.make(seed=1), policies.make(seed=2)
    policies.promote(one)
    worker = Worker(fabric, learned_run())
    with serving(open_fabric):
        worker.request()
        for epoch in range(80):
            worker.answered_epoch()
            if epoch == 40:
                policies.promote(two)
    assert set(decided_by(worker)) == {one, two}
    steady = sorted(worker.latencies_ms[5:])
    median, late = statistics.median(steady), steady[-2]
    figures = f"state appended -> command read: p50 {median:.1f} ms, p99 {late:.1f} ms, most {steady[-1]:.1f} ms"
    assert median < 100.0, figures
    assert steady[-1] < 2_000.0, "a decision waited for a version to be read, unpacked or for torch to load"


def test_a_run_may_ask_for_one_version(policies: PolicyLog, fabric: Fabric, open_fabric: Callable[[], Fabric]) -> None:
    """Goal: comparisons and runs that are to be had again. Method: pinned runs while another version decides."""
    one, two = policies.make(seed=1), policies.make(seed=2)
    policies.promote(two)
    pinned = Worker(fabric, learned_run(policy=f"learned@{one}"))
    explored = Worker(fabric, learned_run(policy=f"learned@{one}", explore=0.5))
    unknown = Worker(fabric, learned_run(policy="learned@nobody-made-it"))
    with serving(open_fabric):
        for worker in (pinned, explored, unknown):
            worker.request()
            worker.answered_epoch()
        policies.roll_back(two)
        for worker in (pinned, explored, unknown):
            worker.answered_epoch()
    assert decided_by(pinned) == decided_by(explored) == [one, one]
    (made, _) = pinned.log.of(ly.DecisionMade)
    assert (made.policy, made.policy_digest, made.policy_event_id) == (f"learned@{one}", policies.digest(one), "")
    digests = {each.policy_digest for each in explored.log.of(ly.DecisionMade)}
    assert len(digests) == 1
    assert policies.digest(one) not in digests
    assert all("there is no learned version" in each.reasons[0] for each in unknown.log.of(ly.DecisionMade))


def test_the_same_standing_after_a_restart(
    policies: PolicyLog, fabric: Fabric, open_fabric: Callable[[], Fabric]
) -> None:
    """Goal: replay is the only memory. Method: a second life and a fresh board, after a swap and a rollback."""
    one, two = policies.make(seed=1), policies.make(seed=2)
    policies.promote(one)
    policies.promote(two)
    worker = Worker(fabric, learned_run())
    with serving(open_fabric):
        worker.request()
        worker.answered_epoch()
        policies.roll_back(two, one)
        epochs_until(worker, one)
    with serving(open_fabric):
        worker.answered_epoch()
    assert decided_by(worker)[-1] == one
    worker.log.read_up()
    assert len(worker.log.of(ly.DecisionMade)) == worker.run.epoch, "what was decided is not decided again"
    with PolicyBoard(fabric) as board, PolicyBoard(fabric) as other:
        standing = board.read()
        assert standing == other.read()
        assert standing.current is not None
        assert standing.current.name == one
        assert board.update(two).payload == policies.updates[two].payload
        with pytest.raises(UsageError, match="there is no learned version 'nothing'"):
            board.update("nothing")


# Poison


def _poisoned_weights(version: str) -> ly.PolicyUpdate:
    import safetensors.torch
    import torch

    poisoned = update(network(3), version=version)
    tensors = safetensors.torch.load(poisoned.payload)
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    poisoned.payload = safetensors.torch.save(tensors)
    poisoned.policy_digest = policy_digest(poisoned.specification, poisoned.payload)
    return poisoned


def _with(name: str, **fields: object) -> ly.PolicyUpdate:
    changed = update(network(3), version=name)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _signed(fabric: Fabric, message: EventMessage, **wrong: object) -> Record:
    fields: dict[str, object] = {"key": KEY, "source": "simic", **wrong}
    return signed_record(fabric, message, **fields)  # type: ignore[arg-type]  # as the function checks


#: Name -> (record from fabric and version, reason of the letter, how its detail begins).
POISON: dict[str, tuple[Callable[[Fabric, str], Record], str, str]] = {
    "unsigned": (lambda f, v: with_headers(_signed(f, _with(v)), signature=None), "UNSIGNED", ""),
    "unknown key": (lambda f, v: _signed(f, _with(v), keyring=STRANGER), "UNKNOWN_KEY", ""),
    "altered": (
        lambda f, v: replace(found := _signed(f, _with(v)), value=(found.value or b"")[:-1]),
        "BAD_SIGNATURE",
        "",
    ),
    "source that may not write": (lambda f, v: _signed(f, _with(v), source="kasmina"), "NOT_ALLOWED", ""),
    "source that has no say": (lambda f, v: _signed(f, _with(v), source="tamiyo"), "REFUSED", "source: "),
    "not finite": (lambda f, v: _signed(f, _poisoned_weights(v)), "REFUSED", "not_finite: "),
    "wrong schema": (
        lambda f, v: _signed(f, _with(v, observation_schema="tamiyo.observation.v1")),
        "REFUSED",
        "schema: ",
    ),
    "huge": (lambda f, v: _signed(f, _with(v, payload=bytes(8 * 2**20 + 1))), "REFUSED", "huge: "),
    "old format": (lambda f, v: _signed(f, _with(v, version=0)), "REFUSED", "version: "),
    "other weights": (lambda f, v: _signed(f, _with(v, payload=b"0" * 100)), "REFUSED", "digest: "),
    "promotion of nothing": (
        lambda f, v: _signed(
            f, ly.PolicyPromoted(policy_id=KEY, tamiyo_policy_version=v, issued_by="ann"), source="cli"
        ),
        "REFUSED",
        "unknown_version: ",
    ),
    "rollback of nothing": (
        lambda f, v: _signed(
            f, ly.PolicyRolledBack(policy_id=KEY, tamiyo_policy_version=v, issued_by="ann"), source="cli"
        ),
        "REFUSED",
        "not_current: ",
    ),
}


def test_poisoned_updates_are_refused_and_deciding_goes_on(
    policies: PolicyLog, fabric: Fabric, open_fabric: Callable[[], Fabric]
) -> None:
    """Goal: no poison decides. Method: every kind of it on the real log, between the decisions of a run.

    Each is set aside once with its reason, also where the service starts anew; a promotion of each poisoned version
    is refused, too.
    """
    good = policies.make(seed=1)
    policies.promote(good)
    worker = Worker(fabric, learned_run())
    put: dict[str, tuple[Record, str]] = {}
    with serving(open_fabric):
        worker.request()
        worker.answered_epoch()
        for name, (make, _, _) in POISON.items():
            version = fresh_version()
            (record,) = append(fabric, [make(fabric, version)])
            put[name] = record, version
            worker.answered_epoch()
            order = ly.PolicyPromoted(policy_id=KEY, tamiyo_policy_version=version, issued_by="ann")
            (promotion,) = append(fabric, [_signed(fabric, order, source="cli")])
            put[f"promotion of {name}"] = promotion, version
            worker.answered_epoch()
        wait_for_letters(fabric, [record for record, _ in put.values()])
        worker.answered_epoch()
    with serving(open_fabric):
        worker.answered_epoch()
    assert set(decided_by(worker)) == {good}
    letters = [row for row in list_dead_letters(fabric) if row.topic == "policy"]
    for name, (record, _) in put.items():
        found = [row for row in letters if row.offset == record.offset]
        assert len(found) == 1, name
        detail = show_dead_letter(fabric, "policy", 0, record.offset)
        reason, begin = POISON[name][1:] if name in POISON else ("REFUSED", "unknown_version: ")
        assert (detail.reason, detail.detail[: len(begin)]) == (reason, begin), name
    raw = fabric.reader({("dead-letters", 0): "begin"}).read_to_end()
    offsets = [
        letter.message.offset
        for letter in raw
        if isinstance(letter.message, ly.DeadLetter) and letter.message.topic == "policy"
    ]
    assert len(offsets) == len(set(offsets)), "a record is set aside once, whoever starts how often"


def wait_for_letters(fabric: Fabric, records: list[Record]) -> None:
    """Wait until each record is set aside."""
    wanted = {record.offset for record in records}
    deadline = Deadline(ANSWER_SECONDS)
    while wanted - {row.offset for row in list_dead_letters(fabric) if row.topic == "policy"}:
        assert not deadline.expired, "not all was set aside"


def test_who_asks_before_a_request_is_told(policies: PolicyLog, fabric: Fabric) -> None:
    """Goal: no request that nobody can serve. Method: ask where none decides, for an unknown one, and wrongly."""
    with LearnedPolicies(fabric) as learned:
        with pytest.raises(NoLearnedPolicy, match="esper policy promote"):
            check_policy("learned", learned=learned)
        with pytest.raises(UsageError, match="there is no learned version 'x'"):
            check_policy("learned@x", learned=learned)
        version = policies.make()
        learned.read()
        check_policy(f"learned@{version}", {"explore": 0.1}, learned=learned)
        with pytest.raises(UsageError, match="explore=2"):
            check_policy(f"learned@{version}", {"explore": 2.0}, learned=learned)
        policies.promote(version)
        assert learned.read().version is not None
        assert learned.policy("learned", {}).version == version
    with pytest.raises(UsageError, match="explore=2"):
        check_policy("learned", {"explore": 2.0})


def test_a_stack_is_swapped_between_two_edges(policies: PolicyLog, fabric: Fabric) -> None:
    """Goal: stacks follow, too. Method: two runs decided together, one pinned, with a promotion between the edges."""
    one, two = policies.make(seed=1), policies.make(seed=2)
    policies.promote(one)
    runs = [learned_run(), learned_run(policy=f"learned@{one}")]
    with StackDecider(fabric, [run.request() for run in runs]) as decider:
        first = decider.decide([run.next_packet() for run in runs])
        assert set(first) == {run.run_id for run in runs}
        for run in runs:
            decider.settle(run.run_id, run.apply(first[run.run_id][0]))
        policies.promote(two)
        deadline = Deadline(ANSWER_SECONDS)
        while True:
            commands = decider.decide([run.next_packet() for run in runs])
            for run in runs:
                decider.settle(run.run_id, run.apply(commands[run.run_id][0]))
            if decider._states[runs[0].run_id].decisions[runs[0].epoch].policy_version == two:
                break
            assert not deadline.expired, "the stack keeps the old version"
    states = [decider._states[run.run_id] for run in runs]
    assert {facts.policy_version for facts in states[0].decisions.values()} == {one, two}
    assert {facts.policy_version for facts in states[1].decisions.values()} == {one}
