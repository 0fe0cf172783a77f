"""Seeds on a host that torch.compile compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional

from esper.leyline import messages as ly
from tests.kasmina.support import HOSTS, PROBE, Loop, all_bytes, batch, seeded

#: Where a graph ends in the middle of a forward, torch itself looks at the gradient of an activation, and warns.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Backend:
    """A compiler that runs what dynamo captured, and counts how often it was asked."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: fx.GraphModule, _inputs: Sequence[Any]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def compiled_loop(name: str = "mlp") -> tuple[Loop, Any, Backend]:
    """Return a loop over a host, the host compiled, and what compiled it."""
    factory, slot = HOSTS[name]
    loop, backend = Loop(seeded(factory), [slot]), Backend()
    return loop, torch.compile(loop.model, backend=backend), backend


def step(loop: Loop, compiled: Any) -> None:
    """Take one step through the compiled host."""
    inputs, targets = batch(loop.steps)
    loop.manager.before_step()
    loop.optimizer.zero_grad()
    functional.cross_entropy(compiled(inputs), targets).backward()
    loop.optimizer.step()
    loop.manager.after_step(inputs, targets)
    loop.steps += 1


def evaluated(loop: Loop, model: Any) -> Tensor:
    """Return outputs on the probe in eval mode, with the buffers as they were before."""
    before = copy.deepcopy(loop.model.state_dict())
    loop.model.eval()
    with torch.no_grad():
        outputs: Tensor = model(PROBE[0][0])
    loop.model.load_state_dict(before)
    loop.model.train()
    return outputs


def test_a_compiled_host_hears_a_seed_that_came_later() -> None:
    """Goal: no graft is deaf. Method: compile before a seed comes; with alpha above 0 compare with the eager host."""
    loop, compiled, _ = compiled_loop()
    without = evaluated(loop, compiled)
    assert torch.equal(without, evaluated(loop, loop.model))
    seed_id = loop.grow("1", ly.SEED_STAGE_BLENDING)
    assert torch.equal(evaluated(loop, compiled), evaluated(loop, loop.model)), "at alpha 0"
    for _ in range(4):
        step(loop, compiled)
    (live,) = loop.manager._bed.live.values()
    assert live.seed.alpha > 0.0
    heard = evaluated(loop, loop.model)
    assert torch.equal(evaluated(loop, compiled), heard)
    loop.epoch += 1
    assert (
        loop.order(ly.SEED_OP_CULL, seed_id=seed_id, parameters={"fall_steps": 0.0}).result == ly.COMMAND_RESULT_APPLIED
    )
    deaf = evaluated(loop, loop.model)
    assert not torch.equal(deaf, heard)
    assert torch.equal(evaluated(loop, compiled), deaf), "a seed that went is not heard"


def test_a_rising_alpha_compiles_nothing_anew() -> None:
    """Goal: one compilation for each graft. Method: count the graphs over every step of a rise."""
    loop, compiled, backend = compiled_loop()
    step(loop, compiled)
    before = backend.graphs
    step(loop, compiled)
    assert backend.graphs == before
    loop.grow("1", ly.SEED_STAGE_BLENDING)
    for _ in range(2):  # Alpha leaves 0 after the first.
        step(loop, compiled)
    risen = backend.graphs
    assert risen > before, "the graft is compiled in"
    alphas = []
    for _ in range(6):
        step(loop, compiled)
        (live,) = loop.manager._bed.live.values()
        alphas.append(live.seed.alpha)
    assert len(set(alphas)) == 6
    assert backend.graphs == risen


def test_a_compiled_host_trains_as_an_eager_one() -> None:
    """Goal: gradients pass through the graft. Method: ten blending steps, compiled and not, host and seed compared."""
    states = []
    for through_compiled in (False, True):
        loop, compiled, _ = compiled_loop("residual")
        loop.grow("block", ly.SEED_STAGE_BLENDING)
        torch.manual_seed(4)
        for _ in range(10):
            step(loop, compiled if through_compiled else loop.model)
        states.append(loop.model.state_dict())
    eager, through = states
    for name, tensor in eager.items():
        torch.testing.assert_close(through[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_a_copy_of_a_grown_host_has_seeds_of_its_own() -> None:
    """Goal: deepcopy, as for an EMA, keeps working. Method: change the original's seed, look at the copy."""
    loop, _, _ = compiled_loop()
    loop.grow("1", ly.SEED_STAGE_FOSSILIZED)
    twin = copy.deepcopy(loop.model)
    assert all_bytes(twin) == all_bytes(loop.model)
    before = evaluated(loop, loop.model)
    (live,) = loop.manager._bed.live.values()
    with torch.no_grad():
        for parameter in live.seed.parameters():
            parameter.add_(1.0)
    assert not torch.equal(evaluated(loop, loop.model), before)
    twin.eval()
    with torch.no_grad():
        assert torch.equal(twin(PROBE[0][0]), before)
