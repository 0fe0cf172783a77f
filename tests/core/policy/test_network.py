"""The network: slots are treated alike, what is not there changes nothing, and what is judged is what is drawn."""

from __future__ import annotations

import math

import numpy as np
import torch

from esper.core.policy import HEADS, PolicyNetwork, layout_of, together
from esper.core.rng import stream_of
from esper.leyline import messages as ly
from esper.tamiyo._actions import action_space
from esper.tamiyo._learned import Drawing, LearnedPolicy
from esper.tamiyo._observation import Observation
from tests.core.policy.support import network, observation

TAKEN = {"operation": torch.tensor([1]), "slot": torch.tensor([1])}


def tensors(made: PolicyNetwork, *seen: Observation) -> dict[str, torch.Tensor]:
    """Return observations as the network reads them."""
    encoded = [layout_of(each.names).encode(np.asarray([each.values])) for each in seen]
    return made.encoded(together(encoded))


def test_padded_slots_change_nothing() -> None:
    """Goal: hosts of any size in one batch. Method: a host of two slots by itself and beside one of five."""
    made = network()
    small, large = observation(stage=ly.SEED_STAGE_TRAINING), observation(slots=tuple("abcde"))
    alone = made(tensors(made, small) | TAKEN)
    beside = made(tensors(made, small, large) | {name: taken.repeat(2) for name, taken in TAKEN.items()})
    assert torch.allclose(alone.values, beside.values[:1], atol=1e-6)
    for head, one, two in zip(HEADS, alone.logits, beside.logits, strict=True):
        assert torch.allclose(one, two[:1, : one.shape[1]], atol=1e-6), head


def test_unknown_epochs_change_nothing() -> None:
    """Goal: a mask that masks. Method: put large figures where no epoch is known; then know them."""
    made = network()
    seen = tensors(made, observation(epochs=3))
    changed = seen | {"past": seen["past"].masked_fill(~seen["past_known"].unsqueeze(-1), 1e3)}
    assert torch.equal(made.operations(made.think(seen)), made.operations(made.think(changed)))
    known = changed | {"past_known": torch.ones_like(seen["past_known"])}
    assert not torch.equal(made.operations(made.think(seen)), made.operations(made.think(known)))


def test_slots_are_treated_alike() -> None:
    """Goal: no place is special. Method: exchange two slots; their logits change places, all else stays."""
    made = network()
    seen = tensors(made, observation(stage=ly.SEED_STAGE_TRAINING))
    turned = seen | {name: seen[name].flip(1) for name in ("slots", "codes", "held")}
    one, two = made.think(seen), made.think(turned)
    assert torch.allclose(made.operations(one), made.operations(two), atol=1e-6)
    grow = torch.tensor([1])
    assert torch.allclose(made.slots(one, grow)[:, 1:], made.slots(two, grow)[:, 1:].flip(1), atol=1e-6)
    assert not torch.allclose(made.slots(one, grow)[:, 1:], made.slots(two, grow)[:, 1:], atol=1e-3)


def test_history_without_time_codes_has_no_order() -> None:
    """Goal: attention, not a disguised recurrence. Method: take the codes of time away; then order means nothing."""
    made = network()
    seen = tensors(made, observation(epochs=6))
    turned = seen | {"past": seen["past"].flip(1)}
    with_codes = (made.values(seen), made.values(turned))
    with torch.no_grad():
        made.critic.history.back.weight.zero_()
    assert torch.allclose(made.values(seen), made.values(turned), atol=1e-6)
    assert not torch.allclose(*with_codes, atol=1e-6)


def test_seeds_of_an_unknown_blueprint_are_alike() -> None:
    """Goal: a catalogue may grow. Method: a number that the registry lacks, one beyond it, and one of no blueprint."""
    made = network()
    seen = tensors(made, observation(stage=ly.SEED_STAGE_TRAINING))
    found = []
    for number in (21, 3, 999_999, -1):
        codes = seen["codes"].clone()
        codes[..., 2] = number
        found.append(made.values(seen | {"codes": codes}))
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])
    assert torch.equal(found[1], found[3])


def test_what_is_drawn_is_what_is_judged() -> None:
    """Goal: sound importance weights. Method: draw live; the logged probabilities are those of `forward` after the
    fact, and the value is the critic's in the log's scale."""
    made = network()
    policy = LearnedPolicy(made, version="1", digest="0" * 64)
    for stage in (None, ly.SEED_STAGE_TRAINING, ly.SEED_STAGE_BLENDING, ly.SEED_STAGE_PROBATIONARY):
        seen = observation(stage=stage)
        space = action_space(seen, policy.options)
        for number in range(20):
            proposal = policy.draw(seen, space, stream_of(number))
            assert space.allows(proposal.action)
            chosen = {head.name: torch.tensor([head.chosen]) for head in proposal.heads}
            judged = made(tensors(made, seen) | {"operation": chosen["operation"], "slot": chosen["slot"]})
            for head, logits in zip(proposal.heads, judged.logits, strict=True):
                masked = logits[0].double().masked_fill(~torch.tensor(head.mask), -math.inf)
                assert torch.allclose(torch.softmax(masked, -1), torch.tensor(head.probabilities).double(), atol=1e-6)
            assert proposal.value is not None
            assert math.isclose(proposal.value * 2.0, float(judged.values.detach()), rel_tol=1e-5)


def test_exploring_gives_every_legal_action_its_share() -> None:
    """Goal: logs that can judge others. Method: a policy that is sure of itself explores; no legal action gets less."""
    made = network()
    with torch.no_grad():
        made.operation.bias.copy_(torch.tensor([60.0, 0, 0, 0, 0, 0, 0]))
    seen = observation()
    space = action_space(seen, LearnedPolicy(made, version="1", digest="0" * 64).options)
    sure, exploring = (
        LearnedPolicy(made, version="1", digest="0" * 64, drawing=drawing).draw(seen, space, stream_of(1)).heads[0]
        for drawing in (Drawing(), Drawing(explore=0.1))
    )
    assert sure.probabilities[1] < 1e-12
    assert exploring.probabilities[1] >= 0.05
    assert exploring.probabilities[2:] == (0.0,) * 5, "what is not legal has none"
