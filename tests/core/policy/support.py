"""A small policy and observations to ask it about."""

from __future__ import annotations

import torch

from esper.core.policy import OBSERVATION_SCHEMA, PAYLOAD_VERSION, OptionEntry, PolicyNetwork, Specification, pack
from esper.leyline import messages as ly
from esper.tamiyo._observation import Observation, observe
from esper.tamiyo._state import RunState, fold
from tests.tamiyo.scripted_run import ScriptedRun, slot_state

OPTIONS = (
    OptionEntry(blueprint_id="BP021", parameters=(("hidden_multiple", 2.0),), layouts=("vector",)),
    OptionEntry(blueprint_id="BP009", parameters=(("depth", 1.0),), layouts=("vector",)),
)


def specification(**changes: object) -> Specification:
    """Return a small specification."""
    return Specification.model_validate(
        {"width": 16, "options": OPTIONS, "blueprints": (21, 9), "value_scale": 2.0} | changes
    )


def network(seed: int = 0, **changes: object) -> PolicyNetwork:
    """Return a network whose heads are far from even, so that a difference shows."""
    made = PolicyNetwork(specification(**changes), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for head in (made.operation, made.operation_by_slot, made.where, made.which, made.how):
            head.weight.mul_(200.0)
    return made.eval()


def update(made: PolicyNetwork, *, version: str = "1") -> ly.PolicyUpdate:
    """Return the update that carries a network."""
    packed = pack(made)
    return ly.PolicyUpdate(
        version=PAYLOAD_VERSION,
        policy_id="tamiyo",
        tamiyo_policy_version=version,
        payload=packed.payload,
        specification=packed.specification,
        policy_digest=packed.policy_digest,
        weights_digest=packed.weights_digest,
        observation_schema=OBSERVATION_SCHEMA,
    )


def observation(
    *, stage: ly.SeedLifecycleStage | None = None, slots: tuple[str, ...] = ("a", "b"), epochs: int = 4
) -> Observation:
    """Return what is seen at the edge of the last of `epochs`; the first slot holds a seed where a stage is given."""
    run = ScriptedRun("run-seen", slots=[slot_state(slot) for slot in slots], policy="learned")
    state = RunState("run-seen")
    for number in range(epochs):
        packet = run.next_packet()
        packet.validation_loss = 2.0 / (number + 1)
        if stage is not None:
            seed = packet.seed_states.add(seed_id="a.1", slot=slots[0], stage=stage, alpha=1.0, blueprint_id="BP021")
            seed.metrics.update({"loss_seed_on": 1.0, "loss_seed_off": 1.5})
            packet.slots[0].seed_id = "a.1"
        state = fold(state, packet)
    return observe(state.history(epochs), ())
