"""Policies of other packages: offered by entry point, checked, and harmless to a run when they fail."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint
from random import Random
from types import ModuleType
from typing import Any

import pytest

from esper.core.errors import UsageError
from esper.core.plugins import Offers, offers
from esper.core.rng import stream_of
from esper.leyline import messages as ly
from esper.tamiyo import (
    Action,
    ActionSpace,
    BadPolicyParameters,
    BlueprintOption,
    Observation,
    Proposal,
    RunState,
    UnknownPolicy,
    decide,
    fold,
    known_policies,
    make_policy,
)
from tests.tamiyo.scripted_run import ScriptedRun

RUN = "run-own"
OPTION = BlueprintOption("BP009", (("depth", 1.0),))


class Eager:
    """Germinates wherever it may."""

    name = "eager"
    version = "eager-1"
    digest = "ab" * 32
    options: tuple[BlueprintOption, ...] = (OPTION,)

    def __init__(self, parameters: Mapping[str, float]) -> None:
        for name in parameters:
            raise BadPolicyParameters(f"policy 'eager' has no parameter {name!r}")

    def propose(self, observation: Observation, space: ActionSpace) -> Proposal:
        """Return a germination in the first slot that is free."""
        action = Action("germinate", min(space.targets["germinate"]), OPTION)
        return Proposal(action, space.certain_heads(action), ("because it may",))


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a module that the entry point `eager = acme_policies:make` names, and offer that."""
    module = ModuleType("acme_policies")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = offers([EntryPoint("eager", "acme_policies:make", "esper.policies")], {"noop"})

    def installed(_group: str, _reserved: frozenset[str]) -> Offers:
        return found

    monkeypatch.setattr("esper.tamiyo._registry.installed", installed)
    return module


def decided(policy: str) -> tuple[ly.DecisionMade, ly.AdaptationCommand]:
    """Return what is decided about the first packet of a run under the policy."""
    packet = ScriptedRun(RUN, epochs=10).next_packet()
    packet.policy = policy
    state = fold(RunState(RUN), packet)
    decision = decide(state, state.packets[1])
    return decision.made, decision.command


def test_an_installed_policy_decides_under_its_own_name(plugin: ModuleType) -> None:
    """Goal: an entry point is all it takes. Method: list, make and ask it for a decision."""
    plugin.make = Eager
    assert known_policies() == ("eager", "fixed", "heuristic", "learned", "noop", "random")
    made, command = decided("eager")
    assert (made.policy, made.policy_version, made.policy_digest) == ("eager", "eager-1", "ab" * 32)
    assert list(made.reasons) == ["because it may"]
    assert command.seed_operation.operation == ly.SEED_OP_GERMINATE
    assert command.seed_operation.blueprint_id == "BP009"
    with pytest.raises(BadPolicyParameters, match="no parameter 'speed'"):
        make_policy("eager", {"speed": 1.0})
    with pytest.raises(UnknownPolicy, match="known policies: eager, fixed, heuristic, learned, noop"):
        make_policy("lazy")


def _without(name: str) -> Callable[[Mapping[str, float]], object]:
    return lambda _: type("Other", (Eager,), {name: None})({})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (7, "it names a int, not a function of the parameters"),
        (lambda _: 1 / 0, "its function failed with ZeroDivisionError: division by zero"),
        (lambda _: sys.exit(3), "its function failed with SystemExit: 3"),
        (lambda _: None, "returned a NoneType without a method propose"),
        (_without("propose"), "returned a Other without a method propose"),
        (_without("name"), "returned a Other whose name is None"),
        (_without("version"), "whose version is None"),
        (_without("digest"), "whose digest is None, not 64 hexadecimal digits"),
        (_without("options"), "whose options are no tuple of BlueprintOption"),
    ],
)
def test_what_is_no_policy_is_refused_before_a_run(plugin: ModuleType, make: object, words: str) -> None:
    """Goal: a broken package is named with its cause. Method: break each promise of a policy."""
    plugin.make = make
    with pytest.raises(UsageError, match=f"the policy 'eager' of an unnamed package cannot be used: .*{words}"):
        make_policy("eager")


