"""Finding slots on hosts of several kinds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from esper.core.errors import UsageError
from esper.kasmina import discover_slots
from tests.kasmina.support import CLASSES, HOSTS, INPUTS, TransformerHost, TwiceHost, all_bytes, batch, mlp, seeded


class Residual2d(nn.Module):
    """A small residual block of images."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = x_BCHW + self.body(x_BCHW)
        return out


def convolutional() -> nn.Module:
    """A small ResNet: stem, two stages of blocks, head."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Sequential(Residual2d(4), Residual2d(4)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, CLASSES),
    )


def test_auto_picks_the_blocks_of_an_mlp_but_not_its_head() -> None:
    """Goal: "auto" is sensible. Method: the MLP host; shapes, depth and layout of what is picked."""
    specs = discover_slots(mlp(), batch(0)[0])
    assert [spec.slot for spec in specs] == ["1", "2"]
    first, second = specs
    assert (first.in_shape, first.out_shape, first.depth) == ((INPUTS,), (8,), 0)
    assert (second.in_shape, second.out_shape, second.depth) == ((8,), (8,), 1)
    assert {spec.layout for spec in specs} == {"vector"}
    assert {spec.placement for spec in specs} == {"branch"}


def test_auto_looks_into_containers_and_keeps_blocks_whole() -> None:
    """Goal: blocks, not their inner layers. Method: a ResNet and a transformer."""
    specs = discover_slots(convolutional(), torch.zeros(2, 3, 6, 6))
    assert [(spec.slot, spec.layout, spec.in_shape) for spec in specs] == [
        ("0", "map2d", (3, 6, 6)),
        ("1.0", "map2d", (4, 6, 6)),
        ("1.1", "map2d", (4, 6, 6)),
    ]
    specs = discover_slots(TransformerHost(), batch(0)[0])
    assert [spec.slot for spec in specs] == ["embed", "layers.0", "layers.1", "layers.2"]
    assert specs[1].layout == "sequence"
    assert specs[1].in_shape == (INPUTS, 16)
    assert [spec.depth for spec in specs] == sorted(spec.depth for spec in specs)


def test_three_dimensions_are_a_map_where_convolutions_say_so() -> None:
    """Goal: sequence and map1d are told apart. Method: a Conv1d host."""
    model = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(40, CLASSES))
    (spec,) = discover_slots(model, torch.zeros(2, 1, 10))
    assert (spec.slot, spec.layout, spec.out_shape) == ("0", "map1d", (4, 10))


def test_strided_modules_are_residual_slots() -> None:
    """Goal: a seed is never asked to change positions. Method: strided convolutions of both kinds, by name and not."""
    for kind, sample in ((nn.Conv1d, torch.zeros(2, 3, 8)), (nn.Conv2d, torch.zeros(2, 3, 8, 8))):
        model = nn.Sequential(kind(3, 4, 3, padding=1), kind(4, 4, 3, stride=2), nn.Flatten(), nn.LazyLinear(CLASSES))
        model(sample)
        assert [spec.slot for spec in discover_slots(model, sample)] == ["0"]
        (spec,) = discover_slots(model, sample, ["1"])
        assert (spec.placement, spec.in_shape) == ("residual", spec.out_shape)
        with pytest.raises(UsageError, match="keeps positions"):
            discover_slots(model, sample, ["1:branch"])


def test_named_slots_take_a_placement() -> None:
    """Goal: users choose. Method: a plain name, explicit placements, and a module that only allows residual."""
    specs = {spec.slot: spec for spec in discover_slots(mlp(), batch(0)[0], ["1", "1:residual", "2:branch"])}
    assert specs["1"].placement == specs["2:branch"].placement == "branch"
    assert specs["1:residual"].placement == "residual"
    assert specs["1:residual"].in_shape == specs["1:residual"].out_shape == (8,)
    (flat,) = discover_slots(convolutional(), torch.zeros(2, 3, 6, 6), ["3"])
    assert (flat.placement, flat.in_shape) == ("residual", (4,)), "Flatten maps a map to a vector"
    (twice,) = discover_slots(TwiceHost(), batch(0)[0], ["block"])
    assert twice.calls == 2


@pytest.mark.parametrize("host", HOSTS)
def test_discovery_leaves_the_host_as_it_was(host: str) -> None:
    """Goal: looking changes nothing. Method: weights, buffers, flags, hooks and random stream around a discovery."""
    model = seeded(HOSTS[host][0])
    model.train()
    before, stream = all_bytes(model), torch.get_rng_state()
    discover_slots(model, batch(0)[0])
    assert all_bytes(model) == before
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(module.training and not module._forward_hooks for module in model.modules())


class Wrapped(nn.Linear):
    """Gives its output by name."""

    def forward(self, x_BF: Tensor) -> dict[str, Tensor]:  # type: ignore[override]  # that is what is odd about it
        return {"given": super().forward(x_BF)}


class Odd(nn.Module):
    """Modules that cannot be slots, each for its own reason."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 6)
        self.attention = nn.MultiheadAttention(6, 1, batch_first=True)
        self.wrapped = Wrapped(6, 6)
        self.varied = nn.Linear(6, 6)
        self.unused = nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x_BL: Tensor) -> Tensor:
        h_BLD = self.table(x_BL)
        mixed, _ = self.attention(h_BLD, h_BLD, h_BLD)
        pooled = self.varied(self.varied(self.wrapped(mixed)["given"]).mean(dim=1))
        out: Tensor = self.head(pooled)
        return out


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("nowhere", "no module is called 'nowhere'"),
        ("", "no module is called ''"),
        ("unused", "the forward never runs it"),
        ("varied", "runs more than once, on different shapes"),
        ("wrapped", "it returns a dict"),
        ("table:branch", "is a torch.int64 tensor, not a float tensor"),
        ("head:sideways", "asks for placement 'sideways'"),
    ],
)
def test_unusable_slots_are_refused_by_name_and_cause(name: str, cause: str) -> None:
    """Goal: a wrong name costs one clear message. Method: every way in which a module cannot be a slot."""
    with pytest.raises(UsageError, match=cause):
        discover_slots(Odd(), torch.zeros(2, 4, dtype=torch.long), [name])


