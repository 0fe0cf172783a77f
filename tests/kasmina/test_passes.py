"""Passes beside a host's training: what stands in for its tensors, and what is there again afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from esper.kasmina.grafting._passes import HostPasses, Isolation
from tests.kasmina.support import HOSTS, batch, seeded


class Tied(nn.Module):
    """Two layers that share weights, and a buffer under two names that each forward writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.second.weight = self.first.weight
        self.count: Tensor
        self.register_buffer("count", torch.zeros(()))
        self.second.register_buffer("count", self.count)
        self.second.register_parameter("absent", None)

    def forward(self, x_BF: Tensor) -> Tensor:
        self.count.add_(1.0)
        assert self.second.count is self.count
        assert self.second.weight is self.first.weight
        out: Tensor = self.second(self.first(x_BF)) + self.second.count
        return out


def tensors_of(model: nn.Module) -> dict[str, int]:
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: id(tensor) for name, tensor in named}


@pytest.mark.parametrize("name", HOSTS)
def test_as_torchs_own_functional_call(name: str) -> None:
    """Goal: the same outputs, bit for bit. Method: a host in train mode, with cloned buffers, both ways."""
    model, (inputs, _) = seeded(HOSTS[name][0]), batch(0)
    state = {key: each.detach() for key, each in model.named_parameters()}
    state |= {key: each.clone() for key, each in model.named_buffers()}
    before = {key: each.clone() for key, each in model.state_dict().items()}
    passes = HostPasses(model, isolation=Isolation(eval_mode=False))
    with passes.quiet(seed=4):
        ours = passes.forward(inputs)
    with passes.quiet(seed=4):
        assert torch.equal(ours, functional_call(model, state, (inputs,)))
    assert not ours.requires_grad
    assert all(torch.equal(before[key], each) for key, each in model.state_dict().items())


def test_what_is_tied_stays_tied_and_comes_back() -> None:
    """Goal: one stand-in for each tensor, whatever its names. Method: a host that looks; tensors by identity."""
    model = Tied()
    before, passes = tensors_of(model), HostPasses(model)
    inputs = batch(0)[0]
    with passes.quiet(seed=0):
        first, second = passes.forward(inputs), passes.forward(inputs)
    assert torch.equal(first, second), "every pass has buffers of its own"
    assert tensors_of(model) == before
    assert float(model.count) == 0.0


def test_a_replacement_goes_where_its_parameter_is_tied() -> None:
    """Goal: a fold is tried out everywhere. Method: zeros instead of weights that two layers share."""
    model = Tied()
    passes = HostPasses(model)
    with passes.quiet(seed=0):
        found = passes.forward(batch(0)[0], replaced={"first.weight": torch.zeros(12, 12)})
    assert torch.equal(found, (model.second.bias + 1.0).expand_as(found))


def test_a_forward_that_fails_leaves_the_host_its_tensors() -> None:
    """Goal: no stand-in stays. Method: inputs that do not fit."""
    model = Tied()
    before, passes = tensors_of(model), HostPasses(model)
    with passes.quiet(seed=0), pytest.raises(RuntimeError):
        passes.forward(torch.zeros(2, 5))
    assert tensors_of(model) == before
