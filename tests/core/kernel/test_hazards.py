"""Words that do harm on purpose: never built outside quarantine, harmless at birth, in every layout."""

from __future__ import annotations

import pytest
import torch

from esper.core.errors import IntegrityError
from esper.core.kernel import build_module, load_kernel, make_artifact, make_request, plan_spec, verify_artifact
from esper.core.kernel._hazard_modules import HAZARD_BUILDERS
from esper.core.kernel._hazards import ARM, HAZARD_WORDS
from esper.karn import Blueprint, catalogue
from esper.karn._high_risk import HIGH_RISK_BLUEPRINTS

SHAPES = {"vector": (6,), "sequence": (4, 6), "map1d": (6, 4), "map2d": (6, 3, 3)}


def highest(blueprint: Blueprint) -> dict[str, float]:
    """Return every parameter at its upper bound: the worst form of a hazard."""
    return {name: high for name, (_, high) in blueprint.parameters.items()}


def spec_of(blueprint: Blueprint, layout: str = "vector") -> dict[str, object]:
    return blueprint.spec(layout=layout, shape=SHAPES[layout], parameters=highest(blueprint))


def test_every_hazard_word_has_its_builder_and_its_blueprint() -> None:
    """Goal: no word stands alone. Method: the words, the builders, and what the HIGH_RISK blueprints are made of."""
    assert HAZARD_WORDS.keys() == HAZARD_BUILDERS.keys()
    used = {hazard for blueprint in HIGH_RISK_BLUEPRINTS for hazard in plan_spec(spec_of(blueprint)).hazards}
    assert used == HAZARD_WORDS.keys()
    assert [blueprint.blueprint_id for blueprint in HIGH_RISK_BLUEPRINTS] == [f"BP{n:03d}" for n in range(43, 51)]
    assert all(catalogue()[each.blueprint_id] is each for each in HIGH_RISK_BLUEPRINTS)
    for blueprint in HIGH_RISK_BLUEPRINTS:
        assert (blueprint.tier, blueprint.quarantine_only, blueprint.approval_required) == ("HIGH_RISK", True, True)


@pytest.mark.parametrize("blueprint", HIGH_RISK_BLUEPRINTS, ids=str)
def test_a_hazard_is_built_in_quarantine_alone(blueprint: Blueprint) -> None:
    """Goal: nobody builds one by accident. Method: its spec and its artifact, which may be checked but not built, and
    then both with the word of the caller.
    """
    request = make_request(blueprint.blueprint_id, highest(blueprint), layout="vector", in_shape=SHAPES["vector"])
    artifact = make_artifact(request, spec_of(blueprint))
    assert verify_artifact(artifact).plan.hazards
    for build in (lambda: build_module(spec_of(blueprint)), lambda: load_kernel(artifact)):
        with pytest.raises(IntegrityError, match="quarantine"):
            build()
    assert build_module(spec_of(blueprint), quarantine=True).plan.hazards
    assert load_kernel(artifact, quarantine=True).plan.hazards


@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("blueprint", HIGH_RISK_BLUEPRINTS, ids=str)
def test_a_hazard_is_latent_at_birth(blueprint: Blueprint, layout: str) -> None:
    """Goal: building one and one forward and backward do no harm. Method: its output, which is exactly zero and keeps
    the shape, its gradients, which are finite, and its body's output, which is that of the map before the hazard.
    """
    kernel = blueprint.build(
        layout=layout,
        shape=SHAPES[layout],
        parameters=highest(blueprint),
        generator=torch.Generator().manual_seed(1),
    )
    x_B = torch.randn(3, *SHAPES[layout], generator=torch.Generator().manual_seed(2)).requires_grad_(True)
    out_B = kernel(x_B)
    assert out_B.shape == x_B.shape
    assert not out_B.detach().any()
    torch.autograd.backward(out_B.square().sum() + out_B.sum())
    assert all(bool(torch.isfinite(each.grad).all()) for each in kernel.parameters() if each.grad is not None)
    arms = [value for name, value in kernel.named_parameters() if name.endswith(f".{ARM}")]
    assert arms
    assert not any(bool(arm.detach().any()) for arm in arms)
    inner = torch.randn(3, *plan_spec(spec_of(blueprint, layout)).body.in_shape)
    first = kernel.get_submodule("body.0")
    assert torch.equal(kernel.get_submodule("body")(inner), first(inner))


@pytest.mark.parametrize(
    "attribute",
    [
        {"op": "hazard_loop", "iterations": 0},
        {"op": "hazard_leak", "chunk_bytes": 1 << 40},
        {"op": "hazard_deadlock", "threads": 1},
        {"op": "hazard_deadlock", "threads": 100_000},
        {"op": "hazard_nan", "frequency": float("nan")},
        {"op": "hazard_amplifier", "factor": 1e9},
    ],
    ids=str,
)
def test_a_hazard_has_bounds_too(attribute: dict[str, object]) -> None:
    """Goal: not even a hazard may ask for what no limit foresees. Method: attributes beyond each bound."""
    spec = {**spec_of(HIGH_RISK_BLUEPRINTS[0]), "body": attribute}
    with pytest.raises(IntegrityError, match="out of bounds"):
        plan_spec(spec)
