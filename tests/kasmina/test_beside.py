"""Hosts that a careless pass beside their training would change: by mode, buffer, stream, batch or a second forward."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from esper.core.errors import IntegrityError
from esper.leyline import messages as ly
from esper.tolaria import evaluate_batches, multiply_adds_per_sample
from tests.kasmina.support import CLASSES, INPUTS, PROBE, InputStatistics, Loop, all_bytes, seeded

STEPS, EPOCHS = 6, 3


class Merging(nn.Module):
    """A low-rank adapter that merges its weights in `eval()`, as LoRA layers do, and then learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(INPUTS, 8)
        self.down = nn.Parameter(torch.randn(2, INPUTS))
        self.up = nn.Parameter(torch.randn(8, 2))
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        if mode == self.merged:
            sign = -1.0 if mode else 1.0
            self.layer.weight.data += sign * (self.up @ self.down).data
            self.merged = not mode
        return super().train(mode)

    def forward(self, x_BF: Tensor) -> Tensor:
        out: Tensor = self.layer(x_BF)
        return out if self.merged else out + x_BF @ (self.up @ self.down).T


class Noisy(nn.Module):
    """Draws in every mode, from torch, Python and numpy."""

    def forward(self, x_BF: Tensor) -> Tensor:
        scale = 1.0 + 0.1 * random.random() + 0.1 * np.random.rand()  # noqa: S311 - a host of a user's may
        return scale * functional.dropout(x_BF, 0.2, training=True)


class Centring(nn.Module):
    """Writes into what it is given."""

    def forward(self, x_BF: Tensor) -> Tensor:
        return x_BF.mul_(0.9)


def host(first: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return a factory of a host that begins with `first`; slot "1" comes after it."""

    def make() -> nn.Module:
        begin = first()
        width = 8 if isinstance(begin, Merging) else INPUTS
        return nn.Sequential(begin, nn.Sequential(nn.Linear(width, 8), nn.ReLU()), nn.Linear(8, CLASSES))

    return make


FIRSTS: dict[str, Callable[[], nn.Module]] = {
    "merges in eval()": Merging,
    "draws in every mode": Noisy,
    "writes buffers in every mode": lambda: InputStatistics(INPUTS),
    "writes into its input": Centring,
}


def fixed() -> Callable[[int], tuple[Tensor, Tensor]]:
    """Return data that are the very same tensors at every step."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(16, INPUTS, generator=generator)
    return lambda _: (inputs, torch.arange(16) % CLASSES)


def seed_streams() -> None:
    """Start all global streams anew."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


def streams() -> tuple[bytes, object, bytes]:
    """Return where the global streams stand."""
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()[1].tobytes()


def plain(make: Callable[[], nn.Module]) -> tuple[object, ...]:
    """Train a host without Esper; return all that it came to."""
    model, data = seeded(make), fixed()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    seed_streams()
    model.train()
    for _ in range(EPOCHS * STEPS):
        inputs, targets = data(0)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return all_bytes(model), streams(), data(0)[0].numpy().tobytes()


@pytest.mark.parametrize("name", FIRSTS)
def test_a_seed_in_training_and_every_measurement_leave_it_alone(name: str) -> None:
    """Goal: byte-equal to a bare loop. Method: germinate, train in shadow, evaluate and count at every edge."""
    expected = plain(host(FIRSTS[name]))
    model, data = seeded(host(FIRSTS[name])), fixed()
    probe = [(inputs.clone(), targets) for inputs, targets in PROBE]
    seed_streams()
    before = streams()
    loop = Loop(model, ["1"], data=data, probe=probe)
    multiply_adds_per_sample(model, data(0)[0][:2])
    assert streams() == before
    for epoch in range(EPOCHS):
        loop.train_epoch(STEPS)
        evaluate_batches(model, probe, functional.cross_entropy)
        if not epoch:
            assert loop.germinate("1").result == ly.COMMAND_RESULT_APPLIED
    assert [seed.stage for seed in loop.manager.summaries()] == [ly.SEED_STAGE_TRAINING]
    assert (all_bytes(model), streams(), data(0)[0].numpy().tobytes()) == expected
    assert all(torch.equal(mine, theirs) for (mine, _), (theirs, _) in zip(probe, PROBE, strict=True))


class Checkpointed(nn.Module):
    """Runs its block again in the backward, its norm as well; `times` is how often the block runs in one forward."""

    def __init__(self, times: int = 1, *, again: bool = True, norm: type[nn.Module] = nn.BatchNorm1d) -> None:
        super().__init__()
        self.stem = nn.Linear(INPUTS, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), norm(8), nn.ReLU())
        self.head = nn.Linear(8, CLASSES)
        self.times = times
        self.again = again

    def forward(self, x_BF: Tensor) -> Tensor:
        h_BF = self.stem(x_BF)
        for _ in range(self.times):
            h_BF = checkpoint(self.block, h_BF, use_reentrant=False) if self.again else self.block(h_BF)
        out: Tensor = self.head(h_BF)
        return out


def test_a_rehearsal_runs_no_part_of_the_host_in_training_mode_again() -> None:
    """Goal: an edge that germinates leaves BatchNorm alone where activations are checkpointed, and G1 says so."""
    loop = Loop(seeded(Checkpointed), ["block"])
    loop.train_epoch(STEPS)
    before = all_bytes(loop.model)
    decision = loop.germinate("block")
    assert decision.result == ly.COMMAND_RESULT_APPLIED, decision.reason
    assert all_bytes(loop.model) == before
    alone = Loop(seeded(Checkpointed), ["block"])
    for each in (loop, alone):
        torch.manual_seed(1)
        for _ in range(EPOCHS - len(each.losses) // STEPS):
            each.train_epoch(STEPS)
    assert all_bytes(loop.model) == all_bytes(alone.model)


@pytest.mark.parametrize("blueprint", ["BYPASS", "DROPPING"])
def test_a_heard_seed_draws_alike_when_its_forward_runs_again(blueprint: str) -> None:
    """Goal: right gradients where activations are checkpointed. Method: a growth with and without it, bit for bit.

    BatchNorm would count a forward that runs again as one more, without any seed.
    """
    found = []
    for again in (True, False):
        torch.manual_seed(0)
        loop = Loop(Checkpointed(again=again, norm=nn.LayerNorm), ["block"])
        loop.grow("block", ly.SEED_STAGE_BLENDING, blueprint)
        loop.train_epoch(STEPS)
        found.append((loop.losses, all_bytes(loop.model)))
    assert found[0] == found[1]


@pytest.mark.parametrize("blueprint", ["BYPASS", "DROPPING"])
def test_what_cannot_be_drawn_alike_is_refused(blueprint: str) -> None:
    """Goal: no wrong gradient in silence. Method: the slot runs twice, both again; a seed that draws is in doubt."""
    loop = Loop(seeded(lambda: Checkpointed(times=2)), ["block"])
    loop.grow("block", ly.SEED_STAGE_BLENDING, blueprint)
    if blueprint == "BYPASS":
        loop.train_epoch(STEPS)
        return
    with pytest.raises(IntegrityError, match="runs more than once") as caught:
        loop.train_epoch(STEPS)
    assert "without dropout" in caught.value.next_step
