"""Factored, masked distributions against torch's own, and the places where a careless one gives no number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from esper.simic.learning._heads import divergence, entropy, masked_log_probabilities, taken

BATCH, SIZES = 16, (7, 3, 5)


def drawn(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return logits and masks of three heads; every row of a mask allows something."""
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(BATCH, size, generator=generator, dtype=torch.float64) for size in SIZES]
    masks = [torch.rand(BATCH, size, generator=generator) < 0.6 for size in SIZES]
    for mask in masks:
        mask[:, 0] |= ~mask.any(dim=-1)
    return logits, masks


def reference(logits: list[Tensor], masks: list[Tensor]) -> list[Categorical]:
    """Return the same as torch has it."""
    return [Categorical(logits=each.masked_fill(~mask, -1e30)) for each, mask in zip(logits, masks, strict=True)]


def test_they_are_what_torch_says() -> None:
    """Log probability, entropy and divergence of the heads together are the sums of torch's own."""
    logits, masks = drawn(0)
    heads = [masked_log_probabilities(each, mask) for each, mask in zip(logits, masks, strict=True)]
    theirs = reference(logits, masks)
    chosen = torch.stack([each.probs.argmax(dim=-1) for each in theirs], dim=1)
    wanted = sum(each.log_prob(chosen[:, index]) for index, each in enumerate(theirs))
    torch.testing.assert_close(taken(heads, chosen), wanted)
    torch.testing.assert_close(entropy(heads), sum(each.entropy() for each in theirs))
    other = [masked_log_probabilities(each * 0.3, mask) for each, mask in zip(logits, masks, strict=True)]
    apart = sum(
        kl_divergence(mine, Categorical(logits=each.exp().clamp(min=1e-300).log()))
        for mine, each in zip(theirs, other, strict=True)
    )
    torch.testing.assert_close(divergence([head.exp() for head in heads], other), apart)


def test_what_is_masked_never_happens_and_costs_no_gradient() -> None:
    """Probability 0 exactly; entropy and divergence stay finite, and so do their gradients."""
    logits, masks = drawn(1)
    leaves = [each.requires_grad_() for each in logits]
    heads = [masked_log_probabilities(each, mask) for each, mask in zip(leaves, masks, strict=True)]
    behaviour = [head.detach().exp() for head in reversed(list(reversed(heads)))]
    assert all(bool((head.exp()[~mask] == 0.0).all()) for head, mask in zip(heads, masks, strict=True))
    (entropy(heads) + divergence(behaviour, heads)).sum().backward()
    for leaf, mask in zip(leaves, masks, strict=True):
        assert leaf.grad is not None
        assert bool(leaf.grad.isfinite().all())
        assert bool((leaf.grad[~mask] == 0.0).all())


def test_a_head_with_one_legal_action_adds_nothing() -> None:
    """The head of an operation that needs no slot: log probability, entropy and divergence are zero."""
    mask = torch.tensor([[True, False, False]])
    head = masked_log_probabilities(torch.randn(1, 3), mask)
    assert float(taken([head], torch.zeros(1, 1, dtype=torch.int64))) == 0.0
    assert float(entropy([head])) == 0.0
    assert float(divergence([head.exp()], [head])) == 0.0


def test_a_policy_that_excludes_what_was_done_cannot_be_judged() -> None:
    """KL(mu || pi) is infinite where pi masks what mu did, and finite the other way round."""
    wide, narrow = torch.tensor([[True, True]]), torch.tensor([[True, False]])
    logits = torch.zeros(1, 2)
    mu, pi = masked_log_probabilities(logits, wide), masked_log_probabilities(logits, narrow)
    assert float(divergence([mu.exp()], [pi])) == float("inf")
    assert float(divergence([pi.exp()], [mu])) == pytest.approx(float(torch.log(torch.tensor(2.0))))


def test_a_decision_without_a_legal_action_is_refused() -> None:
    """It would give a distribution of no numbers."""
    with pytest.raises(ValueError, match="allows no action"):
        masked_log_probabilities(torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]))
