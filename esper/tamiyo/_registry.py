"""The policies by name: the shipped ones, and those that installed packages offer (`esper.policies`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from esper.core.plugins import Offers, installed
from esper.tamiyo._fixed import FixedPolicy
from esper.tamiyo._heuristic import HeuristicPolicy
from esper.tamiyo._learned import LEARNED, Drawing, LearnedPolicy, is_learned
from esper.tamiyo._noop import NoopPolicy
from esper.tamiyo._own import POLICY_ENTRY_POINTS, own_policy
from esper.tamiyo._policy import NoLearnedPolicy, Policy, UnknownPolicy
from esper.tamiyo._random import RandomPolicy
from esper.tamiyo.risk import RiskLimits, without_limits

_POLICIES: Mapping[str, Callable[[Mapping[str, float]], Policy]] = {
    FixedPolicy.name: FixedPolicy.from_parameters,
    HeuristicPolicy.name: HeuristicPolicy.from_parameters,
    NoopPolicy.name: NoopPolicy.from_parameters,
    RandomPolicy.name: RandomPolicy.from_parameters,
}


class LearnedVersions(Protocol):
    """Who knows the learned versions of the log: `LearnedPolicies`."""

    def policy(self, name: str, parameters: Mapping[str, float]) -> LearnedPolicy:
        """Return the policy called `learned` or `learned@VERSION`."""


def known_policies() -> tuple[str, ...]:
    """Return the names that a request may use, sorted; nothing of another package is imported for it.

    `learned` stands for `learned@VERSION`, too.
    """
    return tuple(sorted({*_POLICIES, LEARNED, *own_policies().named}))


def own_policies() -> Offers:
    """Return what installed packages offer as policies, and what of it has a name that cannot be used."""
    return installed(POLICY_ENTRY_POINTS, frozenset({*_POLICIES, LEARNED}))


def make_policy(
    name: str, parameters: Mapping[str, float] | None = None, *, learned: LearnedVersions | None = None
) -> Policy:
    """Return the policy called `name` with a request's parameters; those of the risk gate are looked at and left out.

    `learned` knows the versions of the log.

    Raises:
        UnknownPolicy: there is no such policy; the message lists those there are.
        BadPolicyParameters: the policy exists but not with these parameters.
        NoLearnedPolicy: no learned version decides, or nobody was given who knows.
        UsageError: it is another package's and cannot be used, or there is no such learned version.
    """
    RiskLimits.from_parameters(parameters or {})
    own = without_limits(parameters or {})
    if is_learned(name):
        if learned is not None:
            return learned.policy(name, own)
        raise NoLearnedPolicy(
            f"policy {name!r} cannot be had here",
            cause="its weights are in the log, and no log is open",
            next_step="ask where the log is open",
        )
    make = _POLICIES.get(name)
    if make is None:
        point = own_policies().named.get(name)
        if point is not None:
            return own_policy(point, own)
        raise UnknownPolicy(
            f"there is no policy {name!r}",
            cause=f"known policies: {', '.join(known_policies())}",
            next_step="choose one of them",
        )
    return make(own)


def check_policy(
    name: str, parameters: Mapping[str, float] | None = None, *, learned: LearnedVersions | None = None
) -> None:
    """Raise what `make_policy` raises, before a request is published that no controller could serve.

    Of a learned policy nothing but the parameters is looked at where nobody is given who knows the versions.
    """
    if is_learned(name) and learned is None:
        RiskLimits.from_parameters(parameters or {})
        Drawing.from_parameters(without_limits(parameters or {}))
    else:
        make_policy(name, parameters, learned=learned)
