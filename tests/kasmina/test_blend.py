"""Blend modes: exact at both ends, guarded in between, chosen and recorded by the order that grafts."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from esper.kasmina import AlphaSchedule, GateLimits, KasminaConfig
from esper.kasmina.grafting._blend import BLEND_MODES, channel_dim, mixed, share
from esper.kasmina.grafting._seed import Role
from esper.leyline import messages as ly
from tests.kasmina.support import PROBE, Loop, batch, mlp, outputs, seeded
from tests.kasmina.test_compiled import evaluated
from tests.kasmina.test_sockets import epochs, socketed

MODES = sorted(BLEND_MODES)
ADDING = [mode for mode in MODES if mode != ly.BLEND_MODE_CONVEX]
WIDE = GateLimits(training_epochs_min=1, shadow_loss_rise_max=99.0, gain_min=-99.0)
CONFIG = KasminaConfig(warmup_steps=5, blend_steps=8, limits=WIDE)
SHAPES = {"vector": (5, 7), "sequence": (3, 4, 7), "map1d": (3, 7, 4), "map2d": (2, 6, 3, 3)}


def activations(layout: str) -> Tensor:
    """Return a module's output of a layout, drawn from a seed."""
    return torch.randn(SHAPES[layout], generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("mode", ADDING, ids=ly.BlendMode.Name)
def test_the_share_is_exact_at_both_ends_and_only_rises(mode: ly.BlendMode, layout: str) -> None:
    """Goal: alpha 0 is silence and alpha 1 all of it, at every number of the output. Method: 21 alphas in order."""
    output, dim = activations(layout), channel_dim(layout)
    steps = [torch.broadcast_to(share(mode, torch.tensor(k / 20), output, dim=dim), output.shape) for k in range(21)]
    assert torch.equal(steps[0], torch.zeros_like(output))
    assert torch.equal(steps[-1], torch.ones_like(output))
    assert all(bool((after >= before).all()) for before, after in itertools.pairwise(steps))


def test_channels_come_one_after_the_other() -> None:
    """Goal: CHANNEL is what it says. Method: four channels at alpha 0.375: one whole, the next half-way, two silent."""
    for layout, shape in (("vector", (1, 4)), ("map2d", (1, 4, 2, 2))):
        weights = share(ly.BLEND_MODE_CHANNEL, torch.tensor(0.375), torch.ones(shape), dim=channel_dim(layout))
        assert weights.flatten().tolist() == [1.0, 0.5, 0.0, 0.0]


def test_the_unsure_hear_a_seed_first() -> None:
    """Goal: CONFIDENCE looks at each sample. Method: a sample without a winner, a certain one, one channel only."""
    output = torch.tensor([[0.0, 0.0, 0.0], [99.0, 0.0, 0.0]])
    weights = share(ly.BLEND_MODE_CONFIDENCE, torch.tensor(0.25), output, dim=-1)
    assert weights.tolist() == [[0.5], [0.0]]
    assert share(ly.BLEND_MODE_CONFIDENCE, torch.tensor(0.25), output[:, :1], dim=-1).tolist() == [[0.5], [0.5]]


@given(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32))
def test_convex_ends_in_the_seeds_own_bits(host: float, seed: float) -> None:
    """Goal: at alpha 1 nothing of the host is left, rounding included. Method: random pairs, -0.0 among them."""
    output, instead = torch.tensor([host, host]), torch.tensor([seed, -0.0])
    assert mixed(torch.tensor(1.0), output, instead).numpy().tobytes() == instead.numpy().tobytes()
    assert torch.allclose(mixed(torch.tensor(0.5), output, instead), (output + instead) / 2)


def grafted(mode: ly.BlendMode, curve: ly.AlphaCurve = ly.ALPHA_CURVE_UNSPECIFIED) -> Loop:
    """Return a loop whose seed began to blend in a mode at the last edge."""
    loop = Loop(seeded(mlp), ["1"], config=CONFIG)
    loop.germinate("1")
    for _ in range(3):
        loop.train_epoch(6)
    decision = loop.order(ly.SEED_OP_START_GRAFTING, seed_id="1.1", blend_mode=mode, alpha_curve=curve)
    if decision.result != ly.COMMAND_RESULT_APPLIED:  # In the module's place it is worse than the module.
        assert (mode, decision.reason) == (ly.BLEND_MODE_CONVEX, "gate:SEED_GATE_G2_STABILITY")
        loop.manager._bed.blend("1.1", steps=8, mode=mode)
    return loop


@pytest.mark.parametrize("mode", MODES, ids=ly.BlendMode.Name)
def test_every_mode_is_the_host_at_zero_and_the_fossil_at_one(mode: ly.BlendMode) -> None:
    """Goal: exactness at both ends, on a real host. Method: before the first step the module returns the very same
    tensor; half-way the outputs are others; at alpha 1 they are bit for bit those of the seed as a fossil.
    """
    loop = grafted(mode)
    live = loop.manager._bed.live["1.1"]
    bare = mlp()
    bare.load_state_dict({name: value for name, value in loop.model.state_dict().items() if "esper_" not in name})
    assert live.seed.role is Role.BLENDED
    assert torch.equal(outputs(loop.model), outputs(bare))
    assert live.seed.hook(loop.model[1], (batch(0)[0],), torch.ones(16, 8)) is None  # type: ignore[index]
    assert live.seed.blender is not None
    for _ in range(4):
        live.seed.blender.advance_alpha()
    half = outputs(loop.model)
    assert not torch.equal(half, outputs(bare))
    for _ in range(4):
        live.seed.blender.advance_alpha()
    whole = outputs(loop.model)
    assert not torch.equal(whole, half)
    live.seed.fossilize()
    assert torch.equal(outputs(loop.model), whole)


