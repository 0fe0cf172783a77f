"""Experience from a real broker: whole episodes, each step once, and the same tensors for the same offsets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from esper.core.errors import NotReadyError
from esper.core.policy import layout_of
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.simic.experience import Reading, Recorded, Retention, RewardWeights, ranges_until_now, read_experience
from esper.simic.learning import Experience
from tests.simic.experience.script import WEIGHTS, Episode, appended, episode

READING = Reading(weights=WEIGHTS)


def returns(found: Experience) -> list[float]:
    """Return what each episode's rewards add up to."""
    sums: list[float] = found.in_rows(found.rewards).double().sum(dim=1).tolist()
    return sums


def of_runs(recorded: Recorded, episodes: list[Episode]) -> list[Episode]:
    """Return the episodes in the order of the rows."""
    by_run = {each.run.run_id: each for each in episodes}
    return [by_run[run_id] for run_id in recorded.run_ids]


def same(one: Experience, other: Experience) -> bool:
    """Whether two have the same bits."""
    tensors = [
        [
            *each.observations.values(),
            *each.masks,
            *each.behaviour,
            each.chosen,
            each.rewards,
            each.discounts,
            each.rows,
        ]
        for each in (one, other)
    ]
    return all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


def test_what_was_logged_is_what_is_learned_from(fabric: Fabric) -> None:
    """Goal: no figure goes astray on its way. Method: runs of several sizes through the broker; every step's
    observation, masks, probabilities and choices against the messages, and each return against a slow sum."""
    episodes = [episode(seed=seed, slots=slots) for seed in (1, 2) for slots in (("a",), ("a", "b", "c"))]
    found = read_experience(fabric, appended(fabric, episodes), READING)
    ordered = of_runs(found, episodes)
    assert found.experience.episodes == len(episodes)
    assert returns(found.experience) == pytest.approx([each.returned() for each in ordered], abs=1e-5)
    made = [one for each in ordered for one in each.decisions]
    assert [f"{option.blueprint_id}" for option in found.registry.options] == ["BP009", "BP009", "BP021"]
    labels = ["none", *(option.label for option in found.registry.options)]
    for row, one in enumerate(made):
        encoded = layout_of(tuple(one.observation_names)).encode(np.asarray([list(one.observation)]))
        slots = encoded.held.shape[1]
        assert torch.equal(found.experience.observations["run"][row], torch.from_numpy(encoded.run[0]).float())
        assert torch.equal(
            found.experience.observations["slots"][row, :slots], torch.from_numpy(encoded.slots[0]).float()
        )
        assert not found.experience.observations["held"][row, slots:].any()
        for place, head in enumerate(one.heads):
            taken = int(found.experience.chosen[row, place])
            wanted = head.actions[head.chosen]
            assert (labels[taken] if head.name == "blueprint" else head.actions[taken]) == wanted
            assert float(found.experience.behaviour[place][row, taken]) == pytest.approx(
                head.probabilities[head.chosen]
            )
            assert int(found.experience.masks[place][row].sum()) == sum(head.mask)
        assert float(found.experience.log_behaviour[row]) == pytest.approx(one.log_probability, abs=1e-5)
    ends = found.experience.discounts == 0.0
    assert int(ends.sum()) == len(episodes), "each run finished once"


def test_the_same_offsets_give_the_same_bits(fabric: Fabric) -> None:
    """Goal: a training that can be repeated. Method: read again, with two processes, and after more was appended."""
    episodes = [episode(seed=seed) for seed in range(6)]
    ranges = appended(fabric, episodes)
    first = read_experience(fabric, ranges, READING)
    appended(fabric, [episode(seed=9)])
    again = read_experience(fabric, ranges, Reading(weights=WEIGHTS, processes=2))
    assert same(first.experience, again.experience)
    assert first.run_ids == again.run_ids


def test_a_record_that_comes_twice_weighs_once(fabric: Fabric) -> None:
    """Goal: no silent reweighting. Method: every decision and report is appended twice."""
    episodes = [episode(seed=seed) for seed in range(3)]
    once = read_experience(fabric, appended(fabric, episodes), READING)
    twice = read_experience(fabric, appended(fabric, episodes, twice=True), READING)
    assert same(once.experience, twice.experience)
    assert twice.left_out["duplicates"] == sum(len(each.decisions) for each in episodes)


def test_what_the_gate_put_in_place_is_not_what_is_learned(fabric: Fabric) -> None:
    """Goal: importance weights of what was proposed. Method: mark decisions as overridden by another command."""
    plain, overridden = episode(seed=4), episode(seed=4)
    for made in overridden.decisions:
        made.overridden, made.override_reason = True, "a loss spike"
        made.command_id = "0" * 32
    one, other = (read_experience(fabric, appended(fabric, [each]), READING) for each in (plain, overridden))
    assert torch.equal(one.experience.chosen, other.experience.chosen)
    assert torch.equal(one.experience.log_behaviour, other.experience.log_behaviour)


