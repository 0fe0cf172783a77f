"""What the end of a block leaves on the model: what it computes with, and nothing else."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import esper
from esper.core.ranks import ALONE
from esper.leyline import messages as ly
from esper.weatherlight._grow import _entry
from tests.weatherlight.loops import MemorySide, OwnLoop, grower, perceptron, samples

#: The stage that a block ends in, and whether the seed is then heard.
ENDS = {
    ly.SEED_STAGE_TRAINING: False,
    ly.SEED_STAGE_BLENDING: True,
    ly.SEED_STAGE_FOSSILIZED: True,
}


def hooks(model: nn.Module) -> int:
    """Return how many hooks of any kind are on the model."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_load_state_dict_post_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@pytest.mark.parametrize("stage", ENDS, ids=ly.SeedLifecycleStage.Name)
def test_only_what_is_heard_stays(stage: ly.SeedStage) -> None:
    """Goal: an unheard seed leaves no hook, module, optimiser or memory. Method: end a block in each stage; outputs are
    as before, and the log's end lists the seed in its last stage."""
    model = perceptron()
    before = hooks(model)
    loop = OwnLoop(model, grower(until=stage))
    for _ in range(16):
        loop.epoch()
        if loop.stages == [stage]:
            break
    loop.epoch()
    (live,) = loop.run._controller._bed.live.values()  # type: ignore[union-attr]  # planted by its probe
    things = [weakref.ref(live.seed), weakref.ref(live.trainer), *map(weakref.ref, live.seed.parameters())]
    del live
    inputs, _ = samples(7)
    was = model.eval()(inputs)
    loop.end()
    assert torch.equal(model(inputs), was)
    assert loop.side.end is not None
    assert [seed.stage for seed in loop.side.end.seeds] == [stage] == loop.stages
    gc.collect()
    if ENDS[stage]:
        assert hooks(model) == before + 1
        assert things[0]() is not None
    else:
        assert hooks(model) == before
        assert [thing() for thing in things] == [None] * len(things)
        assert not [name for name, _ in model.named_modules() if "esper_" in name]


def test_a_seed_that_is_not_heard_yet_is_no_part_of_the_model() -> None:
    """Goal: a seed that joined and has alpha 0 goes as well. Method: end a block at the very edge of its blend."""
    model = perceptron()
    loop = OwnLoop(model, grower(until=ly.SEED_STAGE_BLENDING))
    while loop.stages != [ly.SEED_STAGE_BLENDING]:
        loop.epoch()
    assert [name for name, _ in model.named_modules() if "esper_" in name]
    loop.end()
    assert not [name for name, _ in model.named_modules() if "esper_" in name]
    assert loop.stages == [ly.SEED_STAGE_BLENDING]


def test_a_block_that_raises_leaves_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: nor by an exception. Method: the real `grow` over a log in memory; its loop fails while a seed trains."""
    side = MemorySide(grower(until=ly.SEED_STAGE_TRAINING))

    @contextmanager
    def nothing(_: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(_entry, "_speaking", lambda *_, **__: side)
    monkeypatch.setattr(_entry, "starting", nothing)
    monkeypatch.setattr(_entry, "ranks_of", lambda *_, **__: ALONE)
    model, loss = perceptron(), nn.CrossEntropyLoss()
    before = hooks(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def train() -> None:
        with esper.grow(
            model, slots=["1"], optimizer=optimizer, loss_fn=loss, probe=[samples(999, 64)], settings=side.settings
        ) as run:
            for step in range(30):
                inputs, targets = samples(step)
                optimizer.zero_grad()
                loss(model(inputs), targets).backward()
                optimizer.step()
                run.step((inputs, targets))
                run.tick({"loss": 1.0}, every=10)
            assert [seed.stage for seed in run.seeds] == [ly.SEED_STAGE_TRAINING]
            assert hooks(model) > before
            raise RuntimeError("the loop fails")

    with pytest.raises(RuntimeError, match="the loop fails"):
        train()
    assert side.failure == "RuntimeError"
    assert hooks(model) == before
