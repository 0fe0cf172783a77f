"""Learned versions on a real broker: trained from the log, made again, judged, promoted, given up, compared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from esper.core.errors import IntegrityError, NotReadyError, OperationFailed, UsageError
from esper.core.policy import POLICY_ID
from esper.leyline import messages as ly
from esper.oona import Fabric, PolicyBoard
from esper.simic.experience import part_of
from esper.weatherlight import (
    PolicyTraining,
    Validation,
    policy_diff,
    policy_list,
    policy_show,
    promote_policy,
    roll_back_policy,
    train_again,
    train_policy,
    validate_policy,
)
from tests.conftest import StartBroker
from tests.simic.experience.script import Episode, appended, episode

#: Enough for both parts, few enough to be played in a second.
EPISODES = 40


@pytest.fixture
def own(start_broker: StartBroker) -> Iterator[Fabric]:
    """Return a fabric whose topic `policy` is empty."""
    with Fabric.open(start_broker().settings, member="policies") as opened:
        yield opened


def log_of(fabric: Fabric) -> tuple[list[Episode], list[ly.OffsetRange]]:
    """Append episodes; return them and where they lie."""
    episodes = [episode(seed=seed, epochs=8) for seed in range(EPISODES)]
    return episodes, appended(fabric, episodes)


def events(fabric: Fabric) -> list[object]:
    """Return the messages of the topic `policy` in their order."""
    with fabric.reader({("policy", 0): "begin"}) as reader:
        return [event.message for event in reader.read_to_end()]


def test_from_the_log_to_the_right_to_decide_and_back(own: Fabric) -> None:
    """Goal: a policy with a pedigree. Method: train from offsets, train again, try to promote, be judged, promote with
    a person's word, give up; each step is an event, and the list says where the version stands."""
    episodes, ranges = log_of(own)
    asked = PolicyTraining(ranges=ranges, policies=("random",), seed=3, rounds=2)
    made = train_policy(own, asked)
    version = made["version"]
    learned = sum(part_of(each.run.run_id) == "learning" for each in episodes)
    assert (made["episodes"], made["transitions"]) == (learned, 8 * learned), (
        "a quarter of the runs is left for judging"
    )
    assert policy_list(own)[0] | {"policy_digest": ""} == {
        "version": version,
        "status": "candidate",
        "parent": None,
        "algorithm": "ppo",
        "episodes": learned,
        "policy_digest": "",
    }
    assert train_again(own, version)["equal"]
    assert train_policy(own, asked)["version"] == version, "the same offsets, code and seed: the same version"

    with pytest.raises(OperationFailed, match="not promoted"):
        promote_policy(own, version, issued_by="somebody")
    verdict = validate_policy(own, Validation(version))
    assert not verdict["passed"]
    assert "effective_episodes" in verdict["reason"], "ten episodes prove nothing"
    assert verdict["episodes"] == EPISODES - learned
    assert policy_list(own)[0]["status"] == "rejected"
    with pytest.raises(OperationFailed, match="not promoted"):
        promote_policy(own, version, issued_by="somebody")

    with pytest.raises(UsageError, match="without a reason"):
        promote_policy(own, version, issued_by="somebody", override=True)
    promote_policy(own, version, issued_by="somebody", override=True, reason="to be tried")
    assert policy_list(own)[0]["status"] == "active"
    with pytest.raises(UsageError, match="would change nothing"):
        promote_policy(own, version, issued_by="somebody", override=True, reason="again")
    given_up = roll_back_policy(own, issued_by="somebody", reason="tried")
    assert given_up["restored"] is None
    assert [word["event"] for word in policy_show(own, version)["history"]] == ["rejected", "promoted", "rolled_back"]
    with pytest.raises(NotReadyError, match="no learned version decides"):
        roll_back_policy(own, issued_by="somebody")


