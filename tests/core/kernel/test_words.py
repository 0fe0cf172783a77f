"""The words of positions, attention and choice: each is held against torch's own operation, or against its formula."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.core.errors import IntegrityError
from esper.core.kernel import CHANNELS_FIRST, build_module, init_module, plan_spec
from tests.core.kernel.examples import Tree, linear, sequential

SHAPES = {"vector": [6], "sequence": [9, 6], "map1d": [6, 9], "map2d": [6, 5, 4]}


def whole(layout: str, body: Tree, out: int = 6, *, shape: list[int] | None = None) -> Tree:
    """Return a spec in double precision around `body`, which yields `out` features."""
    taken = shape or SHAPES[layout]
    first = layout in CHANNELS_FIRST
    return {
        "format": 1,
        "layout": layout,
        "dtype": "float64",
        "in_shape": taken,
        "out_shape": [out, *taken[1:]] if first else [*taken[:-1], out],
        "body": body,
        "end": {"op": "gain", "features": out},
    }


def word(layout: str, body: Tree, out: int = 6, *, shape: list[int] | None = None) -> Any:
    """Return the module of `body` alone, with its first values; it takes and yields features last."""
    module = build_module(whole(layout, body, out, shape=shape))
    init_module(module, torch.Generator().manual_seed(1))
    return module.body


def sample(*shape: int, rows: int = 3) -> Tensor:
    """Return fixed random samples, features last."""
    return torch.randn(rows, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def conv(**changes: Any) -> Tree:
    """Return a convolution of six features to six."""
    return {"op": "conv", "in": 6, "out": 6, "kernel": 3, "dilation": 1, "groups": 1, "one_sided": False} | changes


def attention(**changes: Any) -> Tree:
    """Return attention of six features with two heads."""
    return {"op": "attention", "features": 6, "heads": 2, "width": 3, "window": 0, "tiled": False} | changes


def same(one: Tensor, other: Tensor) -> bool:
    """Return whether two results differ by rounding only."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(("kernel", "dilation", "groups"), [(1, 1, 1), (3, 1, 2), (5, 2, 3), (7, 1, 6)])