def test_only_whole_episodes_count(fabric: Fabric) -> None:
    """Goal: nothing is learned from a torn episode. Method: cut one at each end, take a report out, leave one open."""
    whole, no_begin, no_report, no_end = (episode(seed=seed) for seed in range(4))
    del no_begin.decisions[0]
    del no_report.reports[3]
    del no_end.decisions[-1]
    found = read_experience(fabric, appended(fabric, [whole, no_begin, no_report, no_end]), READING)
    assert list(found.run_ids) == [whole.run.run_id]
    assert found.left_out == {"no_beginning": 1, "not_reported": 1, "not_ended": 1}


def test_a_failed_run_is_cut_off_not_ended(fabric: Fabric) -> None:
    """A run that failed would have gone on: its last step keeps its discount, and asks the value of where it stood."""
    found = read_experience(fabric, appended(fabric, [episode(fails=True)]), READING).experience
    assert float(found.discounts[-1]) == 1.0
    assert int(found.reached[-1]) == len(found) - 1


def test_probabilities_that_do_not_add_up_are_left_out(fabric: Fabric) -> None:
    """Goal: no wrong weight. Method: a log probability that is not its heads', and a choice that its mask forbids."""
    good, lying, forbidden = (episode(seed=seed) for seed in range(3))
    lying.decisions[2].log_probability -= 0.5
    head = forbidden.decisions[2].heads[0]
    head.mask[head.chosen] = False
    found = read_experience(fabric, appended(fabric, [good, lying, forbidden]), READING)
    assert list(found.run_ids) == [good.run.run_id]
    assert found.left_out == {"unsound": 2}


def test_retention_drops_whole_episodes(fabric: Fabric) -> None:
    """The newest by the log's own times stay, all of them or none."""
    old, new = [episode(seed=seed) for seed in range(2)], [episode(seed=seed) for seed in range(2, 4)]
    ranges = appended(fabric, old)
    later = appended(fabric, new)
    both = [
        ly.OffsetRange(
            topic=one.topic,
            topic_id=one.topic_id,
            partition=one.partition,
            first_offset=one.first_offset,
            end_offset=end.end_offset,
        )
        for one, end in zip(ranges, later, strict=True)
    ]
    kept = read_experience(fabric, both, Reading(retention=Retention(episodes_max=2)))
    assert set(kept.run_ids) == {each.run.run_id for each in new}
    assert kept.left_out == {"over_capacity": 2}
    young = read_experience(fabric, both, Reading(retention=Retention(age_max_ms=0)))
    assert set(young.run_ids) <= {each.run.run_id for each in new}
    other = read_experience(fabric, both, Reading(retention=Retention(policies=("random",))))
    assert other.experience.episodes == 4


def test_deterministic_policies_can_be_read_and_left_out(fabric: Fabric) -> None:
    """A heuristic's log has three heads: the missing one is "none" with certainty."""
    ranges = appended(fabric, [episode(policy="heuristic", seed=3), episode(seed=3)])
    found = read_experience(fabric, ranges, READING)
    assert found.experience.episodes == 2
    assert read_experience(fabric, ranges, Reading(retention=Retention(policies=("random",)))).left_out == {
        "other_policy": 1
    }


def test_a_pinned_version_is_that_policy_too(fabric: Fabric) -> None:
    """Generations are collected with `learned@VERSION`: asking for `learned` finds them, another name does not."""
    pinned, plain = episode(seed=1), episode(seed=2)
    for made in pinned.decisions:
        made.policy = "learned@2f1c0a9b7d3e"
    ranges = appended(fabric, [pinned, plain])
    found = read_experience(fabric, ranges, Reading(retention=Retention(policies=("learned",))))
    assert list(found.run_ids) == [pinned.run.run_id]
    assert found.left_out == {"other_policy": 1}


def test_what_is_not_there_is_said(fabric: Fabric) -> None:
    """Goal: no training on air. Method: empty ranges, ranges beyond the end, a topic that was made again."""
    ranges = ranges_until_now(fabric)
    empty = [
        ly.OffsetRange(topic=one.topic, partition=one.partition, first_offset=one.end_offset, end_offset=one.end_offset)
        for one in ranges
    ]
    with pytest.raises(NotReadyError, match="no whole episode"):
        read_experience(fabric, empty, READING)
    empty[0].end_offset += 1_000_000
    with pytest.raises(NotReadyError, match="ends before offset"):
        read_experience(fabric, empty, READING)
    empty[0].topic_id = "another"
    with pytest.raises(NotReadyError, match="is not the one"):
        read_experience(fabric, empty, READING)


def test_weights_choose_what_counts(fabric: Fabric) -> None:
    """Unweighted parts do not enter: with accuracy alone an episode returns what its accuracy rose by."""
    one = episode(seed=5)
    found = read_experience(fabric, appended(fabric, [one]), Reading(weights=RewardWeights(compute=0.0)))
    reports = {report.decision_id: report.metrics for report in one.reports}
    first, last = (reports[made.meta.event_id] for made in (one.decisions[0], one.decisions[-1]))
    assert returns(found.experience)[0] == pytest.approx(
        last["validation_accuracy_begin"] - first["validation_accuracy_begin"], abs=1e-6
    )
