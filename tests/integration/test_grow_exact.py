"""A loop under `grow` trains the same network, bit for bit, as the loop alone, and seeds fit into how it trains."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import esper
from esper.core.settings import Settings
from tests.campaigns import WHOLE
from tests.integration.driver import Esper

EPOCHS, STEPS, PARTS = 4, 50, 2
FEATURES, CLASSES = 12, 3
#: `make faults` compiles to machine code as well, which takes a minute.
BACKENDS = ["", "aot_eager", *(["inductor"] if WHOLE else [])]


def host() -> nn.Module:
    """Return a host that draws random numbers and keeps buffers."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Sequential(nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.2)),
        nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.2)),
        nn.Linear(16, CLASSES),
    )


def batch(number: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """Return batch `number` of a problem that no linear map solves."""
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(size, FEATURES, generator=generator)
    return inputs, (inputs[:, 0] * inputs[:, 1] > 0).long() + (inputs[:, 2] * inputs[:, 3] > 0.5).long()


def trained(*, backend: str, settings: Settings | None = None, disturb: bool = False) -> dict[str, Any]:
    """Train 200 steps in bf16 autocast with scaler, schedule, clipping and accumulation; return everything that moved.

    With `settings` the loop runs under `grow`. `disturb` draws one random number that the plain loop does not.
    """
    original = host()
    model = torch.compile(original, backend=backend) if backend else original
    optimizer = torch.optim.AdamW(original.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=EPOCHS * STEPS)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=20)
    growing = (
        esper.grow(
            model,
            optimizer=optimizer,
            loss_fn=functional.cross_entropy,
            probe=[batch(-1, 64)],
            scaler=scaler,
            scheduler=scheduler,
            policy="noop",
            epochs=EPOCHS,
            settings=settings,
        )
        if settings
        else nullcontext()
    )
    losses = []
    with growing as run:
        model.train()
        for step in range(EPOCHS * STEPS):
            optimizer.zero_grad()
            for part in range(PARTS):
                inputs, targets = batch(PARTS * step + part)
                with torch.autocast("cpu", torch.bfloat16):
                    loss = functional.cross_entropy(model(inputs), targets) / PARTS
                scaler.scale(loss).backward()
                losses.append(float(loss.detach()))
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(original.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            if run is not None:
                run.step((inputs, targets))
                run.tick(lambda: {"loss": losses[-1]}, every=STEPS)
        if disturb:
            torch.rand(())
    return {
        "weights": {name: tensor.numpy().tobytes() for name, tensor in original.state_dict().items()},
        "optimizer": [
            {name: bytes(value.numpy().tobytes()) for name, value in optimizer.state[parameter].items()}
            for parameter in original.parameters()
        ],
        "rng": torch.get_rng_state().numpy().tobytes(),
        "scaler": scaler.state_dict(),
        "rate": scheduler.get_last_lr(),
        "losses": losses,
        "edges": run.epoch if run is not None else EPOCHS,
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loop_under_grow_trains_the_same_network(serving: Esper, backend: str) -> None:
    """Goal: growing costs an ungrown network nothing. Method: a loop alone and under noop, 200 steps, bit for bit."""
    alone = trained(backend=backend)
    under = trained(backend=backend, settings=Settings(home=serving.home))
    assert under == alone
    assert under["scaler"]["scale"] != 1024.0, "the scaler was at work"


def test_the_comparison_sees_one_random_number() -> None:
    """Goal: the test above can fail. Method: one number drawn from the global stream, everything else alike."""
    alone, disturbed = trained(backend=""), trained(backend="", disturb=True)
    assert {name for name in alone if alone[name] != disturbed[name]} == {"rng"}
