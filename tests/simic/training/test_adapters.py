"""Low-rank adapters: fresh they change nothing, merged they are the sum, and what they learn is thin."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from esper.core.policy import OBSERVATION_SCHEMA, PAYLOAD_VERSION, PolicyNetwork, unpack
from esper.leyline import messages as ly
from esper.simic.learning import Settings
from esper.simic.training import CandidateSettings, OfflineSettings, train_candidate
from esper.simic.training._adapters import attach_adapters, merge_adapters
from tests.core.policy.support import network
from tests.simic.recorded import recorded

RANK = 2
SETTINGS = CandidateSettings(
    offline=OfflineSettings(
        round=Settings(minibatch_steps=256, kl_target=0.05), rounds=4, learning_rate=1e-3, support_min=0.0
    ),
    width=16,
)
ADAPTED = replace(SETTINGS, adapter_rank=RANK)


def _said(policy: PolicyNetwork, observations: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        judged = policy(observations)
    return [*judged.logits, judged.values]


def test_a_fresh_adapter_equals_the_base() -> None:
    """Goal: learning that begins at the parent. Method: every output before and after attaching, bit for bit."""
    policy, found = network(seed=1), recorded(20, seed=2)
    before = _said(policy, dict(found.experience.observations))
    attach_adapters(policy, RANK, generator=torch.Generator().manual_seed(3))
    after = _said(policy, dict(found.experience.observations))
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_merging_is_the_sum() -> None:
    """Goal: a plain network that computes what the adapted one did. Method: adapters with drawn figures; each merged
    weight against base + up @ down by hand, the outputs before and after, and the names of the weights."""
    policy, found = network(seed=1), recorded(20, seed=2)
    names = set(policy.state_dict())
    base = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    generator = torch.Generator().manual_seed(4)
    attach_adapters(policy, RANK, generator=generator)
    thin: dict[str, Tensor] = {}
    for name, module in policy.named_modules():
        if hasattr(module, "up"):
            module.up.data.normal_(generator=generator)
            thin[name.removesuffix(".parametrizations.weight.0") + ".weight"] = (module.up @ module.down).detach()
    assert thin
    adapted = _said(policy, dict(found.experience.observations))
    merge_adapters(policy)
    assert set(policy.state_dict()) == names
    for name, tensor in policy.state_dict().items():
        torch.testing.assert_close(tensor, base[name] + thin.get(name, torch.zeros(())), atol=1e-6, rtol=0.0)
    merged = _said(policy, dict(found.experience.observations))
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(adapted, merged, strict=True))


def test_a_child_differs_by_thin_matrices_alone() -> None:
    """Goal: a bound on what learning may change. Method: a child trained through adapters; the rank of each weight's
    change, biases and embeddings of the actor; the same child again, and as an event carries it; a child without
    adapters changes in full."""
    found = recorded(80, seed=5)
    parent = train_candidate(found, SETTINGS, seed=1).network
    child = train_candidate(found, ADAPTED, seed=2, parent=parent)
    before, after = parent.state_dict(), child.network.state_dict()
    changed = 0
    for name, tensor in after.items():
        if name.startswith(("critic.", "value.")):
            continue
        change = tensor - before[name]
        if change.ndim == 2 and not name.endswith(("stage.weight", "layout.weight", "blueprint.weight", "back.weight")):
            changed += bool(change.any())
            assert int(torch.linalg.matrix_rank(change, atol=1e-5)) <= RANK, name
        else:
            assert not change.any(), name
    assert changed > 3
    assert any((after[name] != before[name]).any() for name in after if name.startswith("critic."))
    assert child.packed == train_candidate(found, ADAPTED, seed=2, parent=parent).packed
    carried = unpack(
        ly.PolicyUpdate(
            version=PAYLOAD_VERSION,
            payload=child.packed.payload,
            specification=child.packed.specification,
            policy_digest=child.packed.policy_digest,
            weights_digest=child.packed.weights_digest,
            observation_schema=OBSERVATION_SCHEMA,
        )
    )
    here, there = (_said(one, dict(found.experience.observations)) for one in (child.network, carried))
    assert all(torch.equal(one, other) for one, other in zip(here, there, strict=True))
    free = train_candidate(found, SETTINGS, seed=2, parent=parent).network.state_dict()
    assert int(torch.linalg.matrix_rank(free["actor.whole.weight"] - before["actor.whole.weight"], atol=1e-5)) > RANK


@pytest.mark.parametrize("rank", [0, 10_000])
def test_a_rank_that_fits_nothing_is_refused(rank: int) -> None:
    """Goal: no training that cannot learn. Method: too small, too large."""
    with pytest.raises(ValueError, match="fit no layer"):
        attach_adapters(network(seed=1), rank, generator=torch.Generator())


def test_adapters_take_a_parent() -> None:
    """Goal: no low-rank change of drawn weights. Method: ask for adapters on a fresh policy."""
    with pytest.raises(ValueError, match="take a parent"):
        train_candidate(recorded(20, seed=1), ADAPTED, seed=1)
