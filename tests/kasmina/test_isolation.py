"""The proof that a seed in TRAINING leaves no trace on its host, and that each part of the isolation is needed."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from esper.kasmina.grafting._passes import Isolation
from esper.leyline import messages as ly
from tests.kasmina.support import HOSTS, PROBE, Loop, all_bytes, optimizer_bytes, outputs, seeded

STEPS = 200
EPOCH = 50


class Trajectory:
    """Everything of a host that a run of 200 steps decides, bit for bit."""

    def __init__(self, loop: Loop, *, zero_late: bool) -> None:
        torch.manual_seed(11)
        loop.model.train()
        for step in range(1, STEPS + 1):
            loop.step(zero_late=zero_late)
            if step % EPOCH == 0:
                assert loop.manager.end_epoch(step // EPOCH) == []
        self.weights = all_bytes(loop.model)
        self.moments = optimizer_bytes(loop.optimizer)
        self.losses = loop.losses
        self.random_stream = torch.get_rng_state().numpy().tobytes()
        self.outputs = outputs(loop.model).numpy().tobytes()

    def differences(self, other: Trajectory) -> list[str]:
        """Return the names of what differs."""
        return [name for name in vars(self) if getattr(self, name) != getattr(other, name)]


@functools.lru_cache(maxsize=32)
def run(host: str, *, seed: bool, isolation: Isolation | None = None, zero_late: bool = False) -> Trajectory:
    """Train a host for 200 steps, with or without a seed (dropout inside) in TRAINING all along."""
    factory, slot = HOSTS[host]
    model = seeded(factory)
    loop = Loop(model, [slot], isolation=isolation)
    if not seed:
        return Trajectory(loop, zero_late=zero_late)
    decision = loop.germinate(slot, "DROPPING")
    assert decision.result == ly.COMMAND_RESULT_APPLIED
    before = {name: tensor.clone() for name, tensor in loop.manager.state().items()}
    trajectory = Trajectory(loop, zero_late=zero_late)
    after = loop.manager.state()
    state = loop.state(decision.seed_id)
    assert state.stage == ly.SEED_STAGE_TRAINING
    assert state.metrics["shadow_steps"] == STEPS, "the seed was trained at every step"
    assert any(not torch.equal(before[name], after[name]) for name in before), "and its weights moved"
    assert torch.backends.mha.get_fastpath_enabled(), "torch's own switches are as before"
    return trajectory


@pytest.mark.parametrize("zero_late", [False, True], ids=["zero_grad first", "zero_grad after step"])
@pytest.mark.parametrize("host", HOSTS)
def test_host_is_byte_equal_to_a_run_without_the_seed(host: str, zero_late: bool) -> None:
    """Goal: alpha 0 means nothing at all. Method: 200 steps with a seed in TRAINING (and probes) and without;
    weights, buffers, moments, losses, outputs and the random stream must be equal bit for bit.
    """
    assert run(host, seed=True, zero_late=zero_late).differences(run(host, seed=False)) == []


#: What is switched off, the host on which it must show, and what of the host it must at least change.
CONTROLS = {
    "no detach": (Isolation(monitor=False, detach=False), "mlp", "weights"),
    "shared buffers": (Isolation(monitor=False, clone_buffers=False), "mlp", "weights"),
    "shared buffers of BatchNorm, no eval mode": (
        Isolation(monitor=False, clone_buffers=False, eval_mode=False),
        "residual",
        "weights",
    ),
    "shared random stream": (Isolation(monitor=False, fork_rng=False), "mlp", "random_stream"),
    "shared random stream, no eval mode": (
        Isolation(monitor=False, fork_rng=False, eval_mode=False),
        "transformer",
        "weights",
    ),
}


@pytest.mark.parametrize("control", CONTROLS)
def test_negative_controls_fail(control: str) -> None:
    """Goal: the proof can fail. Method: the same 200 steps with one part of the isolation switched off, and with it
    the monitor, which would stop the seed (the host's gradients cleared after its step, as many loops do); the host
    must end otherwise than without the seed.
    """
    isolation, host, part = CONTROLS[control]
    differences = run(host, seed=True, isolation=isolation, zero_late=True).differences(run(host, seed=False))
    assert part in differences
    assert "weights" in differences, "the host's trajectory itself has changed"


def test_hook_returns_the_very_tensor_at_alpha_zero() -> None:
    """Goal: at alpha 0 nothing is computed. Method: the slot module's output object is what the host goes on with."""
    factory, slot = HOSTS["residual"]
    loop = Loop(seeded(factory), [slot])
    loop.germinate(slot)
    seen: list[torch.Tensor] = []
    block = loop.model.get_submodule(slot)
    inner = block[-1]
    inner.register_forward_hook(lambda _module, _args, output: seen.append(output))
    block.register_forward_hook(lambda _module, _args, output: seen.append(output))
    loop.model(PROBE[0][0])
    assert seen[0] is seen[1]


def test_module_flags_come_back_one_by_one() -> None:
    """Goal: a frozen BatchNorm stays frozen. Method: one part in eval mode, a shadow step, all flags as before."""
    factory, slot = HOSTS["mlp"]
    loop = Loop(seeded(factory), [slot])
    loop.germinate(slot)
    loop.model.train()
    frozen = loop.model.get_submodule("2.1")
    frozen.eval()
    flags = {name: module.training for name, module in loop.model.named_modules()}
    loop.step()
    assert {name: module.training for name, module in loop.model.named_modules()} == flags
    assert not frozen.training


def test_a_failing_host_forward_leaves_no_trace() -> None:
    """Goal: isolation holds on errors. Method: a host that raises in the shadow; flags and random stream as before."""

    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 8)
            self.head = nn.Linear(8, 3)
            self.armed = False

        def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
            if self.armed:
                raise RuntimeError("broken host")
            out: torch.Tensor = self.head(self.layer(x_BF))
            return out

    model = Fails()
    loop = Loop(model, ["layer"])
    loop.germinate("layer")
    model.train()
    model.armed = True
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="broken host"):
        loop.manager.after_step(*PROBE[0])
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    model.armed = False
    assert outputs(model).shape == (64, 3), "and the hook is back to silence"
