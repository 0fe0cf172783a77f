"""What blueprints build, in every layout: distinct, silent at birth, differentiable, causal in sequences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from esper.core.errors import IntegrityError, UsageError
from esper.core.kernel import (
    build_module,
    canonical_json,
    kernel_id,
    load_kernel,
    make_artifact,
    make_request,
    verify_artifact,
)
from esper.karn import KarnCatalog, catalogue
from tests.karn.bodies import ALL, CASES, HARMFUL, LAYOUTS, SHAPES, TAME, batch, built, opened, reshaped
from tests.karn.contract import highest, lowest

every_case = pytest.mark.parametrize(("blueprint_id", "layout"), CASES)
every_tame_case = pytest.mark.parametrize(("blueprint_id", "layout"), TAME)

#: Shapes of one feature, of one position, of primes, and of more features than positions.
ODD_SHAPES = {
    "vector": [(1,), (2,), (13,)],
    "sequence": [(1, 1), (1, 5), (11, 1), (7, 13)],
    "map1d": [(1, 1), (5, 1), (1, 11), (13, 7)],
    "map2d": [(1, 1, 1), (5, 1, 7), (1, 7, 1), (7, 3, 5)],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blueprints_really_differ(layout: str) -> None:
    """No two blueprints are one module under two names: compare words of all, and the outputs of all tame ones."""
    names = [name for name in ALL if layout in catalogue()[name].layouts]
    # In training mode, as batch normalisation of fresh statistics is the identity in evaluation.
    seeds = {name: opened(built(name, layout, out_features=8)) for name in names}
    words = {name: canonical_json([_words(seed.plan.body), _words(seed.plan.end)]) for name, seed in seeds.items()}
    assert len(set(words.values())) == len(names)
    outputs = {name: seed(batch(layout)) for name, seed in seeds.items() if name not in HARMFUL}
    for one, other in itertools.combinations(outputs, 2):
        assert not torch.allclose(outputs[one], outputs[other], atol=1e-2), (one, other)


def _words(node: Any) -> dict[str, object]:
    return {"op": node.op, **node.attributes, "children": [_words(child) for child in node.children]}


@every_case
def test_every_size_builds_and_is_silent(blueprint_id: str, layout: str) -> None:
    """At both bounds, for odd shapes, and to other features: a new seed keeps its shape and yields exactly zero."""
    for shape, parameters in itertools.product(ODD_SHAPES[layout], (lowest(blueprint_id), highest(blueprint_id))):
        for features in (None, 1, 10):
            seed = built(blueprint_id, layout, shape=shape, out_features=features, parameters=parameters)
            out = seed(batch(shape=shape, rows=2))
            assert out.shape == (2, *(shape if features is None else reshaped(layout, shape, features)))
            assert torch.count_nonzero(out) == 0


@every_case
def test_no_effect_before_training(blueprint_id: str, layout: str) -> None:
    """A new seed yields zero whatever it is fed, in training and in evaluation: large values, zeros, an empty batch."""
    seed = built(blueprint_id, layout)
    for x in (batch(layout), 1e4 * batch(layout), torch.zeros(2, *SHAPES[layout]), batch(layout)[:0]):
        for training in (True, False) if len(x) else (False,):
            out = seed.train(training)(x)
            assert out.shape == x.shape
            assert torch.count_nonzero(out) == 0


@every_tame_case
def test_first_step_moves_the_end_and_the_second_the_body(blueprint_id: str, layout: str) -> None:
    """Gradients reach every parameter once the end is off zero: take one step, then look at all gradients."""
    seed = built(blueprint_id, layout)
    target = torch.randn(7, *SHAPES[layout], generator=torch.Generator().manual_seed(4))
    moved = []
    for _ in range(2):
        seed.zero_grad()
        nn.functional.mse_loss(seed(batch(layout)), target).backward()
        gradients = {name: cast("torch.Tensor", each.grad) for name, each in seed.named_parameters()}
        assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
        moved.append({name for name, gradient in gradients.items() if gradient.abs().max() > 0})
        with torch.no_grad():
            for parameter in seed.parameters():
                parameter -= 0.1 * cast("torch.Tensor", parameter.grad)
    end = {name for name, _ in seed.named_parameters() if name.startswith("end.")}
    assert moved[0] == end
    unmoved = {name for name, _ in seed.named_parameters()} - moved[1]
    # An expert that no position chose learns nothing, by its meaning.
    assert all(blueprint_id == "BP036" and name.startswith("body.") for name in unmoved)


@every_tame_case
def test_gradients_are_right(blueprint_id: str, layout: str) -> None:
    """Autograd agrees with finite differences, for inputs and parameters alike: gradcheck in double precision."""
    shape = {"vector": (4,), "sequence": (3, 4), "map1d": (4, 3), "map2d": (4, 3, 2)}[layout]
    seed = opened(built(blueprint_id, layout, shape=shape, out_features=2)).double()
    x = batch(shape=shape, rows=3).double().requires_grad_()
    names = [name for name, _ in seed.named_parameters()]

    def evaluate(inputs: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return cast("torch.Tensor", torch.func.functional_call(seed, dict(zip(names, values, strict=True)), (inputs,)))

    values = [parameter.detach().clone().requires_grad_() for parameter in seed.parameters()]
    assert torch.autograd.gradcheck(evaluate, (x, *values), fast_mode=True)


CAUSAL = [name for name, layout in TAME if layout == "sequence"]


@pytest.mark.parametrize("blueprint_id", CAUSAL)
@pytest.mark.parametrize("bound", [lowest, highest])
def test_sequences_never_look_ahead(blueprint_id: str, bound: Any) -> None:
    """In a sequence nothing leaks backward: change one position, and no output before it moves by a single bit."""
    seed = opened(built(blueprint_id, "sequence", shape=(11, 6), parameters=bound(blueprint_id))).double().eval()
    x = batch(shape=(11, 6), rows=2).double()
    with torch.no_grad():
        before, seen = seed(x), False
        for place in range(11):
            changed = x.clone()
            changed[:, place] += 1.0 + torch.arange(6)
            after = seed(changed)
            assert torch.equal(after[:, :place], before[:, :place])
            seen = seen or not torch.equal(after, before)
    assert seen


#: Larger shapes, at which products of matrices outweigh those of single numbers.
WIDE = {"vector": (96,), "sequence": (24, 48), "map1d": (48, 24), "map2d": (48, 9, 8)}


@every_tame_case
@pytest.mark.parametrize("bound", [lowest, highest])
def test_work_is_counted(blueprint_id: str, layout: str, bound: Any) -> None:
    """The plan foretells the work: torch's own counter, which sees matrices only, finds all but what is not one."""
    seed = built(blueprint_id, layout, shape=WIDE[layout], parameters=bound(blueprint_id)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        seed(batch(shape=WIDE[layout], rows=2))
    counted = counter.get_total_flops() / 2 / 2
    planned = seed.plan.multiply_adds_per_sample
    # What is no matrix: a few products for each number that a word takes or yields, and shifted copies.
    single = sum(4 * max(math.prod(node.in_shape), math.prod(node.out_shape)) for node in _nodes(seed.plan.body))
    assert counted <= planned <= 1.2 * counted + single


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for child in node.children:
        yield from _nodes(child)


@every_case
def test_artifact_brings_it_back(blueprint_id: str, layout: str) -> None:
    """From blueprint to bytes and back: every tensor, buffers included, is what Karn builds, the same bytes twice."""
    request = make_request(blueprint_id, lowest(blueprint_id), layout=layout, in_shape=SHAPES[layout])
    spec = KarnCatalog().build_spec(request)
    artifact = make_artifact(request, spec)
    assert (artifact.spec, artifact.weights) == (
        make_artifact(request, spec).spec,
        make_artifact(request, spec).weights,
    )
    assert verify_artifact(artifact).plan.layout == layout
    drawn = built(blueprint_id, layout, seed=int(kernel_id(request)[:16], 16) >> 1).state_dict()
    loaded = load_kernel(artifact, quarantine=blueprint_id in HARMFUL)
    assert loaded.state_dict().keys() == drawn.keys()
    assert all(torch.equal(value, drawn[name]) for name, value in loaded.state_dict().items())
    assert artifact.manifest.parameters == sum(parameter.numel() for parameter in loaded.parameters())


@pytest.mark.parametrize("blueprint_id", sorted(HARMFUL))
def test_harmful_kernels_are_for_quarantine(blueprint_id: str) -> None:
    """What is HIGH_RISK is neither built nor loaded unless the caller says where: try both without a word."""
    request = make_request(blueprint_id, lowest(blueprint_id), layout="vector", in_shape=[6])
    spec = KarnCatalog().build_spec(request)
    with pytest.raises(IntegrityError, match="quarantine"):
        build_module(spec)
    with pytest.raises(IntegrityError, match="quarantine"):
        load_kernel(make_artifact(request, spec))


def test_global_randomness_is_left_alone() -> None:
    """Building draws from the given generator only: build all, and compare the global state before and after."""
    before = torch.get_rng_state()
    for blueprint_id, layout in CASES:
        built(blueprint_id, layout)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("layout", "out_shape"), [("sequence", (8, 6)), ("map1d", (6, 8)), ("map2d", (6, 4, 5))])
def test_positions_are_kept(layout: str, out_shape: tuple[int, ...]) -> None:
    """A seed may change the number of features, never that of positions: ask for others."""
    with pytest.raises(UsageError, match="keeps positions"):
        catalogue()["BP005"].spec(layout=layout, shape=SHAPES[layout], out_shape=out_shape, parameters={})


@every_tame_case
def test_seeds_learn(blueprint_id: str, layout: str) -> None:
    """Each blueprint can fit something: after 40 steps of Adam the loss on a smooth target has fallen."""
    seed = built(blueprint_id, layout)
    x = batch(layout, 32)
    axis = 1 if layout in ("map1d", "map2d") else -1
    target = 0.5 * x + 0.5 * x.roll(1, axis).relu()
    optimiser = torch.optim.Adam(seed.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = nn.functional.mse_loss(seed(x), target)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]
