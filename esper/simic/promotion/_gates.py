"""The gates before a promotion, in their order; each measures, and what was not measured fails.

Signature, source and key were checked when the candidate was read from the log. What follows: does it unpack, is all
that it says finite, does it keep to its masks, did it stay near to those who collected, can the log judge it at all,
do the lower bounds of its gain hold, did it win on fresh paired runs, is it quick enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from esper.core.checks import check
from esper.core.policy import Judgement, PolicyNetwork, PolicyRefused, unpack
from esper.leyline import messages as ly
from esper.simic.evaluation import Gain, GainBounds, Interval, as_seen, judged_gain, of_mean, resampled
from esper.simic.learning import Experience, divergence, entropy, masked_log_probabilities
from esper.simic.promotion._decisions import timed_decisions


@dataclass(frozen=True)
class GateBounds:
    """What must hold of a candidate."""

    #: KL(mu || pi) in nats a decision, over logged states.
    divergence_max: float = 1.0
    #: Mean entropy of a decision in nats: a policy that is sure of everything explores nothing.
    entropy_min: float = 0.001
    gain: GainBounds = field(default_factory=GainBounds)
    #: How much worse the lower bound of the paired runs' gain may be, in accuracy.
    canary_loss_max: float = 0.0
    canary_pairs_min: int = 20
    latency_p99_ms_max: float = 5.0


@dataclass(frozen=True)
class Canary:
    """Final accuracies of paired runs, candidate and incumbent, each [pairs]; same task, host, seed and data order."""

    candidate: Sequence[float]
    incumbent: Sequence[float]


@dataclass(frozen=True)
class Judged:
    """What the gates found: the checks up to the first failure, why it failed, and all estimates by name."""

    checks: tuple[ly.GateCheck, ...]
    reason: str
    scores: dict[str, float]

    @property
    def passed(self) -> bool:
        """Whether every gate was measured and held."""
        return not self.reason


def judge(
    update: ly.PolicyUpdate,
    incumbent: PolicyNetwork | None,
    experience: Experience,
    bounds: GateBounds,
    *,
    seed: int,
    canary: Callable[[], Canary] | None,
) -> Judged:
    """Hold a candidate against the gates; the first that fails ends it.

    Args:
        update: The candidate, as the log holds it.
        incumbent: What it is to replace; None: the policies that collected the experience.
        experience: Whole episodes that the candidate did not learn from.
        bounds: What must hold.
        seed: Draws the samples of the intervals.
        canary: Trains pairs of runs, and is asked only when all before it passed. None: not measured, which fails.
    """
    checks: list[ly.GateCheck] = []
    scores: dict[str, float] = {}
    try:
        network = unpack(update)
    except PolicyRefused as refused:
        failed = check("unpacks", 0.0, "==", 1.0)
        return Judged((failed,), f"{refused.reason}: {refused.cause}", scores)
    checks.append(check("unpacks", 1.0, "==", 1.0))
    for found in _gates(network, incumbent, experience, bounds, seed, canary, scores):
        checks += found
        wrong = [one for one in found if not one.passed]
        if wrong:
            said = ", ".join(f"{one.name} is {one.value:.4g}, not {one.comparison} {one.bound:.4g}" for one in wrong)
            return Judged(tuple(checks), said, scores)
    return Judged(tuple(checks), "", scores)


def _gates(
    network: PolicyNetwork,
    incumbent: PolicyNetwork | None,
    experience: Experience,
    bounds: GateBounds,
    seed: int,
    canary: Callable[[], Canary] | None,
    scores: dict[str, float],
) -> Iterator[list[ly.GateCheck]]:
    """Yield the checks of each gate; a later gate is measured only when it is asked for."""
    with torch.no_grad():
        judged = network(experience.observations)
    yield [check("finite", float(_is_finite(judged)), "==", 1.0)]
    heads = [
        masked_log_probabilities(logits[: len(experience)], mask)
        for logits, mask in zip(judged.logits, experience.masks, strict=True)
    ]
    yield [check("masks", float(_keeps_to(experience, heads)), "==", 1.0)]
    away = float(divergence(experience.behaviour, heads).mean()) if experience.behaviour else float("nan")
    scores |= {"kl_behaviour": away, "entropy": float(entropy(heads).mean())}
    yield [
        check("kl_behaviour", away, "<=", bounds.divergence_max),
        check("entropy", scores["entropy"], ">=", bounds.entropy_min),
    ]
    gain = _gain(network, incumbent, experience, bounds, seed)
    scores |= _scores(gain)
    yield [one for one in gain.checks if one.name == "effective_episodes"]
    yield [one for one in gain.checks if one.name != "effective_episodes"]
    if canary is None:
        yield [check("canary_pairs", 0.0, ">=", float(bounds.canary_pairs_min))]
        return
    runs = canary()
    interval = _canary_gain(runs, seed)
    scores |= {"canary_gain": interval.estimate, "canary_gain_low": interval.low, "canary_gain_high": interval.high}
    yield [
        check("canary_pairs", float(len(runs.candidate)), ">=", float(bounds.canary_pairs_min)),
        check("canary_gain_low", interval.low, ">", -bounds.canary_loss_max),
    ]
    scores["latency_p99_ms"] = latency_p99_ms(network, experience)
    yield [check("latency_p99_ms", scores["latency_p99_ms"], "<=", bounds.latency_p99_ms_max)]


def _is_finite(judged: Judgement) -> bool:
    return all(bool(torch.isfinite(each).all()) for each in (*judged.logits, judged.values))


def _keeps_to(experience: Experience, heads: Sequence[torch.Tensor]) -> bool:
    """Whether what is not allowed has no probability at all, and what is allowed has all of it."""
    return all(
        not bool(head.exp()[~mask].any()) and bool(torch.allclose(head.exp().sum(dim=-1), torch.ones(()), atol=1e-4))
        for head, mask in zip(heads, experience.masks, strict=True)
    )


def _gain(
    network: PolicyNetwork, incumbent: PolicyNetwork | None, experience: Experience, bounds: GateBounds, seed: int
) -> Gain:
    seen = as_seen(network, experience, value_scale=network.specification.value_scale)
    ratios = torch.zeros_like(seen.episodes.log_ratios)
    if incumbent is not None:
        ratios = as_seen(incumbent, experience).episodes.log_ratios
    generator = torch.Generator().manual_seed(seed)
    return judged_gain(seen.episodes, ratios, seen.values, seen.next_values, bounds.gain, generator=generator)


def _scores(gain: Gain) -> dict[str, float]:
    found = {"effective_episodes": gain.effective_episodes}
    for name, interval in (("pdis", gain.per_decision), ("wis", gain.weighted), ("dr", gain.doubly_robust)):
        found |= {
            f"{name}_gain": interval.estimate,
            f"{name}_gain_low": interval.low,
            f"{name}_gain_high": interval.high,
        }
    return found


def _canary_gain(runs: Canary, seed: int) -> Interval:
    """Return the mean paired gain with its 90 % interval; nothing is known of fewer than two pairs."""
    if len(runs.candidate) != len(runs.incumbent) or len(runs.candidate) < 2:
        return Interval(float("nan"), float("nan"), float("nan"))
    gains = torch.tensor(runs.candidate, dtype=torch.float64) - torch.tensor(runs.incumbent, dtype=torch.float64)
    counts = resampled(len(gains), generator=torch.Generator().manual_seed(seed))
    return of_mean(gains, counts, coverage=0.9)


def latency_p99_ms(network: PolicyNetwork, experience: Experience, *, decisions: int = 500) -> float:
    """Return the time that 99 of 100 single decisions stay below, in milliseconds, on one thread; evidence of here."""
    return float(np.percentile(timed_decisions(network, experience, decisions), 99.0))