def test_convolutions_are_torchs(kernel: int, dilation: int, groups: int) -> None:
    """Centred in maps, behind in sequences: compare with `conv1d` and `conv2d` on what was padded by hand."""
    node = conv(kernel=kernel, dilation=dilation, groups=groups)
    reach = (kernel - 1) * dilation
    x = sample(5, 4, 6)
    module = word("map2d", node)
    expected = functional.conv2d(
        x.movedim(-1, 1), module.weight, module.bias, padding=reach // 2, dilation=dilation, groups=groups
    )
    assert same(module(x), expected.movedim(1, -1))
    x = sample(9, 6)
    for layout, one_sided, before in (("map1d", False, reach // 2), ("map1d", True, reach), ("sequence", False, reach)):
        module = word(layout, node | {"one_sided": one_sided})
        margin = functional.pad(x.mT, (before, reach - before))
        expected = functional.conv1d(margin, module.weight, module.bias, dilation=dilation, groups=groups)
        assert same(module(x), expected.mT)


def test_deformable_convolution_moves_its_taps() -> None:
    """At rest it is a plain convolution, and a moved tap reads a straight line between neighbours: by both."""
    for layout, shape in (("map1d", (9, 6)), ("map2d", (5, 4, 6))):
        module, x = word(layout, {"op": "deformable_conv", "in": 6, "out": 6, "groups": 2}), sample(*shape)
        plain, axes = word(layout, conv()), len(shape) - 1
        with torch.no_grad():
            module.offset_weight.zero_()
            module.offset_bias.zero_()
            plain.bias.copy_(module.bias)
            plain.weight.copy_(module.weight.reshape(6, *[3] * axes, 6).movedim(-1, 1))
        assert same(module(x), plain(x))
        with torch.no_grad():
            module.offset_bias.fill_(float(torch.atanh(torch.tensor(0.25, dtype=torch.float64))))
        ahead = x
        for axis in range(1, axes + 1):
            later = functional.pad(ahead, [0, 0] * (ahead.dim() - 1 - axis) + [0, 1]).narrow(axis, 1, x.shape[axis])
            ahead = 0.75 * ahead + 0.25 * later
        inner = (slice(None), *[slice(1, -1)] * axes)
        assert same(module(x)[inner], plain(ahead)[inner])


def test_windows_of_maxima_are_torchs() -> None:
    """The largest of neighbours: compare with `max_pool` on what was padded with minus infinity."""
    x = sample(9, 6)
    for kernel in (2, 3, 5):
        for layout, before in (("map1d", (kernel - 1) // 2), ("sequence", kernel - 1)):
            margin = functional.pad(x.mT, (before, kernel - 1 - before), value=-torch.inf)
            expected = functional.max_pool1d(margin, kernel, stride=1).mT
            assert same(word(layout, {"op": "max_window", "kernel": kernel})(x), expected)
    x = sample(5, 4, 6)
    expected = functional.max_pool2d(x.movedim(-1, 1), 3, stride=1, padding=1).movedim(1, -1)
    assert same(word("map2d", {"op": "max_window", "kernel": 3})(x), expected)


def test_batch_norm_is_torchs() -> None:
    """Outputs and running statistics over three training steps and an evaluation: compare with `BatchNorm1d`."""
    ours = word("map1d", {"op": "batch_norm", "features": 6, "momentum": 0.9, "epsilon": 1e-5})
    theirs = nn.BatchNorm1d(6, momentum=0.1, dtype=torch.float64)
    for step in range(3):
        x = (1.0 + step) * sample(9, 6) + step
        assert same(ours(x), theirs(x.mT).mT)
    assert same(ours.running_mean, cast("Tensor", theirs.running_mean))
    assert same(ours.running_variance, cast("Tensor", theirs.running_var))
    assert same(ours.eval()(x), theirs.eval()(x.mT).mT)
    lone = word("vector", {"op": "batch_norm", "features": 6, "momentum": 0.9, "epsilon": 1e-5})
    assert torch.isfinite(lone(sample(6, rows=1))).all()
    assert torch.all(lone.running_variance == 1.0)


def test_batch_norm_takes_half_precision_as_torchs() -> None:
    """What autocast hands over: statistics of bfloat16 activations in full precision, compared with `BatchNorm1d`."""
    ours = word("vector", {"op": "batch_norm", "features": 6, "momentum": 0.9, "epsilon": 1e-5}).float()
    theirs = nn.BatchNorm1d(6, momentum=0.1)
    x = sample(6, rows=32).to(torch.bfloat16)
    torch.testing.assert_close(ours(x).to(torch.bfloat16), theirs(x), rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(ours.running_mean, cast("Tensor", theirs.running_mean))
    torch.testing.assert_close(ours.running_variance, cast("Tensor", theirs.running_var))


def test_means_and_pools_are_torchs() -> None:
    """Contexts, rarer positions and resized maps: compare with means, pooling and interpolation."""
    x = sample(9, 6)
    assert same(
        word("map1d", sequential({"op": "context"}, {"op": "identity"}), shape=[6, 1])(x), x.mean(1, keepdim=True)
    )
    running = torch.stack([x[:, : place + 1].mean(1) for place in range(9)], dim=1)
    assert same(word("sequence", {"op": "running_context"})(x), running)
    identity: Tree = {"op": "identity"}
    coarse: Tree = {"op": "coarse", "stride": 2, "children": [identity]}
    pairs = torch.stack([x[:, place - place % 2 : place - place % 2 + 2].mean(1) for place in range(9)], dim=1)
    assert same(word("map1d", coarse)(x), pairs)
    behind = [range(max(0, place - place % 2 - 1), place - place % 2 + 1) for place in range(9)]
    assert same(word("sequence", coarse)(x), torch.stack([x[:, list(places)].mean(1) for places in behind], dim=1))
    for size in (1, 4, 9, 16):
        pooled = functional.adaptive_avg_pool1d(x.mT, size)
        resized = functional.interpolate(pooled, size=9, mode="linear", align_corners=False).mT
        assert same(word("map1d", {"op": "pooled", "size": size, "children": [identity]})(x), resized)


def test_attention_is_torchs() -> None:
    """Full, causal, in windows and in tiles: compare with `scaled_dot_product_attention` under the mask by hand."""
    x, rows = sample(9, 6), torch.arange(9)
    apart = rows[:, None] - rows[None, :]
    tiles = (rows[:, None] // 4) == (rows[None, :] // 4)
    every = torch.ones(9, 9, dtype=torch.bool)
    for layout, changes, mask in (
        ("map1d", {}, every),
        ("sequence", {}, apart >= 0),
        ("map1d", {"window": 4}, apart.abs() <= 2),
        ("sequence", {"window": 4}, (apart >= 0) & (apart < 4)),
        ("map1d", {"window": 4, "tiled": True}, tiles),
        ("sequence", {"window": 4, "tiled": True}, tiles & (apart >= 0)),
    ):
        module = word(layout, attention(**changes))
        heads = functional.linear(x, module.weight, module.bias).reshape(3, 9, 3, 2, 3).permute(2, 0, 3, 1, 4)
        expected = functional.scaled_dot_product_attention(*heads, attn_mask=mask)
        assert same(module(x), expected.transpose(1, 2).reshape(3, 9, 6))


def test_windows_of_a_plane_go_along_both_axes() -> None:
    """In a map of two axes a position sees a square: find by gradients what the corner depends on."""
    for changes, seen in (({"window": 2}, 4), ({"window": 3, "tiled": True}, 9), ({}, 20)):
        x = sample(5, 4, 6).requires_grad_()
        (gradient,) = torch.autograd.grad(word("map2d", attention(**changes))(x)[:, 0, 0].sum(), x)
        assert int((gradient.abs().amax(dim=(0, -1)) > 0).sum()) == seen


def test_latents_read_and_are_read() -> None:
    """Induced set attention is two attentions; in a sequence t gets what the whole would give on positions up to t."""
    node: Tree = {"op": "latent_attention", "features": 6, "heads": 2, "width": 3, "latents": 4}
    x, module = sample(9, 6), word("map1d", node)
    query, key, value = functional.linear(x, module.weight, module.bias).reshape(3, 9, 3, 2, 3).permute(2, 0, 3, 1, 4)
    read = functional.scaled_dot_product_attention(module.latents.expand(3, 2, 4, 3), key, value)
    expected = functional.scaled_dot_product_attention(query, read, read).transpose(1, 2).reshape(3, 9, 6)
    assert same(module(x), expected)
    running = word("sequence", node | {"op": "running_latent_attention"})
    running.load_state_dict(module.state_dict())
    prefixes = [word("map1d", node, shape=[6, place + 1])(x[:, : place + 1])[:, -1] for place in range(9)]
    assert same(running(x), torch.stack(prefixes, dim=1))


def test_graph_attention_is_its_formula() -> None:
    """A position weighs itself and its neighbours: compare with attention over all, masked by the chain."""
    x, module = sample(9, 6), word("map1d", {"op": "graph_attention", "in": 6, "out": 6})
    values = functional.linear(x, module.weight, module.bias)
    scores = functional.leaky_relu((values @ module.asking)[:, :, None] + (values @ module.asked)[:, None, :], 0.2)
    near = (torch.arange(9)[:, None] - torch.arange(9)[None, :]).abs() <= 1
    expected = torch.softmax(scores.masked_fill(~near, -torch.inf), dim=-1) @ values
    assert same(module(x), expected)


@pytest.mark.parametrize("steps", [1, 3])
def test_fast_weights_learn_by_gradient(steps: int) -> None:
    """The adapted map is what autograd's own gradient steps give: take them one by one and compare the answers."""
    node: Tree = {"op": "fast_weights", "features": 6, "width": 4, "steps": steps}
    x, module = sample(9, 6), word("map1d", node, out=4)
    query, key, value = functional.linear(x, module.weight, module.bias).detach().chunk(3, dim=-1)
    key = functional.normalize(key, dim=-1)
    answers = []
    for one in range(3):
        weights = module.slow.detach().clone().requires_grad_()
        for _ in range(steps):
            loss = 0.5 * (value[one] - key[one] @ weights.mT).square().sum() / 9
            (gradient,) = torch.autograd.grad(loss, weights)
            weights = (weights - torch.sigmoid(module.rate) * gradient).detach().requires_grad_()
        answers.append(query[one] @ weights.mT)
    assert same(module(x), torch.stack(answers))
    if steps == 1:
        running = word("sequence", node, out=4)
        prefixes = [word("map1d", node, out=4, shape=[6, at + 1])(x[:, : at + 1])[:, -1] for at in range(9)]
        assert same(running(x), torch.stack(prefixes, dim=1))


def switch(capacity: float) -> Tree:
    """Return two experts, one that yields x and one that yields 2 x."""
    experts: list[Tree] = [{"op": "scale", "factor": 1.0}, {"op": "scale", "factor": 2.0}]
    return {"op": "switched", "experts": 2, "capacity": capacity, "children": [linear(6, 2), *experts]}


def test_switch_serves_in_order_up_to_capacity() -> None:
    """Each position goes to its likeliest expert while there is room: follow the queues by hand."""
    x, module = sample(9, 6), word("sequence", switch(0.6))
    chances = torch.softmax(module.get_submodule("0")(x), dim=-1)
    expected = torch.zeros_like(x)
    for one in range(3):
        room = [3, 3]
        for place in range(9):
            chance, expert = chances[one, place].max(dim=-1)
            room[int(expert)] -= 1
            if room[int(expert)] >= 0:
                expected[one, place] = chance * (1.0 + int(expert)) * x[one, place]
    assert same(module(x), expected)
    assert (expected.abs().sum(dim=-1) == 0).any()


def test_switch_of_vectors_drops_in_training_alone() -> None:
    """Samples compete for room only while they train: with all of one mind, half of them get zero, none later."""
    x, module = sample(6, rows=1).expand(8, 6), word("vector", switch(1.0))
    assert [bool(row.abs().sum() > 0) for row in module(x)] == [True] * 4 + [False] * 4
    assert (module.eval()(x).abs().sum(dim=-1) > 0).all()


def test_choices_are_weighed() -> None:
    """Mixtures follow their softmax: a temperature sharpens, and a router decides, by the formula."""
    children: list[Tree] = [{"op": "scale", "factor": 1.0}, {"op": "scale", "factor": 3.0}]
    x = sample(6)
    for temperature in (0.5, 2.0):
        module = word("vector", {"op": "mixed", "choices": 2, "temperature": temperature, "children": children})
        with torch.no_grad():
            module.alpha.copy_(torch.tensor([0.3, 1.0], dtype=torch.float64))
        share = torch.softmax(torch.tensor([0.3, 1.0], dtype=torch.float64) / temperature, dim=0)
        assert same(module(x), (share[0] + 3.0 * share[1]) * x)
    router = sequential({"op": "context"}, linear(6, 2))
    routed = word("map1d", {"op": "routed", "experts": 2, "children": [router, *children]})
    x = sample(9, 6)
    share = torch.softmax(routed.get_submodule("0.1")(x.mean(1)), dim=-1)[:, None]
    assert same(routed(x), (share[..., :1] + 3.0 * share[..., 1:]) * x)


def test_flow_and_recursion_are_their_formulas() -> None:
    """A linear flow is the matrix exponential in the limit, at the order of the midpoint rule; a recursion unrolls."""
    x, errors = sample(6), []
    for steps in (4, 8):
        flow = word("vector", {"op": "integrate", "steps": steps, "children": [linear(6, 6, bias=False)]})
        exact = x @ torch.matrix_exp(flow.get_submodule("0").weight).mT
        errors.append(float((flow(x) - exact).detach().abs().max()))
    assert 3.0 < errors[0] / errors[1] < 5.0
    recursion = word("vector", {"op": "recur", "steps": 3, "children": [linear(6, 6)]})
    cell = recursion.get_submodule("0")
    assert same(recursion(x), cell(cell(cell(x) + x) + x))


def test_blocks_pieces_and_fits() -> None:
    """Block-diagonal maps, maxout, and features cut or padded: compare with the plain operations they are made of."""
    x = sample(6)
    grouped = word("vector", {"op": "grouped_linear", "in": 6, "out": 6, "groups": 3})
    assert same(grouped(x), x @ torch.block_diag(*grouped.weight).mT + grouped.bias)
    maxout = word("vector", {"op": "maxout", "in": 6, "out": 6, "pieces": 4})
    pieces = [functional.linear(x, w, b) for w, b in zip(maxout.weight.split(6), maxout.bias.split(6), strict=True)]
    assert same(maxout(x), torch.stack(pieces).amax(dim=0))
    assert same(word("vector", {"op": "fit", "features": 4}, out=4)(x), x[:, :4])
    assert same(word("vector", {"op": "fit", "features": 8}, out=8)(x), torch.cat([x, torch.zeros(3, 2)], dim=1))
    tanh = word("vector", {"op": "dynamic_tanh", "features": 6, "alpha": 0.8})
    assert same(tanh(x), torch.tanh(0.8 * x))


REFUSED: dict[str, tuple[str, Tree, str]] = {
    "batch statistics in a sequence": (
        "sequence",
        {"op": "batch_norm", "features": 6, "momentum": 0.9, "epsilon": 1e-5},
        "no meaning in layout 'sequence'",
    ),
    "a mean over the future": ("sequence", {"op": "context"}, "no meaning in layout 'sequence'"),
    "resized positions in a sequence": (
        "sequence",
        {"op": "pooled", "size": 4, "children": [{"op": "relu"}]},
        "no mean",
    ),
    "latents that read ahead": (
        "sequence",
        {"op": "latent_attention", "features": 6, "heads": 2, "width": 3, "latents": 4},
        "no meaning in layout 'sequence'",
    ),
    "flattened positions": ("map1d", {"op": "flatten"}, "no meaning in layout 'map1d'"),
    "a line of a map": ("map2d", {"op": "line"}, "no meaning in layout 'map2d'"),
    "a convolution without positions": ("vector", conv(), "cannot take shape"),
    "attention without positions": ("vector", attention(), "cannot take shape"),
    "groups that do not divide": ("map1d", conv(groups=4), "cannot take shape"),
    "a kernel too wide": ("map1d", conv(kernel=32), "out of bounds"),
    "no heads": ("map1d", attention(heads=0), "out of bounds"),
    "a router of three for two": (
        "vector",
        switch(1.0) | {"children": [linear(6, 3), {"op": "relu"}, {"op": "relu"}]},
        "cannot take shape",
    ),
    "choices that are not there": (
        "vector",
        {"op": "mixed", "choices": 3, "temperature": 1.0, "children": [{"op": "relu"}, {"op": "tanh"}]},
        "cannot take shape",
    ),
    "a flow to another width": (
        "vector",
        {"op": "integrate", "steps": 2, "children": [linear(6, 5)]},
        "cannot take shape",
    ),
    "endless steps": ("vector", {"op": "recur", "steps": 65, "children": [linear(6, 6)]}, "out of bounds"),
    "work beyond measure": (
        "vector",
        {"op": "recur", "steps": 64, "children": [{"op": "recur", "steps": 64, "children": [linear(6, 6)]}]},
        "",
    ),
    "positions that change": ("map1d", {"op": "context"}, "not out_shape"),
}


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_words_out_of_place_are_refused(what: str) -> None:
    """A word that a layout does not have, or that cannot take its input, is refused whole: one at a time."""
    layout, body, message = REFUSED[what]
    spec = whole(layout, body)
    if what == "work beyond measure":
        for _ in range(2):
            spec["body"] = {"op": "recur", "steps": 64, "children": [spec["body"]]}
        spec["body"] = {"op": "recur", "steps": 64, "children": [spec["body"]]}
        message = "products per sample"
    with pytest.raises(IntegrityError, match=message):
        plan_spec(spec)