@pytest.mark.parametrize("mode", MODES, ids=ly.BlendMode.Name)
def test_no_mode_lets_through_what_is_not_finite(mode: ly.BlendMode) -> None:
    """Goal: the guard covers every mode, forwards and backwards. Method: a seed of infinite weights half-way up: the
    host hears its own output, its gradients are finite, and the seed is culled at the edge.
    """
    loop = grafted(mode)
    live = loop.manager._bed.live["1.1"]
    assert live.seed.blender is not None
    for _ in range(4):
        live.seed.blender.advance_alpha()
    with torch.no_grad():
        for parameter in live.seed.parameters():
            parameter.fill_(float("inf"))
    bare = mlp()
    bare.load_state_dict({name: value for name, value in loop.model.state_dict().items() if "esper_" not in name})
    assert torch.equal(outputs(loop.model), outputs(bare))
    loop.model.train()
    nn.functional.cross_entropy(loop.model(PROBE[0][0]), PROBE[0][1]).backward()
    host = [value for name, value in loop.model.named_parameters() if "esper_" not in name]
    assert all(value.grad is not None and bool(torch.isfinite(value.grad).all()) for value in host)
    events = loop.train_epoch(2)
    assert [event.reason for event in events] == ["fault:non_finite"] * 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("curve", [*ly.AlphaCurve.values()], ids=ly.AlphaCurve.Name)
def test_an_order_may_name_the_curve(curve: ly.AlphaCurve) -> None:
    """Goal: the curve is the order's, and the run's own without one; mode and curve stand in the move. Method: alpha
    after every step against the schedule.
    """
    loop = grafted(ly.BLEND_MODE_CHANNEL, curve)
    (move,) = [event for event in loop.log if getattr(event, "to_stage", None) == ly.SEED_STAGE_BLENDING]
    assert isinstance(move, ly.SeedStageChanged)
    assert (move.blend_mode, move.alpha_curve) == (ly.BLEND_MODE_CHANNEL, curve or ly.ALPHA_CURVE_COSINE)
    name = ly.AlphaCurve.Name(curve or ly.ALPHA_CURVE_COSINE).removeprefix("ALPHA_CURVE_").lower()
    schedule = AlphaSchedule(name, 8)  # type: ignore[arg-type]
    for step in range(1, 10):
        loop.step()
        assert loop.manager._bed.live["1.1"].seed.alpha == schedule.at(step)


def test_g2_measures_a_convex_seed_in_its_modules_place() -> None:
    """Goal: the gate's figure is of the mode that was asked for. Method: the same run grafts in CONVEX and beside its
    module; the host's loss is the same, and that with the seed is, in CONVEX, the loss of the seed alone.
    """
    figures = {}
    for mode in (ly.BLEND_MODE_CONVEX, ly.BLEND_MODE_RESIDUAL):
        loop = grafted(mode)
        live = loop.manager._bed.live["1.1"]
        (gate,) = [
            event
            for event in loop.log
            if isinstance(event, ly.GateEvaluated) and event.gate == ly.SEED_GATE_G2_STABILITY
        ]
        figures[mode] = {check.name: (check.value, check.bound) for check in gate.checks}["loss_seed_on"]
        assert live.seed.blender is not None
        for _ in range(8):
            live.seed.blender.advance_alpha()
        loop.manager._bed.measure(["1.1"], epoch=99)
        assert live.held_out is not None
        assert live.held_out.host == pytest.approx(figures[mode][0], rel=1e-6)
    assert figures[ly.BLEND_MODE_CONVEX][1] == figures[ly.BLEND_MODE_RESIDUAL][1]
    assert figures[ly.BLEND_MODE_CONVEX][0] != figures[ly.BLEND_MODE_RESIDUAL][0]


def test_no_mode_compiles_a_host_anew() -> None:
    """Goal: alpha may move in any mode. Method: a socketed host under torch's refusal to compile, CONFIDENCE up and
    down; compiled and eager give the same bits.
    """
    loop, compiled = socketed()
    (spec,) = loop.manager._slots.values()
    with torch.compiler.set_stance("fail_on_recompile"):
        loop.epoch = 1
        seed_id = loop.germinate(spec.slot).seed_id
        epochs(loop, compiled, 2)
        decision = loop.order(ly.SEED_OP_START_GRAFTING, seed_id=seed_id, blend_mode=ly.BLEND_MODE_CONFIDENCE)
        assert decision.result == ly.COMMAND_RESULT_APPLIED, decision.reason
        epochs(loop, compiled, 1)
        loop.order(ly.SEED_OP_CULL, seed_id=seed_id, parameters={"fall_steps": 9.0})
        epochs(loop, compiled, 1)
        assert 0.0 < loop.manager._bed.live[seed_id].seed.alpha < 1.0
        assert torch.equal(evaluated(loop, compiled), evaluated(loop, loop.model))