def test_what_training_tells(own: Fabric) -> None:
    """Goal: curves to look at. Method: the names of the brief are in the telemetry, a round's figures by round."""
    _, ranges = log_of(own)
    made = train_policy(own, PolicyTraining(ranges=ranges, rounds=2, support_min=0.0))
    places = {("telemetry", number): "begin" for number in range(own.topics["telemetry"].partitions)}
    with own.reader(places) as reader:  # type: ignore[arg-type]
        packets = [event.message for event in reader.read_to_end() if isinstance(event.message, ly.TelemetryPacket)]
    (packet,) = (one for one in packets if one.source_subsystem == "simic")
    found = {(point.name, point.attributes.get("round", "")): point.value for point in packet.metrics}
    assert found["simic.training.iterations", ""] == 2.0
    assert found["simic.training.reward", ""] == pytest.approx(made["scores"]["mean_return"])
    for name in ("simic.training.loss", "simic.value.loss", "simic.policy.loss", "simic.policy.entropy"):
        assert {number for known, number in found if known == name} == {"1", "2"}
    assert found["simic.policy.entropy", "2"] == pytest.approx(made["rounds"][1]["entropy"])


def test_a_child_goes_on_from_its_parent(own: Fabric) -> None:
    """Goal: generations. Method: a child learns from what came after its parent's data, names it, and can be made
    again; what a validation vouches for may decide, and a rollback brings its predecessor back."""
    _, ranges = log_of(own)
    first = train_policy(own, PolicyTraining(ranges=ranges, rounds=1))["version"]
    with pytest.raises(NotReadyError, match="no whole episode"):
        train_policy(own, PolicyTraining(parent=first))
    log_of(own)
    second = train_policy(own, PolicyTraining(parent=first, rounds=1, seed=1))
    assert second["parent"] == first
    assert all(
        one["first_offset"] == before.end_offset for one, before in zip(second["training_data"], ranges, strict=True)
    )
    assert train_again(own, second["version"])["equal"]
    for version in (first, second["version"]):
        with PolicyBoard(own) as board, own.publisher("simic") as publisher:
            board.read()
            digest = board.update(version).policy_digest
            passed = ly.PolicyValidated(
                policy_id=POLICY_ID, tamiyo_policy_version=version, policy_digest=digest, passed=True
            )
            publisher.publish(passed, key=POLICY_ID)
        promote_policy(own, version, issued_by="somebody")
    rows = {row["version"]: row["status"] for row in policy_list(own)}
    assert rows == {first: "retired", second["version"]: "active"}
    assert roll_back_policy(own, issued_by="somebody")["restored"] == first
    found = policy_diff(own, first, second["version"])
    assert not found["equal"]
    assert found["differs"]["parent_policy_version"] == ["", first]
    assert found["divergence"]["all"] > 0.0
    same = policy_diff(own, first, first)
    assert (same["equal"], same["weights"], same["divergence"]["all"]) == (True, {}, pytest.approx(0.0, abs=1e-6))


def test_what_cannot_be_made_again_is_said(own: Fabric) -> None:
    """Goal: a pedigree that is held to. Method: say that another seed made a version; and ask for what is not there."""
    _, ranges = log_of(own)
    train_policy(own, PolicyTraining(ranges=ranges, rounds=1))
    (update,) = (one for one in events(own) if isinstance(one, ly.PolicyUpdate))
    lying = ly.PolicyUpdate()
    lying.CopyFrom(update)
    lying.ClearField("meta")
    lying.seed, lying.tamiyo_policy_version = 99, "lying"
    with own.publisher("simic") as publisher:
        publisher.publish(lying, key=POLICY_ID)
    with pytest.raises(IntegrityError, match="cannot be made again"):
        train_again(own, "lying")
    for order in (train_again, policy_show):
        with pytest.raises(UsageError, match="there is no learned version 'none'"):
            order(own, "none")
    with pytest.raises(UsageError, match="no part 'fame'"):
        train_policy(own, PolicyTraining(ranges=ranges, rewards={"fame": 1.0}))
    with pytest.raises(UsageError, match="no algorithm 'dream'"):
        train_policy(own, PolicyTraining(ranges=ranges, algorithm="dream"))
