"""Policies of other packages, found by the entry point group `esper.policies` and kept to what a policy promises.

A policy that fails while a run goes on changes nothing, and its decision says why: the run must not pay for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from random import Random
from typing import Final

from esper.core.errors import EsperError
from esper.core.plugins import load, unusable
from esper.core.text import in_words
from esper.tamiyo._actions import Action, ActionSpace, BlueprintOption, Head
from esper.tamiyo._observation import Observation
from esper.tamiyo._policy import DrawingPolicy, Policy, Proposal, draws

POLICY_ENTRY_POINTS: Final = "esper.policies"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class OwnPolicy:
    """Passes on what another package's policy proposes, or "continue" with the reason where that cannot be used."""

    def __init__(self, point: EntryPoint, policy: Policy) -> None:
        self._policy = policy
        self._point = point

    @property
    def name(self) -> str:
        """Name that requests use: the entry point's."""
        return self._point.name

    @property
    def version(self) -> str:
        """Version that the policy gives itself."""
        return self._policy.version

    @property
    def digest(self) -> str:
        """SHA-256 that the policy gives its configuration."""
        return self._policy.digest

    @property
    def options(self) -> tuple[BlueprintOption, ...]:
        """Blueprints that the policy may germinate."""
        return self._policy.options

    def propose(self, observation: Observation, space: ActionSpace) -> Proposal:
        """Return the policy's proposal, or "continue" where it raises or proposes what the space does not allow."""
        return self._kept_to_promise(space, lambda: self._policy.propose(observation, space))

    def _kept_to_promise(self, space: ActionSpace, ask: Callable[[], Proposal]) -> Proposal:
        try:
            proposal = ask()
            problem = _problem(proposal, space)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - somebody else's policy may raise anything; the run goes on
            return self._nothing(space, f"it failed with {in_words(error)}")
        return self._nothing(space, problem) if problem else proposal

    def _nothing(self, space: ActionSpace, cause: str) -> Proposal:
        action = Action()
        return Proposal(action, space.certain_heads(action), (f"nothing is changed: policy {self.name!r}: {cause}",))


class OwnDrawingPolicy(OwnPolicy):
    """The same for a policy that draws its action."""

    def __init__(self, point: EntryPoint, policy: DrawingPolicy) -> None:
        super().__init__(point, policy)
        self._drawing = policy

    def draw(self, observation: Observation, space: ActionSpace, stream: Random) -> Proposal:
        """Return what the policy draws, or "continue" where it raises or draws what the space does not allow."""
        return self._kept_to_promise(space, lambda: self._drawing.draw(observation, space, stream))


def own_policy(point: EntryPoint, parameters: Mapping[str, float]) -> OwnPolicy:
    """Return the policy that an entry point's function makes of a request's parameters.

    Raises:
        UsageError: the entry point cannot be used, or what it makes keeps no policy's promises. What the function
            raises as an EsperError, `BadPolicyParameters` above all, is passed on as it is.
    """
    make = load("policy", point)
    if not callable(make):
        raise unusable("policy", point, f"it names a {type(make).__name__}, not a function of the parameters")
    try:
        policy = make(dict(parameters))
        problem = _unkept(policy, name=point.name)
    except EsperError:
        raise
    except (Exception, SystemExit) as error:  # somebody else's function may raise anything
        raise unusable("policy", point, f"its function failed with {in_words(error)}") from error
    if problem:
        raise unusable("policy", point, f"its function returned a {type(policy).__name__} {problem}")
    return OwnDrawingPolicy(point, policy) if draws(policy) else OwnPolicy(point, policy)


def _unkept(policy: object, *, name: str) -> str:
    """Return which promise of `Policy` the object does not keep; nothing when it keeps all that can be looked at."""
    if not callable(getattr(policy, "propose", None)):
        return "without a method propose"
    if getattr(policy, "name", None) != name:
        return f"whose name is {getattr(policy, 'name', None)!r}"
    version, digest = getattr(policy, "version", None), getattr(policy, "digest", None)
    if not isinstance(version, str) or not version:
        return f"whose version is {version!r}"
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        return f"whose digest is {digest!r}, not 64 hexadecimal digits"
    options = getattr(policy, "options", None)
    if not isinstance(options, tuple) or not all(isinstance(option, BlueprintOption) for option in options):
        return "whose options are no tuple of BlueprintOption"
    return ""


def _problem(proposal: object, space: ActionSpace) -> str:
    if not isinstance(proposal, Proposal) or not isinstance(proposal.action, Action):
        return f"it proposed a {type(proposal).__name__}"
    if not space.allows(proposal.action):
        return f"it proposed {proposal.action.operation!r} where that is not legal"
    if not all(isinstance(head, Head) and _is_sound(head) for head in proposal.heads):
        return "a head of its distribution is not one"
    if not all(isinstance(reason, str) for reason in proposal.reasons):
        return "a reason that it gives is no text"
    return ""


def _is_sound(head: Head) -> bool:
    """Whether the head is a distribution over its actions that can have taken what it says it took."""
    count = len(head.actions)
    return (
        len(head.mask) == len(head.probabilities) == count
        and 0 <= head.chosen < count
        and head.mask[head.chosen]
        and head.probabilities[head.chosen] > 0.0
        and all(0.0 <= share <= 1.0 for share in head.probabilities)
        and abs(sum(head.probabilities) - 1.0) <= _SUM_ERROR_MAX
    )


#: Probabilities that a softmax in single precision gives add up to 1 only so far.
_SUM_ERROR_MAX: Final = 1e-4
