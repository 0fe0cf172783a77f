"""The gates: each measures, each can fail, and the first that fails ends it with its figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from esper.core.policy import OBSERVATION_SCHEMA, PAYLOAD_VERSION, PolicyNetwork, pack
from esper.leyline import messages as ly
from esper.simic.evaluation import GainBounds
from esper.simic.learning import Experience, Settings
from esper.simic.promotion import Canary, GateBounds, Judged, judge
from esper.simic.training import CandidateSettings, OfflineSettings, train_candidate
from tests.simic.recorded import recorded

SETTINGS = CandidateSettings(
    offline=OfflineSettings(round=Settings(minibatch_steps=256, kl_target=0.05), rounds=8, learning_rate=1e-3), width=16
)
BOUNDS = GateBounds(latency_p99_ms_max=1e6)
BETTER = Canary([0.6 + 0.01 * place for place in range(20)], [0.5 + 0.009 * place for place in range(20)])


@pytest.fixture(scope="module")
def candidate() -> PolicyNetwork:
    """One that learned what pays."""
    return train_candidate(recorded(300, seed=1), SETTINGS, seed=1).network


@pytest.fixture(scope="module")
def held_out() -> Experience:
    """Episodes that it did not learn from."""
    return recorded(300, seed=2).experience


def carried(made: PolicyNetwork) -> ly.PolicyUpdate:
    packed = pack(made)
    return ly.PolicyUpdate(
        version=PAYLOAD_VERSION,
        payload=packed.payload,
        specification=packed.specification,
        policy_digest=packed.policy_digest,
        weights_digest=packed.weights_digest,
        observation_schema=OBSERVATION_SCHEMA,
    )


def changed(made: PolicyNetwork, change: Callable[[PolicyNetwork], object]) -> PolicyNetwork:
    """Return a copy of a policy that was changed."""
    other = PolicyNetwork(made.specification)
    other.load_state_dict(made.state_dict())
    with torch.no_grad():
        change(other)
    return other.eval()


def judged(
    made: PolicyNetwork, experience: Experience, bounds: GateBounds = BOUNDS, canary: Canary | None = BETTER
) -> Judged:
    asked = None if canary is None else lambda: canary
    return judge(carried(made), None, experience, bounds, seed=1, canary=asked)


def test_a_better_policy_passes_all_gates(candidate: PolicyNetwork, held_out: Experience) -> None:
    """Goal: evidence that can be had. Method: all gates on episodes that it did not learn from."""
    found = judged(candidate, held_out)
    assert found.passed, found.reason
    assert [one.name for one in found.checks] == [
        "unpacks",
        "finite",
        "masks",
        "kl_behaviour",
        "entropy",
        "effective_episodes",
        "weighted_gain_low",
        "doubly_robust_gain_low",
        "signs_of_gains",
        "canary_pairs",
        "canary_gain_low",
        "latency_p99_ms",
    ]
    assert found.scores["dr_gain_low"] > 0.0
    assert {"kl_behaviour", "entropy", "wis_gain", "pdis_gain", "canary_gain", "latency_p99_ms"} <= set(found.scores)


def test_the_same_evidence_gives_the_same_verdict(candidate: PolicyNetwork, held_out: Experience) -> None:
    """But for the latency, which is of here and now."""
    one, two = (judged(candidate, held_out).scores for _ in range(2))
    assert one | {"latency_p99_ms": 0.0} == two | {"latency_p99_ms": 0.0}


def endless(made: PolicyNetwork) -> None:
    made.operation.weight.fill_(3e38)


FAULTS: dict[str, tuple[Callable[[PolicyNetwork], object], GateBounds, str]] = {
    "its logits overflow": (endless, BOUNDS, "finite"),
    "it went too far": (lambda made: made, GateBounds(divergence_max=1e-9), "kl_behaviour"),
    "it is too sure": (lambda made: made, GateBounds(entropy_min=5.0), "entropy"),
    "the log cannot judge it": (
        lambda made: made,
        GateBounds(gain=GainBounds(effective_min=299.0)),
        "effective_episodes",
    ),
    "it is not quick": (lambda made: made, GateBounds(latency_p99_ms_max=1e-6), "latency_p99_ms"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_gate_can_fail(candidate: PolicyNetwork, held_out: Experience, fault: str) -> None:
    """Goal: no gate that cannot fail. Method: one fault each; the last check is the one that failed."""
    change, bounds, name = FAULTS[fault]
    found = judged(changed(candidate, change), held_out, bounds)
    assert not found.passed
    assert name in found.reason
    assert name in [one.name for one in found.checks if not one.passed]


def test_rewards_of_the_other_sign_are_refused(held_out: Experience) -> None:
    """Goal: what learned to do harm does not pass. Method: train on flipped rewards, judge by the true ones."""
    harmful = train_candidate(recorded(300, seed=1, sign=-1.0), SETTINGS, seed=1).network
    found = judged(harmful, held_out)
    assert not found.passed
    assert "gain" in found.reason


@pytest.mark.parametrize(
    ("canary", "name"),
    [
        (None, "canary_pairs"),
        (Canary([0.9] * 5, [0.1] * 5), "canary_pairs"),
        (Canary(BETTER.incumbent, BETTER.candidate), "canary_gain_low"),
        (Canary([0.9] * 20, [0.1] * 19), "canary_gain_low"),
        (Canary([float("nan")] * 20, [0.1] * 20), "canary_gain_low"),
    ],
)
def test_no_promotion_without_paired_runs(
    candidate: PolicyNetwork, held_out: Experience, canary: Canary | None, name: str
) -> None:
    """What was not measured fails: no runs, too few, runs that lost, pairs with a missing half, runs that broke."""
    found = judged(candidate, held_out, canary=canary)
    assert not found.passed
    assert name in [one.name for one in found.checks if not one.passed]


def test_a_failed_gate_asks_for_no_runs(candidate: PolicyNetwork, held_out: Experience) -> None:
    """Runs cost: they are asked for only when all before them passed."""

    def never() -> Canary:
        raise AssertionError("runs were asked for")

    found = judge(carried(candidate), None, held_out, GateBounds(divergence_max=1e-9), seed=1, canary=never)
    assert not found.passed


def test_an_incumbent_that_is_the_candidate_is_no_gain(candidate: PolicyNetwork, held_out: Experience) -> None:
    """Goal: promoted only for being better. Method: hold a policy against itself."""
    found = judge(carried(candidate), candidate, held_out, BOUNDS, seed=1, canary=lambda: BETTER)
    assert not found.passed
    assert found.scores["dr_gain"] == 0.0


def test_what_does_not_unpack_is_judged_no_further(candidate: PolicyNetwork, held_out: Experience) -> None:
    """Its reason is the refusal's."""
    poisoned = carried(candidate)
    poisoned.payload = b"nothing"
    found = judge(poisoned, None, held_out, BOUNDS, seed=1, canary=lambda: BETTER)
    assert found.reason.startswith("digest")
    assert [one.name for one in found.checks] == ["unpacks"]


def test_a_log_without_probabilities_fails(candidate: PolicyNetwork, held_out: Experience) -> None:
    """Missing evidence fails: the divergence is not a number then."""
    found = judged(candidate, replace(held_out, behaviour=()))
    assert "kl_behaviour" in found.reason
