"""What a computation is said to cost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from esper.core.flops import count_multiply_adds


def encoder() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(16, 2, dim_feedforward=24, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(3, 5, 16)


def convolutions() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3)), torch.randn(2, 2, 9, 9)


def linears() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Dropout(0.1), nn.Linear(6, 5)), torch.randn(7, 4)


def trained(module: nn.Module, inputs: Tensor) -> None:
    functional.mse_loss(module(inputs), torch.zeros(())).backward()  # type: ignore[no-untyped-call]  # unannotated in torch


def looked_at(module: nn.Module, inputs: Tensor) -> None:
    with torch.no_grad():
        module.eval()(inputs)


def inferred(module: nn.Module, inputs: Tensor) -> None:
    with torch.inference_mode():
        module.eval()(inputs)


def in_bfloat16(module: nn.Module, inputs: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        module(inputs).sum().backward()


@pytest.mark.parametrize("work", [trained, looked_at, inferred, in_bfloat16])
@pytest.mark.parametrize("made", [linears, convolutions, encoder])
@pytest.mark.filterwarnings("ignore:.*target size.*")
def test_as_torchs_own_counter(
    made: Callable[[], tuple[nn.Module, Tensor]], work: Callable[[nn.Module, Tensor], None]
) -> None:
    """Goal: figures of a known tool. Method: three kinds of hosts, four ways of running them, both counters."""
    module, inputs = made()
    with FlopCounterMode(display=False) as counter:
        work(module, inputs)
    assert count_multiply_adds(lambda: work(module, inputs)) == counter.get_total_flops() // 2


def test_a_linear_layer_by_hand() -> None:
    """Goal: a multiply-add counts once. Method: 7 samples through 4 x 6 weights, forward and both backwards."""
    layer, inputs = nn.Linear(4, 6), torch.randn(7, 4, requires_grad=True)
    assert count_multiply_adds(lambda: layer(inputs)) == 7 * 4 * 6
    assert count_multiply_adds(lambda: layer(inputs).sum().backward()) == 3 * 7 * 4 * 6


@pytest.mark.filterwarnings("ignore:.*target size.*")
def test_counting_leaves_what_is_compiled_in_force() -> None:
    """Goal: who counts costs nobody his compiled code. Method: a backend that notes each run of its graph; train a
    compiled layer, count a step of it, train on: the counted step runs uncompiled, all others run the one graph."""
    ran: list[str] = []
    made: list[str] = []

    def noting(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        made.append("graph")
        return lambda *args: (ran.append("run"), graph(*args))[1]

    module, inputs = linears()
    compiled = torch.compile(module, backend=noting)
    trained(compiled, inputs)
    plain = count_multiply_adds(lambda: trained(module, inputs))
    assert count_multiply_adds(lambda: trained(compiled, inputs)) == plain
    trained(compiled, inputs)
    assert (len(made), len(ran)) == (1, 2)
