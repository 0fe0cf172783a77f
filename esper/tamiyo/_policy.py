"""The interface of a policy, and the policies by name."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol, TypeGuard

from esper.core.errors import NotReadyError, UsageError
from esper.tamiyo._actions import Action, ActionSpace, BlueprintOption, Head
from esper.tamiyo._observation import Observation


class UnknownPolicy(UsageError):
    """A request names a policy that does not exist."""


class BadPolicyParameters(UsageError):
    """A request gives a policy a parameter that it does not know or cannot use."""


class NoLearnedPolicy(NotReadyError):
    """A run asks for the learned version that decides, and none does."""


@dataclass(frozen=True)
class Proposal:
    """What a policy wants, with the distribution that it drew from and why."""

    action: Action
    heads: tuple[Head, ...]
    reasons: tuple[str, ...]
    #: What it expects from here on, in the scale of its rewards; None without a critic.
    value: float | None = None


class Policy(Protocol):
    """Chooses one legal action for each observation.

    `propose` is a pure function of its arguments and of the policy's configuration, whose SHA-256 is `digest`:
    asked again with the observation of a recorded decision it gives the recorded action.
    """

    @property
    def name(self) -> str:
        """Name that requests use."""

    @property
    def version(self) -> str:
        """Version of the rules; changes whenever the same configuration may choose otherwise."""

    @property
    def digest(self) -> str:
        """SHA-256 of name, version and canonical configuration, 64 hexadecimal digits."""

    @property
    def options(self) -> tuple[BlueprintOption, ...]:
        """Blueprints that the policy may germinate, in the order of its blueprint head."""

    def propose(self, observation: Observation, space: ActionSpace) -> Proposal:
        """Return the action to take; `space` must be the one of `observation` and `options`."""


class ForeseeingPolicy(Policy, Protocol):
    """A policy that can say what it may germinate next, so that kernels are fetched before they are ordered."""

    def candidates(self, observation: Observation, space: ActionSpace) -> Sequence[Action]:
        """Return germinations that may be proposed at one of the next edges, most likely first; a pure function.

        They order nothing, and a proposal may be another.
        """


class DrawingPolicy(Policy, Protocol):
    """A policy that draws its action; the same observation, space and stream give the same one."""

    def draw(self, observation: Observation, space: ActionSpace, stream: Random) -> Proposal:
        """Return an action drawn from `stream`, one number a head, with the probabilities that it was drawn with."""


def draws(policy: Policy) -> TypeGuard[DrawingPolicy]:
    """Whether a policy draws its action."""
    return callable(getattr(policy, "draw", None))


def foresees(policy: Policy) -> TypeGuard[ForeseeingPolicy]:
    """Whether a policy can say what it may germinate next.

    Asked at every decision: isinstance with a protocol would look at every attribute, digest and all.
    """
    return callable(getattr(policy, "candidates", None))


def appointed_by(policy: Policy) -> str:
    """Return the event by which a learned version decides; nothing for any other policy."""
    found = getattr(policy, "appointed_by", "")
    return found if isinstance(found, str) else ""


def canonical_digest(name: str, version: str, configuration: Mapping[str, object]) -> str:
    """Return the SHA-256 over the canonical JSON (sorted keys, no spaces) of a policy's identity."""
    identity = {"configuration": configuration, "name": name, "version": version}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def whole_number(policy: str, name: str, value: float, *, low: int, high: int) -> int:
    """Return `value` as an int.

    Raises:
        BadPolicyParameters: it is not a whole number from `low` to `high`.
    """
    if not low <= value <= high or value != int(value):
        raise BadPolicyParameters(
            f"policy {policy!r} cannot use {name}={value:g}",
            cause=f"{name} is a whole number from {low} to {high}",
            next_step="correct the parameter or leave it out",
        )
    return int(value)


def finite_number(policy: str, name: str, value: float) -> float:
    """Return `value`.

    Raises:
        BadPolicyParameters: it is infinite or not a number.
    """
    if not math.isfinite(value):
        raise BadPolicyParameters(
            f"policy {policy!r} cannot use {name}={value:g}",
            cause=f"{name} is a finite number",
            next_step="correct the parameter or leave it out",
        )
    return value


def unknown_parameter(policy: str, name: str, known: tuple[str, ...]) -> BadPolicyParameters:
    """Return the error for a parameter that `policy` does not have."""
    listed = ", ".join(known) if known else "none"
    return BadPolicyParameters(
        f"policy {policy!r} has no parameter {name!r}",
        cause=f"its parameters are: {listed}",
        next_step="correct the name or leave it out",
    )
