"""The policy that changes nothing: the static control of every comparison."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from esper.tamiyo._actions import Action, ActionSpace, BlueprintOption
from esper.tamiyo._observation import Observation
from esper.tamiyo._policy import Proposal, canonical_digest, unknown_parameter


class NoopPolicy:
    """Answer every packet with "continue".

    `reasons` says why it stands in for another policy, where it does.
    """

    name = "noop"
    version = "noop-1"
    options: tuple[BlueprintOption, ...] = ()

    def __init__(self, *, reasons: tuple[str, ...] = ("noop never changes anything",)) -> None:
        self._reasons = reasons

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, float]) -> NoopPolicy:
        """Return the policy; it takes no parameters.

        Raises:
            BadPolicyParameters: one was given.
        """
        for name in parameters:
            raise unknown_parameter(cls.name, name, ())
        return cls()

    @cached_property
    def digest(self) -> str:
        return canonical_digest(self.name, self.version, {})

    def propose(self, observation: Observation, space: ActionSpace) -> Proposal:
        """Return "continue", whatever is seen."""
        del observation
        action = Action()
        return Proposal(action, space.certain_heads(action), self._reasons)
