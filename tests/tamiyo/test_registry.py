"""Policies by name: what exists, what is refused, and how it is said."""

from __future__ import annotations

import math

import pytest

from esper.core.errors import UsageError
from esper.tamiyo import (
    BadPolicyParameters,
    FixedPolicy,
    HeuristicConfig,
    HeuristicPolicy,
    NoLearnedPolicy,
    NoopPolicy,
    UnknownPolicy,
    check_policy,
    known_policies,
    make_policy,
)


def test_known_policies_are_those_that_can_be_made() -> None:
    """Every listed name makes a policy of that name, and the list is what the command line shows."""
    assert known_policies() == ("fixed", "heuristic", "learned", "noop", "random")
    made = [name for name in known_policies() if name != "learned"]
    assert [make_policy(name).name for name in made] == made


@pytest.mark.parametrize("name", ["learned", "learned@3"])
def test_a_learned_policy_needs_the_log(name: str) -> None:
    """Its versions are in the log: without one only its parameters can be looked at."""
    with pytest.raises(NoLearnedPolicy, match="its weights are in the log") as caught:
        make_policy(name)
    assert caught.value.exit_code == 3
    check_policy(name, {"explore": 0.1, "temperature": 0.5})
    with pytest.raises(BadPolicyParameters, match="no parameter 'act'"):
        check_policy(name, {"act": 0.1})


def test_an_unknown_policy_is_a_usage_error_that_lists_the_known_ones() -> None:
    """The message must let a person correct the request without reading code."""
    with pytest.raises(UnknownPolicy) as caught:
        check_policy("learnt")
    assert isinstance(caught.value, UsageError)
    assert caught.value.exit_code == 2
    assert "'learnt'" in str(caught.value)
    assert all(name in str(caught.value) for name in known_policies())


@pytest.mark.parametrize(
    ("policy", "parameters", "named"),
    [
        ("noop", {"speed": 1.0}, "speed"),
        ("heuristic", {"patience": 3.0}, "patience"),
        ("heuristic", {"training_fraction": 1.5}, "training_fraction"),
        ("heuristic", {"training_fraction": math.nan}, "training_fraction"),
        ("heuristic", {"seeds_kept_max": 0.0}, "seeds_kept_max"),
        ("heuristic", {"seeds_kept_max": 1.5}, "seeds_kept_max"),
        ("fixed", {"germinat": 3.0}, "germinat"),
        ("fixed", {"germinate": -1.0}, "germinate"),
        ("fixed", {"germinate": math.inf}, "germinate"),
        ("fixed", {"blueprint": 51.0}, "blueprint"),
        ("fixed", {"parameter.depth": math.nan}, "parameter.depth"),
        ("random", {"act": 0.0}, "act"),
        ("random", {"act": 1.5}, "act"),
        ("random", {"act": math.nan}, "act"),
        ("random", {"seed": 1.0}, "seed"),
    ],
)
def test_bad_parameters_are_refused_by_name(policy: str, parameters: dict[str, float], named: str) -> None:
    """A parameter that is unknown or out of range must not be dropped or clamped in silence."""
    with pytest.raises(BadPolicyParameters, match=named):
        check_policy(policy, parameters)


def test_parameters_reach_the_configuration() -> None:
    """What a request asks for must be what the policy is made with, and only that."""
    heuristic = make_policy("heuristic", {"training_fraction": 0.05, "probation_epochs": 3.0})
    assert isinstance(heuristic, HeuristicPolicy)
    assert heuristic.config == HeuristicConfig(training_fraction=0.05, probation_epochs=3)
    fixed = make_policy("fixed", {"germinate": 3.0, "blueprint": 9.0, "parameter.depth": 4.0})
    assert isinstance(fixed, FixedPolicy)
    assert fixed.schedule.germinate == 3
    assert [option.label for option in fixed.options] == ["BP009(depth=4)"]


def test_the_digest_names_the_configuration() -> None:
    """Equal configurations must have equal digests, different ones (of any policy) different digests."""
    policies = [
        NoopPolicy(),
        make_policy("fixed"),
        make_policy("fixed", {"germinate": 3.0}),
        make_policy("fixed", {"blueprint": 9.0}),
        make_policy("heuristic"),
        make_policy("heuristic", {"keep_gain_min": 0.01}),
        make_policy("random"),
        make_policy("random", {"act": 0.5}),
    ]
    digests = [policy.digest for policy in policies]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)
    assert make_policy("heuristic", {"probation_epochs": 1.0}).digest == make_policy("heuristic").digest
