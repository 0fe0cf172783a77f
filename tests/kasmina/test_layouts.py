"""Real kernels in hosts of every layout: vectors, sequences, and maps of one and two axes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from esper.karn import catalogue
from esper.kasmina import GateLimits, KasminaConfig
from esper.kasmina.testing import InMemoryRuntime
from esper.leyline import messages as ly
from tests.karn.contract import highest
from tests.kasmina.support import CLASSES, INPUTS, Loop, TransformerHost, all_bytes, mlp, outputs, seeded


class ConvolutionalHost(nn.Module):
    """Two convolutional blocks with BatchNorm and dropout over `INPUTS` numbers as a signal or a picture."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if len(shape) == 1 else (nn.Conv2d, nn.BatchNorm2d)
        self.shape = shape
        self.stem = conv(1, 8, 3, padding=1)
        self.block = nn.Sequential(conv(8, 8, 3, padding=1), norm(8), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(8 * INPUTS, CLASSES)

    def forward(self, x_BF: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(self.stem(x_BF.reshape(-1, 1, *self.shape))).flatten(1))
        return out


HOSTS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "vector": (mlp, "1"),
    "sequence": (TransformerHost, "layers.1"),
    "map1d": (partial(ConvolutionalHost, (INPUTS,)), "block"),
    "map2d": (partial(ConvolutionalHost, (4, 3)), "block"),
}
#: With buffers, dropout, several axes, routing, and tokens: whatever could leave a trace on a host.
PLANTED = [
    ("vector", "BP004"),
    ("vector", "BP006"),
    ("vector", "BP023"),
    ("vector", "BP036"),
    ("sequence", "BP004"),
    ("sequence", "BP022"),
    ("sequence", "BP031"),
    ("sequence", "BP041"),
    ("map1d", "BP006"),
    ("map1d", "BP033"),
    ("map2d", "BP018"),
    ("map2d", "BP027"),
    ("map2d", "BP034"),
]
#: A few steps prove no gain; here it counts that every move works, not that it pays.
EASY = KasminaConfig(
    learning_rate=3e-4, warmup_steps=5, blend_epochs=1.0, limits=GateLimits(shadow_loss_rise_max=10.0, gain_min=-10.0)
)


def planted(layout: str, blueprint_id: str) -> Loop:
    """Return a host of the layout with a manager that fetches the blueprint's real kernels."""
    blueprint = catalogue()[blueprint_id]

    def make(request: ly.KernelRequestSpec, generator: torch.Generator) -> nn.Module:
        return blueprint.build(
            layout=request.layout,
            shape=list(request.in_shape),
            out_shape=list(request.out_shape),
            parameters=dict(request.parameters),
            generator=generator,
        )

    factory, slot = HOSTS[layout]
    return Loop(seeded(factory), [slot], runtime=InMemoryRuntime({blueprint_id: make}), config=EASY)


@pytest.mark.parametrize(("layout", "blueprint_id"), PLANTED)
def test_real_kernels_learn_and_leave_no_trace(layout: str, blueprint_id: str) -> None:
    """Goal: alpha 0 means nothing for real kernels either. Method: 20 steps with a seed in TRAINING and without;
    the host is byte-equal, the seed has moved.
    """
    found = []
    for seed in (True, False):
        loop = planted(layout, blueprint_id)
        if seed:
            decision = loop.germinate(HOSTS[layout][1], blueprint_id, **highest(blueprint_id))
            assert decision.result == ly.COMMAND_RESULT_APPLIED, decision.reason
            before = {name: tensor.clone() for name, tensor in loop.manager.state().items()}
        torch.manual_seed(11)
        assert loop.train_epoch(20) == []
        if seed:
            moved = loop.manager.state()
            assert any(not torch.equal(before[name], moved[name]) for name in before)
        found.append((all_bytes(loop.model), loop.losses, torch.get_rng_state().numpy().tobytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize(("layout", "blueprint_id"), [("sequence", "BP011"), ("map1d", "BP005"), ("map2d", "BP005")])
def test_real_kernels_become_part_of_the_host(layout: str, blueprint_id: str) -> None:
    """Goal: a seed of any layout can be grafted for good. Method: every move up to FOSSILIZED, and what it changed."""
    loop = planted(layout, blueprint_id)
    loop.grow(HOSTS[layout][1], ly.SEED_STAGE_FOSSILIZED, blueprint_id, steps=20)
    bare = planted(layout, blueprint_id)
    missing = bare.model.load_state_dict(loop.model.state_dict(), strict=False)
    assert missing.unexpected_keys
    assert not torch.equal(outputs(loop.model), outputs(bare.model))
