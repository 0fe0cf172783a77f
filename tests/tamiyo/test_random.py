"""The policy that draws: what it says of its draws is how it draws, and all of it can be drawn again."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from esper.core.rng import stream_of
from esper.leyline import messages as ly
from esper.tamiyo import RunState, decide, fold, make_policy
from esper.tamiyo._actions import ActionSpace, action_space
from esper.tamiyo._observation import Observation, observe
from esper.tamiyo._random import RandomPolicy
from tests.tamiyo.scripted_run import ScriptedRun, play, slot_state

DRAWS = 20_000


def seen(*, stage: ly.SeedLifecycleStage | None = None) -> tuple[Observation, ActionSpace]:
    """Return an observation of a run of two slots, the first one free or with a seed in `stage`."""
    run = ScriptedRun("run-drawn", slots=[slot_state("a"), slot_state("none")], policy="random")
    packet = run.next_packet()
    if stage is not None:
        packet.seed_states.add(seed_id="a.1", slot="a", stage=stage, alpha=1.0)
        packet.slots[0].seed_id = "a.1"
    state = fold(RunState("run-drawn"), packet)
    observation = observe(state.history(1), ())
    return observation, action_space(observation, RandomPolicy.options)


@pytest.mark.parametrize("stage", [None, ly.SEED_STAGE_TRAINING, ly.SEED_STAGE_BLENDING])
def test_probabilities_are_those_of_its_draws(stage: ly.SeedLifecycleStage | None) -> None:
    """Goal: logs that can be learned from. Method: 20,000 draws; the share of each action of each head is what the
    heads of its decisions say, within four standard errors, and no draw leaves its mask."""
    observation, space = seen(stage=stage)
    policy, stream = RandomPolicy(act=0.6), stream_of(1)
    drawn: Counter[tuple[int, ...]] = Counter()
    said: dict[tuple[int, ...], float] = {}
    for _ in range(DRAWS):
        proposal = policy.draw(observation, space, stream)
        assert space.allows(proposal.action)
        assert all(head.mask[head.chosen] for head in proposal.heads)
        place = tuple(head.chosen for head in proposal.heads)
        drawn[place] += 1
        said[place] = math.exp(sum(head.log_probability for head in proposal.heads))
    assert sum(said.values()) == pytest.approx(1.0), "every action that can be drawn was drawn"
    for place, share in said.items():
        assert abs(drawn[place] / DRAWS - share) < 4 * math.sqrt(share * (1 - share) / DRAWS)


def test_where_nothing_can_be_done_it_goes_on() -> None:
    """With probability 1, so that such a decision weighs nothing."""
    observation, _ = seen()
    space = action_space(observation, ())
    proposal = RandomPolicy(act=1.0).propose(observation, space)
    assert proposal.action.operation == "continue"
    assert [head.log_probability for head in proposal.heads] == [0.0] * 4


def test_runs_draw_by_their_own_seed_and_epoch() -> None:
    """Goal: drawn again from the log. Method: two runs of one seed decide alike, one of another seed does not; each
    decision names a stream of its own, from which it is drawn again."""
    first, again, other = (
        play(ScriptedRun("run-drawn", policy="random", parameters={"act": 0.9}, seed=seed)) for seed in (1, 1, 2)
    )
    ordered = [[made.operation for made in state.decisions.values()] for state in (first, again, other)]
    assert ordered[0] == ordered[1] != ordered[2]
    run = ScriptedRun("run-drawn", policy="random")
    state = RunState("run-drawn")
    seeds = []
    for _ in range(5):
        state = fold(state, run.next_packet())
        assert state.latest is not None
        made = decide(state, state.latest).made
        assert made.rng_counter == len(made.heads) == 4
        seeds.append(made.rng_seed)
    assert len(set(seeds)) == 5
    noop = decide(state, state.latest, make_policy("noop")).made
    assert noop.rng_counter == 0
