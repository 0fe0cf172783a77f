"""Advantages and value targets against sums written out, and what a wrong bootstrap would do to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from esper.simic.learning._returns import Steps, generalised_advantages, v_trace

ROWS, LENGTH, TRACE = 6, 23, 0.9
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def drawn(seed: int, *, gamma: float = 0.97) -> tuple[Steps, Tensor]:
    """Return steps of several episodes in each row, terminated, truncated and padded, and ratios from 0 to 3."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(ROWS, LENGTH, generator=generator, dtype=torch.float64)

    epochs = torch.randint(1, 4, (ROWS, LENGTH), generator=generator)
    ends = torch.rand(ROWS, LENGTH, generator=generator) < 0.2
    ends[:, -1] = True
    terminated = ends & (torch.rand(ROWS, LENGTH, generator=generator) < 0.5)
    values, next_values = normal(), normal()
    next_values[:, :-1] = torch.where(ends[:, :-1], next_values[:, :-1], values[:, 1:])
    discounts = torch.where(terminated, 0.0, gamma ** epochs.double())
    ratios = 3.0 * torch.rand(ROWS, LENGTH, generator=generator, dtype=torch.float64)
    return Steps(normal(), values, next_values, discounts, ~ends), ratios


def places() -> Iterator[tuple[int, int]]:
    """Return row and step of every step."""
    return ((row, step) for row in range(ROWS) for step in range(LENGTH))


def error(steps: Steps, row: int, step: int) -> float:
    """Return the temporal difference of one step."""
    reached = steps.discounts[row, step] * steps.next_values[row, step]
    return float(steps.rewards[row, step] + reached - steps.values[row, step])


def until(steps: Steps, row: int, begin: int) -> list[int]:
    """Return the steps from `begin` to the end of its episode."""
    found = [begin]
    while steps.follows[row, found[-1]]:
        found.append(found[-1] + 1)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_advantages_are_the_sum_of_discounted_errors(seed: int) -> None:
    """Every advantage is sum_k (prod of discount * lambda) * error, within its episode."""
    steps, _ = drawn(seed)
    found = generalised_advantages(steps, trace=TRACE)
    for row, begin in places():
        total, factor = 0.0, 1.0
        for step in until(steps, row, begin):
            total += factor * error(steps, row, step)
            factor *= float(steps.discounts[row, step]) * TRACE
        assert found.advantages[row, begin].item() == pytest.approx(total, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("ratio_max", "trace_ratio_max"), [(1.0, 1.0), (2.0, 1.0), (0.5, 0.25)])
