"""The policies by name: the shipped ones, and those that installed packages offer (`esper.policies`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from esper.core.plugins import Offers, installed
from esper.tamiyo._fixed import FixedPolicy
from esper.tamiyo._heuristic import HeuristicPolicy
from esper.tamiyo._noop import NoopPolicy
from esper.tamiyo._own import POLICY_ENTRY_POINTS, own_policy
from esper.tamiyo._policy import Policy, UnknownPolicy
from esper.tamiyo._random import RandomPolicy
from esper.tamiyo.risk import RiskLimits, without_limits

_POLICIES: Mapping[str, Callable[[Mapping[str, float]], Policy]] = {
    FixedPolicy.name: FixedPolicy.from_parameters,
    HeuristicPolicy.name: HeuristicPolicy.from_parameters,
    NoopPolicy.name: NoopPolicy.from_parameters,
    RandomPolicy.name: RandomPolicy.from_parameters,
}


def known_policies() -> tuple[str, ...]:
    """Return the names that a request may use, sorted; nothing of another package is imported for it."""
    return tuple(sorted({*_POLICIES, *own_policies().named}))


def own_policies() -> Offers:
    """Return what installed packages offer as policies, and what of it has a name that cannot be used."""
    return installed(POLICY_ENTRY_POINTS, frozenset(_POLICIES))


def make_policy(name: str, parameters: Mapping[str, float] | None = None) -> Policy:
    """Return the policy called `name` with a request's parameters; those of the risk gate are looked at and left out.

    Raises:
        UnknownPolicy: there is no such policy; the message lists those there are.
        BadPolicyParameters: the policy exists but not with these parameters.
        UsageError: it is another package's and cannot be used.
    """
    RiskLimits.from_parameters(parameters or {})
    own = without_limits(parameters or {})
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


def check_policy(name: str, parameters: Mapping[str, float] | None = None) -> None:
    """Raise what `make_policy` raises, before a request is published that no controller could serve."""
    make_policy(name, parameters)
