"""Learned versions on a real broker: trained from the log, made again, judged, promoted, given up, compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from esper.core.errors import IntegrityError, NotReadyError, OperationFailed, UsageError
from esper.core.policy import POLICY_ID, OptionEntry, unpack
from esper.leyline import messages as ly
from esper.oona import Fabric, PolicyBoard
from esper.simic.experience import Registry, part_of
from esper.simic.training import draw_training, registry_of, spoken_in
from esper.tamiyo import shipped_policy
from esper.weatherlight import (
    PolicyTraining,
    Validation,
    policy_curves,
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
from tests.core.policy.support import update as carried
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


def rows(fabric: Fabric) -> list[dict[str, Any]]:
    """Return the versions that the log made."""
    shipped = shipped_policy()
    assert shipped is not None
    return [row for row in policy_list(fabric) if row["version"] != shipped.tamiyo_policy_version]


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
    assert rows(own)[0] | {"policy_digest": ""} == {
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
    assert rows(own)[0]["status"] == "rejected"
    with pytest.raises(OperationFailed, match="not promoted"):
        promote_policy(own, version, issued_by="somebody")

    with pytest.raises(UsageError, match="without a reason"):
        promote_policy(own, version, issued_by="somebody", override=True)
    promote_policy(own, version, issued_by="somebody", override=True, reason="to be tried")
    assert rows(own)[0]["status"] == "active"
    with pytest.raises(UsageError, match="would change nothing"):
        promote_policy(own, version, issued_by="somebody", override=True, reason="again")
    (shipped,) = (row["version"] for row in policy_list(own) if row["version"] != version)
    given_up = roll_back_policy(own, issued_by="somebody", reason="tried")
    assert given_up["restored"] == shipped
    assert [word["event"] for word in policy_show(own, version)["history"]] == ["rejected", "promoted", "rolled_back"]


def test_learning_goes_on_from_what_comes_with_the_package(own: Fabric) -> None:
    """Goal: a start for everybody. Method: a child of the package's version from a log whose offsets lie below those
    that it was trained on elsewhere; nothing of this log is left out for them, and the line says both."""
    episodes, _ = log_of(own)
    shipped = shipped_policy()
    assert shipped is not None
    child = train_policy(own, PolicyTraining(parent=shipped.tamiyo_policy_version, rounds=1, support_min=0.0))
    assert child["episodes"] == sum(part_of(each.run.run_id) == "learning" for each in episodes)
    assert child["parent"] == shipped.tamiyo_policy_version
    assert all(one["first_offset"] == 0 for one in child["training_data"])


def test_what_comes_with_the_package_can_be_given_up(own: Fabric) -> None:
    """Goal: a home without a learned version, for whoever wants none. Method: give the package's up in a fresh log;
    the list says so, and there is nothing more to give up."""
    (before,) = policy_list(own)
    assert (before["status"], before["algorithm"]) == ("active", "ppo")
    assert roll_back_policy(own, issued_by="somebody", reason="none is wanted")["restored"] is None
    (after,) = policy_list(own)
    assert (after["version"], after["status"]) == (before["version"], "rolled_back")
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


def test_the_curves_of_a_line(own: Fabric, tmp_path: Path) -> None:
    """Goal: how a version came to be, at a glance. Method: a child through adapters; the line from the log holds every
    round of parent and child, in order; drawn twice, byte for byte; an unknown version, a line without rounds and an
    ending that is no picture's are refused, and nothing is written."""
    _, ranges = log_of(own)
    first = train_policy(own, PolicyTraining(ranges=ranges, rounds=2, support_min=0.0))
    child = PolicyTraining(parent=first["version"], ranges=ranges, rounds=1, support_min=0.0, adapter_rank=2, seed=1)
    second = train_policy(own, child)
    assert train_again(own, second["version"])["equal"]
    found = policy_curves(own, second["version"])
    assert [entry["version"] for entry in found["line"]] == [first["version"], second["version"]]
    assert [one["round"] for entry in found["line"] for one in entry["rounds"]] == [1.0, 2.0, 1.0]
    for entry, made in zip(found["line"], (first, second), strict=True):
        for told, done in zip(entry["rounds"], made["rounds"], strict=True):
            assert told["simic.policy.entropy"] == pytest.approx(done["entropy"])
    pictures = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for path in pictures:
        draw_training(found, path)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    found["line"][0]["rounds"][0]["simic.policy.entropy"] += 1.0
    draw_training(found, pictures[1])
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
    with pytest.raises(UsageError, match="no learned version"):
        policy_curves(own, "0" * 12)
    with pytest.raises(NotReadyError, match="nothing to draw"):
        draw_training({"version": "x", "line": [], "untold": ["x"]}, tmp_path / "none.svg")
    with pytest.raises(UsageError, match=r"into .*curves\.txt"):
        draw_training(found, tmp_path / "curves.txt")
    assert not (tmp_path / "none.svg").exists()
    assert not (tmp_path / "curves.txt").exists()


def test_a_fresh_policy_has_nothing_to_adapt(own: Fabric) -> None:
    """Goal: a clear refusal. Method: adapters without a parent; nothing is appended."""
    _, ranges = log_of(own)
    with pytest.raises(UsageError, match="nothing to adapt"):
        train_policy(own, PolicyTraining(ranges=ranges, adapter_rank=2))
    assert rows(own) == []


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
    shipped, *made = policy_list(own)
    assert shipped["status"] == "retired", "what came with the package decided before"
    assert {row["version"]: row["status"] for row in made} == {first: "retired", second["version"]: "active"}
    assert roll_back_policy(own, issued_by="somebody")["restored"] == first
    found = policy_diff(own, first, second["version"])
    assert not found["equal"]
    assert found["differs"]["parent_policy_version"] == ["", first]
    assert found["divergence"]["all"] > 0.0
    same = policy_diff(own, first, first)
    assert (same["equal"], same["weights"], same["divergence"]["all"]) == (True, {}, pytest.approx(0.0, abs=1e-6))


def test_a_version_of_another_line_is_judged_by_the_same_options(own: Fabric) -> None:
    """Goal: an incumbent that is no ancestor. Method: let the candidate's own network decide, with its options in
    another order and one more; held against itself, the candidate gains nothing, by every estimate."""
    _, ranges = log_of(own)
    version = train_policy(own, PolicyTraining(ranges=ranges, rounds=1))["version"]
    with PolicyBoard(own) as board:
        board.read()
        network = unpack(board.update(version))
    registry = registry_of(network)
    strange = OptionEntry(blueprint_id="BP003", parameters=(), layouts=("vector",))
    twin = spoken_in(network, Registry((strange, *reversed(registry.options)), registry.blueprints))
    with own.publisher("simic") as publisher:
        publisher.publish(carried(twin, version="twin"), key=POLICY_ID)
    promote_policy(own, "twin", issued_by="somebody", override=True, reason="to be held against")
    verdict = validate_policy(own, Validation(version))
    assert verdict["incumbent"] == "twin"
    for name in ("pdis_gain", "wis_gain"):
        assert verdict["scores"][name] == pytest.approx(0.0, abs=1e-5)


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