def test_a_residual_slot_needs_only_an_output() -> None:
    """Goal: an embedding can carry a residual seed. Method: its name without a placement."""
    (spec,) = discover_slots(Odd(), torch.zeros(2, 4, dtype=torch.long), ["table"])
    assert (spec.placement, spec.in_shape) == ("residual", (4, 6))


def test_nothing_to_pick_and_doubled_names_are_errors() -> None:
    """Goal: no silent empty answer. Method: a host without weights, a slot named twice, six dimensions."""
    with pytest.raises(UsageError, match="no module of Sequential offers itself"):
        discover_slots(nn.Sequential(nn.ReLU()), torch.zeros(2, 3))
    with pytest.raises(UsageError, match="'1' is named twice"):
        discover_slots(mlp(), batch(0)[0], ["1", "1"])
    deep = nn.Sequential(nn.Conv3d(1, 1, 1), nn.Flatten(), nn.Linear(8, CLASSES))
    with pytest.raises(UsageError, match="5 dimensions"):
        discover_slots(deep, torch.zeros(2, 1, 2, 2, 2), ["0"])


def test_the_only_layer_is_a_slot_although_it_is_the_head() -> None:
    """Goal: a logistic regression can grow as well. Method: one layer."""
    (spec,) = discover_slots(nn.Sequential(nn.Linear(INPUTS, CLASSES)), batch(0)[0])
    assert spec.slot == "0"


def test_the_request_describes_the_slot() -> None:
    """Goal: kernels are asked for by what the slot is. Method: every field of the request."""
    (spec,) = discover_slots(mlp(), batch(0)[0], ["1"])
    request = spec.request("BP009", {"depth": 2.0})
    assert request.blueprint_id == "BP009"
    assert dict(request.parameters) == {"depth": 2.0}
    assert (request.layout, request.dtype) == ("vector", "float32")
    assert (list(request.in_shape), list(request.out_shape)) == ([INPUTS], [8])


def test_a_module_that_gives_a_tuple_and_is_called_by_name_is_a_slot() -> None:
    """Goal: what other people's models do. Method: attention, which gives (output, weights), called by names."""

    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 1, batch_first=True)
            self.head = nn.Linear(6, CLASSES)

        def forward(self, *, text_BLD: Tensor, scale: float) -> dict[str, Tensor]:
            mixed, _ = self.attention(query=text_BLD, key=text_BLD, value=text_BLD)
            return {"logits": self.head(mixed * scale)}

    inputs = {"text_BLD": torch.randn(2, 4, 6), "scale": 2.0}
    (spec,) = discover_slots(ByName(), inputs)
    assert (spec.slot, spec.placement, spec.layout, spec.in_shape) == ("attention", "branch", "sequence", (4, 6))
