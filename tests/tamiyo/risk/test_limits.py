"""The gate's limits: set by a request, refused by name, and no business of a policy."""

from __future__ import annotations

import math

import pytest

from esper.tamiyo import BadPolicyParameters, check_policy, make_policy
from esper.tamiyo.risk import RiskLimits


def test_a_request_sets_limits_beside_its_policy() -> None:
    """Limits and a policy's own parameters share one map: each reaches whom it is for, and no other."""
    given = {"act": 0.5, "risk.loss_rise_max": 0.3, "risk.pause_epochs": 4.0}
    assert RiskLimits.from_parameters(given) == RiskLimits(loss_rise_max=0.3, pause_epochs=4)
    assert make_policy("random", given).digest == make_policy("random", {"act": 0.5}).digest
    assert RiskLimits.from_parameters({"act": 0.5}) == RiskLimits()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("risk.loss_rise", 0.1),
        ("risk.", 1.0),
        ("risk.loss_rise_max", -0.1),
        ("risk.loss_rise_max", math.nan),
        ("risk.loss_rise_max", math.inf),
        ("risk.pause_epochs", 1.5),
        ("risk.conservative", 2.0),
        ("risk.conservative", 0.5),
        ("risk.conservative_epochs", 1e10),
    ],
)
def test_what_is_no_limit_is_refused_by_name(name: str, value: float) -> None:
    """A limit that nobody reads would be a promise unkept: each is refused before a run, by its name."""
    with pytest.raises(BadPolicyParameters, match=f"{name}"):
        check_policy("noop", {name: value})
    assert RiskLimits.of({name: value}) == RiskLimits(), "a run that came with it all the same has the defaults"
