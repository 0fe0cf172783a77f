"""G1 and G3: the faults that they guard against, injected into real seeds on real hosts and caught."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from esper.core.ports import EdgeDecision
from esper.kasmina import GateLimits, GradientEvidence, InterfaceEvidence, gradient_gate, interface_gate
from esper.kasmina.gates._gradients import NO_GRADIENTS, GradientRecord
from esper.kasmina.grafting._passes import Isolation
from esper.kasmina.testing import InMemoryRuntime, zero_linear
from esper.leyline import messages as ly
from tests.kasmina.support import FACTORIES, Loop, all_bytes, mlp, outcome_of, outputs, seed_command, seeded

LIMITS = GateLimits()
NORMS = st.floats(1e-6, 1e3)


class Trick(nn.Module):
    """Zeros in a sound way at first; `mode` says what goes wrong, and when."""

    def __init__(self, features: int, outputs: int, mode: str) -> None:
        super().__init__()
        self.layer = zero_linear(features, outputs)
        self.mode = mode

    def forward(self, x_BF: Tensor) -> Tensor:
        out: Tensor = self.layer(x_BF)
        modes = {
            "vanished": lambda: out.detach() + 0.0 * out,
            "exploded": lambda: 1e9 * out,
            "not finite": lambda: out + (out * 0.0).square().sqrt(),
            "broadcast": lambda: out[:, :1],
            "promoted": lambda: out.double(),
            "broken": lambda: out @ out,
            "sound": lambda: out,
        }
        return modes[self.mode]()


def trick_loop(mode: str, **options: object) -> Loop:
    """Return a host whose runtime makes tricks."""

    def make(request: ly.KernelRequestSpec, _generator: torch.Generator) -> nn.Module:
        return Trick(request.in_shape[0], request.out_shape[0], mode)

    return Loop(seeded(mlp), ["1"], runtime=InMemoryRuntime({**FACTORIES, "TRICK": make}), **options)  # type: ignore[arg-type]  # options are Loop's own


def failed(decision: EdgeDecision, gate: ly.SeedLifecycleGate) -> set[str]:
    """Return the names of the checks of `gate` that failed in a rejected decision."""
    assert decision.result == ly.COMMAND_RESULT_REJECTED
    assert decision.reason == f"gate:{ly.SeedLifecycleGate.Name(gate)}"
    gates = [event for event in decision.events if isinstance(event, ly.GateEvaluated) and event.gate == gate]
    return {check.name for check in gates[0].checks if not check.passed}


@pytest.mark.parametrize(
    ("mode", "checks"),
    [
        ("vanished", {"gradient_norm_not_vanished"}),
        ("exploded", {"gradient_norm_max"}),
        ("not finite", {"norms_not_finite", "gradient_norm_max", "gradient_norm_not_vanished"}),
    ],
)
def test_g1_keeps_out_a_seed_whose_gradient_is_sick(mode: str, checks: set[str]) -> None:
    """Goal: a seed that cannot learn is found before it is planted. Method: a kernel whose backward vanishes, explodes
    or is NaN, though its output is a sound zero; the host is byte for byte as before, and the slot free.
    """
    loop = trick_loop(mode)
    before, hooks = all_bytes(loop.model), sum(len(module._forward_hooks) for module in loop.model.modules())
    decision = loop.germinate("1", "TRICK")
    assert failed(decision, ly.SEED_GATE_G1_GRADIENT_HEALTH) == checks
    assert decision.gate_verdicts == {"SEED_GATE_G0_SANITY": True, "SEED_GATE_G1_GRADIENT_HEALTH": False}
    assert all_bytes(loop.model) == before
    assert all(parameter.grad is None for parameter in loop.model.parameters())
    assert sum(len(module._forward_hooks) for module in loop.model.modules()) == hooks
    assert loop.manager.slot_states()[0].seed_id == ""


@pytest.mark.parametrize(
    "isolation",
    [Isolation(detach=False), Isolation(clone_buffers=False), Isolation(fork_rng=False, eval_mode=False)],
    ids=["no detach", "shared buffers", "shared random stream"],
)
def test_g1_keeps_out_a_seed_that_reaches_the_host(isolation: Isolation) -> None:
    """Goal: G1 measures isolation. Method: switch off one part of it; the rehearsal finds the host changed, and the
    breach is counted.
    """
    loop = trick_loop("sound", isolation=isolation)
    loop.model.train()
    assert "host_changed_by_seed" in failed(loop.germinate("1", "TRICK"), ly.SEED_GATE_G1_GRADIENT_HEALTH)
    assert loop.manager.figures()["kasmina.isolation.violations"] >= 1


def test_g1_sees_a_write_that_raises_no_version() -> None:
    """Goal: the rehearsal compares contents. Method: a kernel that writes to the host's weights through `.data`."""
    reached: list[nn.Module] = []

    class Writes(Trick):
        def forward(self, x_BF: Tensor) -> Tensor:
            if reached and torch.is_grad_enabled():
                next(reached[0].parameters()).data.add_(1.0)
            return super().forward(x_BF)

    runtime = InMemoryRuntime({"WRITES": lambda request, _: Writes(request.in_shape[0], request.out_shape[0], "sound")})
    loop = Loop(seeded(mlp), ["1"], runtime=runtime)
    reached.append(loop.model)
    assert "host_changed_by_seed" in failed(loop.germinate("1", "WRITES"), ly.SEED_GATE_G1_GRADIENT_HEALTH)


