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
from esper.simic.training._offline import OfflineSettings, Training, train_offline

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

    def figures(self) -> dict[str, float]:
        """Return every number that decides the outcome by name, for the pedigree."""
        found = {f"round.{name}": value for name, value in asdict(self.offline.round).items()}
        found |= {name: value for name, value in asdict(self.offline).items() if name != "round"}
        found |= {f"imitation.{name}": value for name, value in asdict(self.imitation).items()}
        found["width"] = self.width
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
        ValueError, FloatingPointError: as `improve`.
        PolicyRefused: what came of it cannot be carried by an event.
    """
    with deterministic(seed=derive_seed(seed, "candidate")):
        generator = torch.Generator().manual_seed(derive_seed(seed, "simic"))
        network = _begun(recorded, settings, generator, parent)
        training = train_offline(network, recorded.experience, settings.offline, generator=generator)
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