def test_v_trace_is_its_definition(seed: int, ratio_max: float, trace_ratio_max: float) -> None:
    """v_s = V(s) + sum_t gamma^(t-s) (prod_{s <= i < t} lambda min(c, ratio_i)) min(rho, ratio_t) error_t."""
    steps, ratios = drawn(seed)
    found = v_trace(steps, ratios, trace=TRACE, ratio_max=ratio_max, trace_ratio_max=trace_ratio_max)
    for row, begin in places():
        target, factor = float(steps.values[row, begin]), 1.0
        for step in until(steps, row, begin):
            ratio = float(ratios[row, step])
            target += factor * min(ratio_max, ratio) * error(steps, row, step)
            factor *= float(steps.discounts[row, step]) * TRACE * min(trace_ratio_max, ratio)
        assert found.value_targets[row, begin].item() == pytest.approx(target, rel=1e-6, abs=1e-6)
        after = 0.0
        if steps.follows[row, begin]:
            after = float(found.value_targets[row, begin + 1] - steps.values[row, begin + 1])
        wanted = error(steps, row, begin) + float(steps.discounts[row, begin]) * TRACE * after
        assert found.advantages[row, begin].item() == pytest.approx(wanted, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_policy_both_are_the_same_bit_for_bit(dtype: torch.dtype) -> None:
    """With every ratio 1.0 V-trace is GAE; at lambda 1 its target is the discounted return with a bootstrap."""
    steps, _ = drawn(7)
    figures = (steps.rewards, steps.values, steps.next_values, steps.discounts)
    steps = Steps(*(figure.to(dtype) for figure in figures), steps.follows)
    plain = generalised_advantages(steps, trace=TRACE)
    traced = v_trace(steps, torch.ones(ROWS, LENGTH, dtype=dtype), trace=TRACE)
    assert torch.equal(plain.advantages, traced.advantages)
    assert torch.equal(plain.value_targets, steps.values + plain.advantages)
    assert torch.equal(plain.value_targets, traced.value_targets)


def test_at_lambda_one_the_target_is_the_return() -> None:
    """Monte Carlo with a bootstrap where the episode was cut off, and none where it terminated."""
    steps, _ = drawn(3)
    found = generalised_advantages(steps, trace=1.0).value_targets
    for row, begin in places():
        total, factor = 0.0, 1.0
        episode = until(steps, row, begin)
        for step in episode:
            total += factor * float(steps.rewards[row, step])
            factor *= float(steps.discounts[row, step])
        total += factor * float(steps.next_values[row, episode[-1]])
        assert found[row, begin].item() == pytest.approx(total, rel=1e-6, abs=1e-6)


def test_nothing_crosses_the_end_of_an_episode() -> None:
    """What comes after an end, padding among it, changes nothing before it; without `follows` it would."""
    steps, ratios = drawn(11)
    end = int((~steps.follows[0]).nonzero()[0])
    assert end < LENGTH - 1
    other = Steps(steps.rewards.clone(), steps.values, steps.next_values, steps.discounts, steps.follows)
    other.rewards[0, end + 1 :] += 100.0
    before, after = (v_trace(each, ratios, trace=TRACE).value_targets[0, : end + 1] for each in (steps, other))
    assert torch.equal(before, after)
    joined = Steps(other.rewards, steps.values, steps.next_values, steps.discounts, torch.ones_like(steps.follows))
    assert not torch.allclose(before, v_trace(joined, ratios, trace=TRACE).value_targets[0, : end + 1])


def test_a_terminated_episode_has_no_bootstrap_and_a_truncated_one_has() -> None:
    """Two episodes of one step that differ in their end alone."""
    one = torch.ones(2, 1, dtype=torch.float64)
    ends = torch.zeros(2, 1, dtype=torch.bool)
    steps = Steps(one, one, 10.0 * one, torch.tensor([[0.0], [0.5]], dtype=torch.float64), ends)
    assert generalised_advantages(steps, trace=TRACE).value_targets.squeeze(1).tolist() == [1.0, 6.0]


def test_no_gradient_reaches_the_critic_through_its_targets() -> None:
    """Targets are constants, whatever the values were computed with."""
    steps, ratios = drawn(1)
    values = steps.values.requires_grad_()
    found = v_trace(Steps(steps.rewards, values, values, steps.discounts, steps.follows), ratios, trace=TRACE)
    assert not found.advantages.requires_grad
    assert not found.value_targets.requires_grad


@pytest.mark.parametrize("broken", ["rewards", "values", "next_values", "discounts", "follows"])
@pytest.mark.parametrize("wrong", [torch.zeros(2, 1), torch.zeros(2, 3).double(), torch.zeros(2, 3).int()])
def test_steps_that_do_not_belong_together_are_refused(broken: str, wrong: Tensor) -> None:
    """A wrong shape would broadcast in silence, a wrong dtype round: each field, each fault."""
    fields = dict.fromkeys(("rewards", "values", "next_values", "discounts"), torch.zeros(2, 3))
    fields["follows"] = torch.zeros(2, 3, dtype=torch.bool)
    Steps(**fields)
    with pytest.raises(ValueError, match=r"steps are|follows is"):
        Steps(**(fields | {broken: wrong}))