def test_g1_asks_for_the_gradients_of_the_last_epoch() -> None:
    """Goal: BLENDING wants a gradient that lived through the epoch. Method: a sound seed trains three epochs, then its
    gradient vanishes for one; START_GRAFTING is refused, and granted after an epoch in which it is back.
    """
    loop = trick_loop("sound")
    seed_id = loop.germinate("1", "TRICK").seed_id
    body = loop.manager._bed.live[seed_id].seed.body
    assert isinstance(body, Trick)
    for _ in range(3):
        loop.train_epoch(10)
    body.mode = "vanished"
    loop.train_epoch(10)
    refused = loop.order(ly.SEED_OP_START_GRAFTING, seed_id=seed_id)
    assert "gradient_norm_not_vanished" in failed(refused, ly.SEED_GATE_G1_GRADIENT_HEALTH)
    body.mode = "sound"
    loop.train_epoch(10)
    granted = loop.order(ly.SEED_OP_START_GRAFTING, seed_id=seed_id)
    assert granted.gate_verdicts["SEED_GATE_G1_GRADIENT_HEALTH"]


def test_g1_fails_an_epoch_without_a_step() -> None:
    """Goal: no evidence is no health. Method: an edge after which the seed took no step at all."""
    loop = trick_loop("sound")
    seed_id = loop.germinate("1", "TRICK").seed_id
    loop.train_epoch(5)
    loop.train_epoch(0)
    refused = loop.order(ly.SEED_OP_START_GRAFTING, seed_id=seed_id)
    assert "gradient_steps" in failed(refused, ly.SEED_GATE_G1_GRADIENT_HEALTH)


@given(NORMS, NORMS, st.integers(0, 2), st.integers(0, 2))
def test_g1_is_what_it_says(low: float, high: float, host: int, seed: int) -> None:
    """Goal: G1 = measured, finite, within bounds, isolated. Method: random evidence against the definition."""
    record = GradientRecord(3, min(low, high), max(low, high))
    gate = gradient_gate(GradientEvidence(record, host, seed), LIMITS)
    assert gate.gate == ly.SEED_GATE_G1_GRADIENT_HEALTH
    assert gate.passed == (host == seed == 0)
    assert not gradient_gate(GradientEvidence(NO_GRADIENTS, 0, 0), LIMITS).passed
    for value in (math.nan, math.inf):
        assert not gradient_gate(GradientEvidence(GradientRecord(3, low, value), 0, 0), LIMITS).passed


