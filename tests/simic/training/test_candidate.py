"""From recorded experience to a candidate: it learns what pays, twice the same, and keeps what it knew."""

from __future__ import annotations

from dataclasses import replace

import torch

from esper.core.digest import module_digest
from esper.core.policy import OptionEntry, PolicyNetwork
from esper.simic.evaluation import as_seen
from esper.simic.experience import Recorded, Registry
from esper.simic.learning import ImitationSettings, Settings, divergence, imitate, masked_log_probabilities
from esper.simic.training import CandidateSettings, OfflineSettings, grown, registry_of, spoken_in, train_candidate
from tests.core.policy.support import network
from tests.simic.recorded import recorded

SETTINGS = CandidateSettings(
    offline=OfflineSettings(round=Settings(minibatch_steps=256, kl_target=0.05), rounds=8, learning_rate=1e-3), width=16
)


def test_it_learns_what_pays() -> None:
    """Goal: learning that reaches the actions. Method: germinating pays, BP021 most; asked afterwards, the candidate
    germinates more than the log did, and BP021 more than BP009; with rewards of the other sign it does not."""
    for sign in (1.0, -1.0):
        found = recorded(200, seed=1, sign=sign)
        made = train_candidate(found, SETTINGS, seed=3)
        judged = made.network(found.experience.observations)
        heads = [
            masked_log_probabilities(logits, mask)
            for logits, mask in zip(judged.logits, found.experience.masks, strict=True)
        ]
        germinates = float(heads[0].exp()[:, 1].mean())
        acted = found.experience.chosen[:, 0] == 1
        best = float(heads[2].exp()[acted][:, 2].mean())
        assert (germinates > 0.6) == (sign > 0), germinates
        assert (best > 0.55) == (sign > 0), best


def test_the_same_experience_gives_the_same_weights() -> None:
    """Goal: a policy that can be made again. Method: twice with one seed, and with another, whatever torch drew."""
    first = train_candidate(recorded(60, seed=2), SETTINGS, seed=5)
    torch.rand(17)
    again = train_candidate(recorded(60, seed=2), SETTINGS, seed=5)
    other = train_candidate(recorded(60, seed=2), SETTINGS, seed=6)
    assert first.packed == again.packed
    assert first.packed.weights_digest != other.packed.weights_digest


def test_a_fresh_policy_begins_at_what_was_done() -> None:
    """Goal: importance weights near 1 where learning begins. Method: imitate; divergence, and the weights of whole
    episodes."""
    found = recorded(200, seed=4)
    fresh = network(seed=1)
    generator = torch.Generator().manual_seed(0)
    before = _away(fresh, found)
    said = imitate(fresh, found.experience, ImitationSettings(passes=60), generator=generator)
    assert _away(fresh, found) < 0.005 < before
    assert said < 0.05
    weights = as_seen(fresh, found.experience).episodes.weights[:, -1]
    assert float(weights.std()) < 0.3


def _away(policy: PolicyNetwork, found: Recorded) -> float:
    experience = found.experience
    with torch.no_grad():
        judged = policy(experience.observations)
    heads = [
        masked_log_probabilities(logits, mask) for logits, mask in zip(judged.logits, experience.masks, strict=True)
    ]
    return float(divergence(experience.behaviour, heads).mean())


def test_a_larger_registry_changes_no_decision() -> None:
    """Goal: catalogues grow, policies stay. Method: a new option and a new blueprint; all old logits are the same."""
    parent = network()
    old = registry_of(parent)
    option = OptionEntry(blueprint_id="BP003", parameters=(), layouts=("vector",))
    larger = grown(
        parent, Registry((*old.options, option), (*old.blueprints, 3)), torch.Generator().manual_seed(1)
    ).eval()
    seen = recorded(5, seed=1).experience.observations
    before, after = parent(seen), larger(seen)
    for one, two in zip(before.logits, after.logits, strict=True):
        assert torch.equal(one, two[:, : one.shape[1]])
    assert torch.equal(before.values, after.values)
    assert not after.logits[2][:, -1].any(), "the new one begins with logit 0"


def test_another_order_of_options_changes_no_decision() -> None:
    """Goal: policies of different lines judged by one log. Method: options in another order, with one that the
    policy does not have, and without one that it has; probabilities by name, and the way there and back."""
    policy = network(seed=3)
    own = registry_of(policy)
    strange = OptionEntry(blueprint_id="BP003", parameters=(), layouts=("vector",))
    other = Registry((strange, own.options[1], own.options[0]), (3,))
    spoken = spoken_in(policy, other)
    seen = recorded(5, seed=1).experience.observations
    before, after = policy(seen), spoken(seen)
    for head in (0, 1, 3):
        assert torch.equal(before.logits[head], after.logits[head])
    assert torch.equal(before.values, after.values)
    one, two = (torch.softmax(judged.logits[2], dim=-1) for judged in (before, after))
    torch.testing.assert_close(two[:, [0, 3, 2]], one)
    assert not two[:, 1].any(), "what it does not have is never taken"
    back = spoken_in(spoken, own)(seen)
    assert all(torch.equal(here, there) for here, there in zip(before.logits, back.logits, strict=True))
    fewer = spoken_in(policy, Registry(own.options[1:], ()))(seen)
    torch.testing.assert_close(fewer.logits[2], before.logits[2][:, [0, 2]])


def test_learning_goes_on_from_a_parent() -> None:
    """The parent stays as it is, its normaliser stays for ever, and the candidate learns from there."""
    found = recorded(100, seed=7)
    parent = train_candidate(found, SETTINGS, seed=1)
    before = module_digest(parent.network)
    shifted = replace(
        found,
        experience=replace(
            found.experience,
            observations=found.experience.observations | {"run": found.experience.observations["run"] + 1.0},
        ),
    )
    boldly = replace(SETTINGS, offline=replace(SETTINGS.offline, support_min=0.0, rounds=2))
    child = train_candidate(shifted, boldly, seed=2, parent=parent.network)
    assert module_digest(parent.network) == before
    assert torch.equal(child.network.normal_run.mean, parent.network.normal_run.mean)
    assert child.packed.weights_digest != parent.packed.weights_digest
