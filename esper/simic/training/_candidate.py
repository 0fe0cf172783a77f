"""A candidate: a policy that was trained on recorded experience, with all that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch

from esper.core.numerics import deterministic
from esper.core.policy import Packed, PolicyNetwork, Specification, pack
from esper.core.rng import derive_seed
from esper.simic.experience import Recorded, Registry
from esper.simic.learning import ImitationSettings, imitate, return_scale
from esper.simic.training._adapters import attach_adapters, merge_adapters
from esper.simic.training._offline import OfflineSettings, Training, train_offline

#: Logit of what is never taken, finite so that no difference of two becomes no number.
_NEVER = -1e9
#: Of the hidden layers. Twice as wide learned no better from 1,000 episodes, and decided in twice the time.
WIDTH = 64


@dataclass(frozen=True)
class Candidate:
    """A trained policy and how it came to be."""

    network: PolicyNetwork
    packed: Packed
    training: Training


@dataclass(frozen=True)
class CandidateSettings:
    """How a candidate is made."""

    offline: OfflineSettings = field(default_factory=OfflineSettings)
    #: Of a fresh policy, which begins at what the log's policies did.
    imitation: ImitationSettings = field(default_factory=ImitationSettings)
    width: int = WIDTH
    #: Of adapters through which a parent's actor learns; 0: all of its weights do.
    adapter_rank: int = 0

    def figures(self) -> dict[str, float]:
        """Return every number that decides the outcome by name, for the pedigree."""
        found = {f"round.{name}": value for name, value in asdict(self.offline.round).items()}
        found |= {name: value for name, value in asdict(self.offline).items() if name != "round"}
        found |= {f"imitation.{name}": value for name, value in asdict(self.imitation).items()}
        found |= {"width": self.width, "adapter_rank": self.adapter_rank}
        return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def train_candidate(
    recorded: Recorded,
    settings: CandidateSettings,
    *,
    seed: int,
    parent: PolicyNetwork | None = None,
    reward_weights: Mapping[str, float] | None = None,
) -> Candidate:
    """Return a policy trained on `recorded`; equal arguments give equal weights on one machine.

    Args:
        recorded: Experience, its registry an extension of the parent's.
        settings: How.
        seed: Draws the first weights and the order of steps.
        parent: The policy that learning goes on from; it stays as it is. None: a fresh network, whose normaliser is
            taken from the experience and never changes after.
        reward_weights: What the rewards were made of, for the specification.

    Raises:
        ValueError, FloatingPointError: as `improve`, and `attach_adapters`, which take a parent.
        PolicyRefused: what came of it cannot be carried by an event.
    """
    if settings.adapter_rank and parent is None:
        raise ValueError("adapters take a parent: a fresh policy has nothing to adapt")
    with deterministic(seed=derive_seed(seed, "candidate")):
        generator = torch.Generator().manual_seed(derive_seed(seed, "simic"))
        network = _begun(recorded, settings, generator, parent)
        if settings.adapter_rank:
            attach_adapters(network, settings.adapter_rank, generator=generator)
        training = train_offline(network, recorded.experience, settings.offline, generator=generator)
        merge_adapters(network)
        network.specification = network.specification.model_copy(
            update={"value_scale": training.value_scale, "reward_weights": dict(reward_weights or {})}
        )
        return Candidate(network.eval().requires_grad_(requires_grad=False), pack(network), training)


def registry_of(network: PolicyNetwork) -> Registry:
    """Return what a policy knows already."""
    return Registry(network.specification.options, network.specification.blueprints)


def _begun(
    recorded: Recorded, settings: CandidateSettings, generator: torch.Generator, parent: PolicyNetwork | None
) -> PolicyNetwork:
    registry = recorded.registry
    if parent is not None:
        return grown(parent, registry, generator)
    specification = Specification(
        width=settings.width, options=registry.options, blueprints=registry.blueprints, value_scale=1.0
    )
    network = PolicyNetwork(specification, generator=generator)
    network.freeze_normaliser(recorded.experience.observations)
    scaled = recorded.experience.scaled(return_scale(recorded.experience))
    imitate(network, scaled, settings.imitation, generator=generator)
    return network


def grown(parent: PolicyNetwork, registry: Registry, generator: torch.Generator) -> PolicyNetwork:
    """Return the parent with rows for what its registry did not hold yet; all that it held decides as before.

    A new option begins as likely as one whose logit is 0.
    """
    specification = parent.specification.model_copy(
        update={"options": registry.options, "blueprints": registry.blueprints}
    )
    network = PolicyNetwork(specification, generator=generator)
    with torch.no_grad():
        network.which.weight.zero_()
        for name, tensor in network.state_dict().items():
            old = parent.state_dict()[name]
            tensor[: len(old)] = old
    return network


def spoken_in(network: PolicyNetwork, registry: Registry) -> PolicyNetwork:
    """Return a network that decides as `network` does, with its options in the order of another registry.

    Two policies that do not descend from each other name the same option by different places, and a log is read in the
    places of one of them. An option that `network` does not have is never taken; one that the registry does not have is
    left out, as decisions in its places cannot have it.
    """
    specification = network.specification.model_copy(update={"options": registry.options})
    spoken = PolicyNetwork(specification)
    own = {option.label: place for place, option in enumerate(network.specification.options)}
    places = [own.get(option.label) for option in registry.options]
    state = dict(network.state_dict())
    weight, bias = state["which.weight"], state["which.bias"]
    state["which.weight"] = torch.stack([torch.zeros_like(weight[0]) if at is None else weight[at] for at in places])
    state["which.bias"] = torch.stack([bias.new_tensor(_NEVER) if at is None else bias[at] for at in places])
    spoken.load_state_dict(state)
    return spoken.eval().requires_grad_(requires_grad=False)