@pytest.mark.parametrize(
    ("mode", "checks"),
    [
        ("broadcast", {"shapes_differ"}),
        ("promoted", {"dtypes_differ"}),
        ("broken", {"shapes_differ", "dtypes_differ", "devices_differ", "outputs_not_finite"}),
    ],
)
def test_g3_finds_a_seed_that_does_not_fit_any_more(mode: str, checks: set[str]) -> None:
    """Goal: what broadcasting and promotion would hide is found. Method: a seed at alpha 1 whose output changes its
    shape or dtype, or that fails; it stays BLENDING. Fit again, it may go on.
    """
    loop = trick_loop("sound")
    seed_id = loop.grow("1", ly.SEED_STAGE_BLENDING, blueprint="TRICK")
    loop.train_epoch(10)
    body = loop.manager._bed.live[seed_id].seed.body
    assert isinstance(body, Trick)
    body.mode = mode
    before = all_bytes(loop.model)
    assert failed(loop.order(ly.SEED_OP_STABILIZE, seed_id=seed_id), ly.SEED_GATE_G3_INTERFACE) == checks
    assert all_bytes(loop.model) == before
    assert loop.state(seed_id).stage == ly.SEED_STAGE_BLENDING
    body.mode = "sound"
    loop.train_epoch(5)
    granted = loop.order(ly.SEED_OP_STABILIZE, seed_id=seed_id)
    assert granted.gate_verdicts == {"SEED_GATE_G3_INTERFACE": True}
    move = granted.events[-1]
    assert isinstance(move, ly.SeedStageChanged)
    assert move.metrics["interface_latency_ms"] > 0.0, "the latency stands as evidence"
    assert torch.isfinite(outputs(loop.model)).all()


def test_g3_decides_nothing_by_latency_and_nothing_without_evidence() -> None:
    """Goal: clocks steer nothing, and what was not measured fails. Method: any latency; none; a slot never called."""
    sound = {"calls": 1, "shapes_differ": 0, "dtypes_differ": 0, "devices_differ": 0, "not_finite": 0}
    assert interface_gate(InterfaceEvidence(**sound, latency_ms=1e9)).passed
    assert not interface_gate(InterfaceEvidence(**sound, latency_ms=math.nan)).passed
    assert not interface_gate(InterfaceEvidence(**{**sound, "calls": 0}, latency_ms=1.0)).passed


def test_a_recording_from_before_the_gates_stays_valid() -> None:
    """Goal: old runs re-execute. Method: a germination and a stabilising recorded without G1's and G3's verdicts; the
    re-execution measures neither and names them as not measured; a new recording is measured again.
    """
    loop = trick_loop("vanished")
    command = seed_command(ly.SEED_OP_GERMINATE, slot="1", blueprint="TRICK")
    request = loop.manager._slots["1"].request("TRICK", {})
    digest = loop.manager._examiner._runtime.fetch_kernel(request, run_id="any", wait_seconds=0.0).artifact_ref
    then = ly.CommandOutcome(epoch=1, result=ly.COMMAND_RESULT_APPLIED, command=command, seed_id="1.1")
    then.kernel_digest = digest
    then.gate_verdicts["SEED_GATE_G0_SANITY"] = True
    old = loop.manager.decide(None, epoch=1, recorded=then)
    named = [list(event.gates_not_measured) for event in old.events if isinstance(event, ly.SeedStageChanged)]
    assert named == [[], [ly.SEED_GATE_G1_GRADIENT_HEALTH]]
    assert loop.manager.multiply_adds == 0, "nothing was measured"
    fresh = trick_loop("sound")
    now = fresh.germinate("1", "TRICK")
    again = Loop(seeded(mlp), ["1"], runtime=fresh.manager._examiner._runtime)  # type: ignore[arg-type]  # the very runtime
    repeated = again.manager.decide(None, epoch=1, recorded=outcome_of(now, command, epoch=1))
    assert repeated.gate_verdicts == now.gate_verdicts
    assert again.manager.multiply_adds == fresh.manager.multiply_adds > 0
