"""What a removed seed leaves on a CUDA device; collected only where there is one (conftest.py).

`python -m benchmarks.training --device cuda` shows the same on networks of a real size.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from esper.kasmina.testing import InMemoryRuntime, bypass
from esper.leyline import messages as ly
from tests.kasmina.support import PROBE, Loop, batch, mlp, seeded
from tests.kasmina.test_operations import CONFIG


def culled(loop: Loop) -> None:
    """Order a cull and let the seed fade."""
    loop.order(ly.SEED_OP_CULL, seed_id="1.1")
    loop.train_epoch(10)


@pytest.mark.parametrize(
    ("stage", "removal"),
    [(ly.SEED_STAGE_PROBATIONARY, culled), (ly.SEED_STAGE_FOSSILIZED, lambda loop: loop.prune("1.1"))],
    ids=["cull", "pruning"],
)
def test_a_removed_seed_leaves_no_memory_on_the_device(
    stage: ly.SeedLifecycleStage, removal: Callable[[Loop], object]
) -> None:
    """Goal: torch.cuda.memory_allocated is what it was before the seed. Method: a seed of 1,024 units on a CUDA host
    that has its optimiser's state, grown and removed again.
    """
    device = torch.device("cuda")

    def on_device(step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = batch(step)
        return inputs.to(device), targets.to(device)

    probe = [(inputs.to(device), targets.to(device)) for inputs, targets in PROBE]
    runtime = InMemoryRuntime({"BYPASS": bypass(width=1024)})
    loop = Loop(seeded(mlp).to(device), ["1"], config=CONFIG, runtime=runtime, probe=probe, data=on_device)
    loop.train_epoch(10)
    loop.optimizer.zero_grad()
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    loop.grow("1", stage)
    loop.train_epoch(10)
    assert torch.cuda.memory_allocated(device) > before + 50_000
    removal(loop)
    loop.optimizer.zero_grad()
    gc.collect()
    assert torch.cuda.memory_allocated(device) == before