def _changed(**changes: Any) -> Callable[[Eager, Observation, ActionSpace], Proposal]:
    return lambda self, observation, space: replace(Eager.propose(self, observation, space), **changes)


def _head_of(**changes: Any) -> Callable[[Eager, Observation, ActionSpace], Proposal]:
    def propose(self: Eager, observation: Observation, space: ActionSpace) -> Proposal:
        proposal = Eager.propose(self, observation, space)
        return replace(proposal, heads=(replace(proposal.heads[0], **changes), *proposal.heads[1:]))

    return propose


def _raises(_self: Eager, _observation: Observation, _space: ActionSpace) -> Proposal:
    raise ZeroDivisionError("a bug of the plugin")


def _leaves(_self: Eager, _observation: Observation, _space: ActionSpace) -> Proposal:
    sys.exit(3)


@pytest.mark.parametrize(
    ("propose", "words"),
    [
        (_raises, "it failed with ZeroDivisionError: a bug of the plugin"),
        (_leaves, "it failed with SystemExit: 3"),
        (lambda *_: None, "it proposed a NoneType"),
        (_changed(action="grow"), "it proposed a Proposal"),
        (_changed(action=Action("cull", "body")), "it proposed 'cull' where that is not legal"),
        (_changed(heads=(1,)), "a head of its distribution is not one"),
        (_changed(heads=None), "it failed with TypeError"),
        (_changed(reasons=(1,)), "a reason that it gives is no text"),
        (_head_of(probabilities=(1.0,)), "a head of its distribution is not one"),
        (_head_of(probabilities=(math.nan,) * 7), "a head of its distribution is not one"),
        (_head_of(probabilities=(0.5,) * 7), "a head of its distribution is not one"),
        (_head_of(chosen=99), "a head of its distribution is not one"),
        (_head_of(chosen="2"), "it failed with TypeError"),
        (_head_of(mask=(False,) * 7), "a head of its distribution is not one"),
    ],
)
def test_a_policy_that_fails_costs_its_run_nothing(
    plugin: ModuleType, propose: Callable[..., object], words: str
) -> None:
    """Goal: no bug of a package stops Tamiyo or a run. Method: break a proposal in each way; the decision says so."""
    plugin.make = type("Broken", (Eager,), {"propose": propose})
    made, command = decided("eager")
    assert command.command_type == ly.COMMAND_CONTINUE
    assert (made.policy, made.policy_digest) == ("eager", "ab" * 32)
    (reason,) = made.reasons
    assert reason.startswith("nothing is changed: policy 'eager': ")
    assert words in reason


def test_a_policy_that_draws_is_given_its_stream(plugin: ModuleType) -> None:
    """Goal: a package's policy may draw, and its run repeats. Method: one that says what it drew, asked twice; and one
    that draws nothing of use, which changes nothing."""

    def draw(self: Eager, observation: Observation, space: ActionSpace, stream: Random) -> Proposal:
        return replace(self.propose(observation, space), reasons=(f"drew {stream.random()}",))

    plugin.make = type("Drawing", (Eager,), {"draw": draw})
    (made, command), (again, _) = decided("eager"), decided("eager")
    assert command.command_type == ly.COMMAND_SEED
    expected = f"drew {stream_of(made.rng_seed).random()}"
    assert list(made.reasons) == list(again.reasons) == [expected]
    plugin.make = type("Broken", (Eager,), {"draw": lambda *_: None})
    made, command = decided("eager")
    assert command.command_type == ly.COMMAND_CONTINUE
    assert "it proposed a NoneType" in made.reasons[0]


def test_a_policy_that_is_gone_is_stood_in_for(plugin: ModuleType) -> None:
    """Goal: a member without the package answers all the same. Method: the module fails to import there."""
    made, command = decided("eager")
    assert command.command_type == ly.COMMAND_CONTINUE
    assert made.policy == "noop"
    assert "the policy 'eager' of an unnamed package cannot be used" in made.reasons[0]
    del plugin
