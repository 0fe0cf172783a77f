"""A seed's life on a host: it learns in shadow, blends, proves itself, stays, or goes without a trace."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from esper.core.errors import IntegrityError
from esper.core.ports import FetchedKernel
from esper.kasmina import AlphaSchedule, GateLimits, KasminaConfig, KasminaSeedManager, discover_slots
from esper.kasmina.testing import InMemoryRuntime
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from tests.kasmina.support import (
    FACTORIES,
    HOSTS,
    PROBE,
    RUN_ID,
    Loop,
    all_bytes,
    batch,
    mlp,
    outputs,
    seed_command,
    seeded,
)

JOINT_AND_BEFORE = [
    ly.SEED_STAGE_TRAINING,
    ly.SEED_STAGE_BLENDING,
    ly.SEED_STAGE_SHADOWING,
    ly.SEED_STAGE_PROBATIONARY,
]


def mlp_loop(slot: str = "1", **options: object) -> Loop:
    """Return a loop around the MLP host."""
    return Loop(seeded(mlp), [slot], **options)  # type: ignore[arg-type]


def moves(events: list[EventMessage]) -> list[ly.SeedStageChanged]:
    """Return the stage changes among `events`."""
    return [event for event in events if isinstance(event, ly.SeedStageChanged)]


def test_shadow_training_lowers_the_shadow_loss() -> None:
    """Goal: a seed learns while the host hears nothing of it. Method: handwritten digits (scikit-learn) and a narrow
    host that stands still after two epochs; the shadow loss and the held-out loss at alpha 1 fall far below the host's,
    whose own loss stays bit for bit.
    """
    data = load_digits()
    x_BF = torch.tensor(data.data, dtype=torch.float32) / 16.0
    y_B = torch.tensor(data.target)
    probe = [(x_BF[1400:], y_B[1400:])]
    torch.manual_seed(1)
    model = nn.Sequential(nn.Sequential(nn.Linear(64, 4), nn.ReLU()), nn.Linear(4, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    manager = KasminaSeedManager(
        model,
        discover_slots(model, x_BF[:2]),
        runtime=InMemoryRuntime(FACTORIES),
        run_id=RUN_ID,
        seed=1,
        loss_fn=functional.cross_entropy,
        probe=probe,
    )
    losses = []
    for epoch in range(1, 9):
        for begin in range(0, 1400, 50):
            inputs, targets = x_BF[begin : begin + 50], y_B[begin : begin + 50]
            if epoch <= 2:
                optimizer.zero_grad()
                functional.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
            manager.after_step(inputs, targets)
        manager.end_epoch(epoch)
        if epoch == 2:
            command = seed_command(ly.SEED_OP_GERMINATE, slot="0", blueprint="BYPASS", epoch=2)
            manager.handle_command(command, epoch=2, append=lambda _event: None)
        elif epoch > 2:
            losses.append(dict(manager.seed_states()[0].metrics))
    assert len({metrics["host_loss"] for metrics in losses}) == 1
    assert losses[-1]["shadow_loss"] < 0.6 * losses[-1]["shadow_loss_first"]
    assert losses[-1]["loss_seed_on"] < 0.6 * losses[-1]["loss_seed_off"]
    assert losses[-1]["shadow_loss_trend"] < 0
    assert manager.seed_states()[0].gradient_norm > 0


def test_a_zero_initialised_seed_changes_nothing_before_it_has_learned() -> None:
    """Goal: probing a fresh seed gives the host's own loss. Method: on and off before any step."""
    loop = mlp_loop()
    seed_id = loop.germinate("1").seed_id
    loop.epoch = 1
    loop.manager.end_epoch(1)
    metrics = loop.state(seed_id).metrics
    assert metrics["loss_seed_on"] == metrics["loss_seed_off"]
    assert "shadow_loss" not in metrics, "what was not measured is absent"
    assert not loop.state(seed_id).HasField("gradient_norm")


def test_the_probe_hears_the_seed_in_eval_mode() -> None:
    """Goal: held-out losses are those of a network in use. Method: a seed with dropout in TRAINING; the loss at alpha 1
    computed by hand, layer by layer, in eval mode.
    """
    loop = Loop(seeded(HOSTS["residual"][0]), ["block"])
    seed_id = loop.germinate("block", "DROPPING").seed_id
    loop.train_epoch(30)
    live = loop.manager._bed.live[seed_id]
    assert live.held_out is not None
    loop.model.eval()
    live.seed.eval()
    stem, block, head = (loop.model.get_submodule(name) for name in ("stem", "block", "head"))
    total = 0.0
    with torch.no_grad():
        for x_BF, y_B in PROBE:
            h_BF = stem(x_BF)
            total += float(functional.cross_entropy(head(h_BF + (block(h_BF) + live.seed.body(h_BF))), y_B)) * len(y_B)
    assert live.held_out.seed_on == pytest.approx(total / sum(len(y_B) for _, y_B in PROBE), rel=1e-6)
    assert live.held_out.seed_on != live.held_out.seed_off


def test_counting_the_work_does_no_work() -> None:
    """Goal: the pass that counts a shadow's cost leaves no trace on the seed. Method: a seed with BatchNorm, which
    counts its training passes, on batches of three shapes.
    """

    def normed(request: ly.KernelRequestSpec, generator: torch.Generator) -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(request.in_shape[0]), FACTORIES["BYPASS"](request, generator))

    loop = mlp_loop(runtime=InMemoryRuntime({"NORMED": normed}))
    loop.germinate("1", "NORMED")
    for size in (16, 8, 4):
        loop.manager.after_step(*batch(size, size=size))
    assert [int(tensor) for name, tensor in loop.manager.state().items() if name.endswith("num_batches_tracked")] == [3]


def test_the_warmup_and_the_clip_bound_the_first_steps() -> None:
    """Goal: own optimiser, own warm-up, own clipping. Method: the rate over the first steps; weights move by at most
    the summed rates, which Adam's normalised steps obey.
    """
    loop = mlp_loop(config=KasminaConfig(learning_rate=0.01, warmup_steps=4, clip_norm=1e-3))
    seed_id = loop.germinate("1").seed_id
    before = {name: tensor.clone() for name, tensor in loop.manager.state().items()}
    rates = []
    for _ in range(6):
        rates.append(loop.state(seed_id).learning_rate)
        loop.step()
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])
    largest = max(
        float((tensor - before[name]).abs().max())
        for name, tensor in loop.manager.state().items()
        if tensor.is_floating_point()
    )
    assert 0 < largest <= 1.2 * sum(rates)


def test_shadows_can_be_taken_each_kth_step() -> None:
    """Goal: the cost of a shadow can be spread. Method: every third step of ten; the count of passes."""
    loop = mlp_loop(config=KasminaConfig(shadow_every=3))
    seed_id = loop.germinate("1").seed_id
    loop.train_epoch(10)
    assert loop.state(seed_id).metrics["shadow_steps"] == 3


@pytest.mark.parametrize("placement", ["", ":residual"])
@pytest.mark.parametrize("host", HOSTS)
def test_a_whole_life_ends_as_a_part_of_the_host(host: str, placement: str) -> None:
    """Goal: every stage works on every host and placement. Method: grow a seed to FOSSILIZED by the usual moves and
    train on; nothing of the limits is bent but the gain that this small problem may not give in so few steps.
    """
    factory, module = HOSTS[host]
    slot = module + placement
    config = KasminaConfig(warmup_steps=5, blend_epochs=1.0, limits=GateLimits(shadow_loss_rise_max=9.0, gain_min=-9.0))
    loop = Loop(seeded(factory), [slot], config=config)
    base = sum(parameter.numel() for parameter in loop.model.parameters())
    loop.germinate(slot)
    loop.train_epoch(20)
    seed_id = loop.manager.summaries()[0].seed_id
    # A seed that harms is refused by G2: train until the gate agrees, and cap the tries.
    for _ in range(12):
        loop.train_epoch(20)
        if loop.order(ly.SEED_OP_START_GRAFTING, seed_id=seed_id).result == ly.COMMAND_RESULT_APPLIED:
            break
    for operation in (ly.SEED_OP_STABILIZE, ly.SEED_OP_EVALUATE, ly.SEED_OP_FOSSILIZE):
        loop.train_epoch(20)
        assert loop.order(operation, seed_id=seed_id).result == ly.COMMAND_RESULT_APPLIED, loop.outcomes[-1].reason
    loop.train_epoch(5)
    assert loop.manager.summaries()[0].stage == ly.SEED_STAGE_FOSSILIZED
    grown = sum(parameter.numel() for parameter in loop.model.parameters())
    assert grown == base + loop.manager.parameters() > base
    assert loop.manager.multiply_adds_per_sample() > 0


def test_events_of_a_whole_life() -> None:
    """Goal: every move is an event with its evidence, and every gate of the table was measured. Method: a
    life to FOSSILIZED; stages, reasons, gates, ids and the ids' order.
    """
    loop = mlp_loop()
    seed_id = loop.grow("1", ly.SEED_STAGE_FOSSILIZED, steps=40)
    told = [
        (ly.SeedLifecycleStage.Name(event.to_stage)[11:], event.reason, list(event.gates_not_measured))
        for event in moves(loop.log)
    ]
    assert told == [
        ("GERMINATED", "command:germinate", []),
        ("TRAINING", "command:germinate", []),
        ("BLENDING", "command:start_grafting", []),
        ("SHADOWING", "command:stabilize", []),
        ("PROBATIONARY", "command:evaluate", []),
        ("FOSSILIZED", "command:fossilize", []),
    ]
    gates = {event.meta.event_id: event for event in loop.log if isinstance(event, ly.GateEvaluated)}
    assert [gate.gate for gate in gates.values()] == [
        ly.SEED_GATE_G0_SANITY,
        ly.SEED_GATE_G1_GRADIENT_HEALTH,
        ly.SEED_GATE_G1_GRADIENT_HEALTH,
        ly.SEED_GATE_G2_STABILITY,
        ly.SEED_GATE_G3_INTERFACE,
        ly.SEED_GATE_G4_SYSTEM_IMPACT,
        ly.SEED_GATE_G4_SYSTEM_IMPACT,
    ]
    assert all(gate.passed and gate.checks and gate.seed_id == seed_id for gate in gates.values())
    named = [gates[gate_id].gate for event in moves(loop.log) for gate_id in event.gate_event_ids]
    assert named == [gate.gate for gate in gates.values()], "each move names the gate that allowed it"
    assert len({event.meta.event_id for event in loop.log}) == len(loop.log)
    assert loop.manager.lifecycle.events == len(loop.log)
    fossilized = moves(loop.log)[-1]
    assert fossilized.alpha == 1.0
    assert fossilized.metrics["loss_seed_on"] < fossilized.metrics["loss_seed_off"]
    assert [verdict for outcome in loop.outcomes for verdict in outcome.gate_verdicts.values()] == [True] * 7


def test_alpha_rises_step_by_step_along_its_schedule() -> None:
    """Goal: blending ramps. Method: alpha after each step of the blend against the schedule; the host hears alpha
    times the seed, as a probe by hand shows.
    """
    loop = mlp_loop()
    seed_id = loop.grow("1", ly.SEED_STAGE_BLENDING)
    schedule = AlphaSchedule("cosine", 10)
    loop.model.train()
    for step in range(1, 13):
        loop.step()
        assert loop.state(seed_id).alpha == schedule.at(step)
        if step == 5:
            seed = loop.manager._bed.live[seed_id].seed
            block = loop.model.get_submodule("1")
            loop.model.eval()
            x_BF = PROBE[0][0]
            with torch.no_grad():
                heard = block(x_BF)
                seed._focus.muted = seed
                alone = block(x_BF)
                seed._focus.muted = None
                assert torch.equal(heard, alone + seed.body(x_BF) * torch.tensor(schedule.at(5)))
            loop.model.train()
    assert loop.state(seed_id).alpha == 1.0


def test_joint_training_moves_seed_and_host_together() -> None:
    """Goal: from BLENDING on the seed learns from the host's loss, in its own optimiser. Method: one joint step;
    both moved, the host's optimiser does not know the seed, and no gradient is left over.
    """
    loop = mlp_loop()
    seed_id = loop.grow("1", ly.SEED_STAGE_BLENDING)
    loop.model.train()
    loop.step()
    live = loop.manager._bed.live[seed_id]
    before, host = all_bytes(live.seed.body), loop.model.get_submodule("1.0").weight.clone()
    loop.step()
    assert all_bytes(live.seed.body) != before
    assert not torch.equal(loop.model.get_submodule("1.0").weight, host)
    known = {id(parameter) for group in loop.optimizer.param_groups for parameter in group["params"]}
    assert all(id(parameter) not in known for parameter in live.seed.parameters())
    assert all(parameter.grad is None for parameter in live.seed.parameters())
    assert loop.manager.state() == {}, "its tensors are now in the host's state"


def test_before_step_clears_a_gradient_from_elsewhere() -> None:
    """Goal: a user's own backward between steps does not reach the seed. Method: leave a gradient, then step."""
    results = []
    for foreign in (False, True):
        loop = Loop(seeded(HOSTS["residual"][0]), ["block"])
        seed_id = loop.grow("block", ly.SEED_STAGE_SHADOWING)
        if foreign:
            loop.model.eval()
            loop.model(PROBE[0][0]).square().sum().backward()
            loop.model.train()
        loop.step()
        results.append(all_bytes(loop.manager._bed.live[seed_id].seed.body))
    assert results[0] == results[1]


def test_fossilizing_at_alpha_one_keeps_the_outputs() -> None:
    """Goal: FOSSILIZED is lossless. Method: outputs in eval mode, bit for bit, before and after; no alpha is left;
    a deep copy gives the same outputs.
    """
    loop = mlp_loop()
    seed_id = loop.grow("1", ly.SEED_STAGE_PROBATIONARY, steps=40)
    loop.train_epoch(40)
    before = outputs(loop.model)
    assert any(name.endswith("alpha") for name in loop.model.state_dict())
    assert loop.order(ly.SEED_OP_FOSSILIZE, seed_id=seed_id).result == ly.COMMAND_RESULT_APPLIED
    assert torch.equal(outputs(loop.model), before)
    assert not any(name.endswith("alpha") for name in loop.model.state_dict())
    assert torch.equal(outputs(copy.deepcopy(loop.model)), before)
    assert loop.state(seed_id).alpha == 1.0


def test_fossilizing_hands_parameters_and_moments_to_the_host_optimizer() -> None:
    """Goal: the seed's moments survive the move. Method: the very tensors are in the host's optimiser, in the group of
    the slot's own layer, under a scheduler that goes on working; the next host step moves them.
    """
    model = seeded(mlp)
    slow = list(model.get_submodule("1").parameters())
    others = [parameter for parameter in model.parameters() if all(parameter is not each for each in slow)]
    optimizer = torch.optim.AdamW([{"params": others}, {"params": slow, "lr": 1e-3}], lr=3e-3, amsgrad=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    loop = Loop(model, ["1"], optimizer=optimizer)
    seed_id = loop.grow("1", ly.SEED_STAGE_PROBATIONARY, steps=40)
    loop.train_epoch(40)
    live = loop.manager._bed.live[seed_id]
    own = live.trainer.optimizer
    assert own is not None
    moments = [own.state[parameter]["exp_avg"] for parameter in live.trainer.parameters]
    assert loop.order(ly.SEED_OP_FOSSILIZE, seed_id=seed_id).result == ly.COMMAND_RESULT_APPLIED
    assert live.trainer.optimizer is None
    group = {id(parameter) for parameter in optimizer.param_groups[1]["params"]}
    assert all(id(parameter) in group for parameter in live.trainer.parameters)
    for parameter, moment in zip(live.trainer.parameters, moments, strict=True):
        assert optimizer.state[parameter]["exp_avg"] is moment
        assert float(optimizer.state[parameter]["step"]) > 100
    before = all_bytes(live.seed.body)
    loop.train_epoch(2)
    scheduler.step()
    assert all_bytes(live.seed.body) != before


@pytest.mark.parametrize("owned", [True, False], ids=["SGD host", "no host optimiser given"])
def test_fossils_go_on_learning_whatever_the_host_optimizer(owned: bool) -> None:
    """Goal: no fossil is orphaned. Method: a host under SGD (whose state differs) and one whose optimiser Kasmina does
    not know; the fossil's weights move in the next epoch.
    """
    model = seeded(mlp)
    loop = Loop(model, ["1"], optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), owned=owned)
    seed_id = loop.grow("1", ly.SEED_STAGE_FOSSILIZED, steps=40)
    live = loop.manager._bed.live[seed_id]
    assert (live.trainer.optimizer is None) == owned
    before = all_bytes(live.seed.body)
    loop.train_epoch(2)
    assert all_bytes(live.seed.body) != before


@pytest.mark.parametrize("stage", JOINT_AND_BEFORE, ids=ly.SeedLifecycleStage.Name)
def test_a_cull_at_any_stage_leaves_the_bare_host(stage: ly.SeedLifecycleStage) -> None:
    """Goal: CULL undoes the graft. Method: a seedless host with the same weights gives byte-equal outputs, the state
    has its old names, no hook is left, and the slot is barred.
    """
    loop = mlp_loop()
    seed_id = loop.grow("1", stage, steps=20)
    loop.train_epoch(5)
    assert (
        loop.order(ly.SEED_OP_CULL, seed_id=seed_id, parameters={"fall_steps": 0.0}).result == ly.COMMAND_RESULT_APPLIED
    )
    bare = mlp()
    bare.load_state_dict(loop.model.state_dict())
    assert torch.equal(outputs(loop.model), outputs(bare))
    assert not any(module._forward_hooks for module in loop.model.modules())
    assert loop.manager.summaries()[0].stage == ly.SEED_STAGE_EMBARGOED
    assert loop.manager.seed_states() == []
    assert loop.manager.parameters() == loop.manager.multiply_adds_per_sample() == 0
    assert loop.manager.slot_states()[0].seed_id == seed_id
    loop.train_epoch(2)
    again = loop.germinate("1")
    assert (again.result, again.reason) == (ly.COMMAND_RESULT_REJECTED, "gate:SEED_GATE_G0_SANITY")
    assert again.seed_id == "1.2"


@pytest.mark.parametrize("stage", JOINT_AND_BEFORE, ids=ly.SeedLifecycleStage.Name)
def test_a_cull_frees_every_tensor(stage: ly.SeedLifecycleStage) -> None:
    """Goal: a culled seed costs no memory. Method: weak references to its parameters, moments and alpha die with the
    move itself, without any help of the garbage collector.
    """
    loop = mlp_loop()
    seed_id = loop.grow("1", stage, steps=20)
    loop.train_epoch(5)
    live = loop.manager._bed.live[seed_id]
    assert live.trainer.optimizer is not None
    tensors = [*live.seed.parameters(), *live.seed.buffers()]
    tensors += [value for state in live.trainer.optimizer.state.values() for value in state.values() if value.dim() > 0]
    watched = [weakref.ref(tensor) for tensor in tensors] + [weakref.ref(live.seed), weakref.ref(live.trainer)]
    assert len(watched) > 12
    del live, tensors
    loop.order(ly.SEED_OP_CULL, seed_id=seed_id, parameters={"fall_steps": 0.0})
    assert [ref() for ref in watched if ref() is not None] == []


def test_two_seeds_do_not_see_each_other() -> None:
    """Goal: a shadow leaks into no other seed. Method: a seed that blends, with and without a second one in TRAINING
    on another slot; the host with the first seed ends byte-equal, and the second has learned.
    """
    ends = []
    for second in (False, True):
        loop = Loop(seeded(mlp), ["1", "2"])
        loop.grow("1", ly.SEED_STAGE_BLENDING)
        loop.train_epoch(5)
        if second:
            loop.germinate("2", "DROPPING")
        torch.manual_seed(3)
        loop.train_epoch(40)
        ends.append(all_bytes(loop.model))
        if second:
            assert loop.state("2.1").metrics["shadow_steps"] == 40
            assert any(float(tensor.abs().max()) > 0 for name, tensor in loop.manager.state().items() if "2.1" in name)
    assert ends[0] == ends[1]


def test_a_joint_seed_with_dropout_draws_from_its_own_stream() -> None:
    """Goal: a seed never shifts the host's random stream. Method: the stream after a blended forward in training mode
    equals that after a bare one.
    """
    loop = mlp_loop()
    loop.grow("1", ly.SEED_STAGE_SHADOWING, blueprint="DROPPING")
    loop.model.train()
    streams = []
    for muted in (False, True):
        seed = loop.manager._bed.live["1.1"].seed
        seed._focus.muted = seed if muted else None
        torch.manual_seed(5)
        loop.model(batch(0)[0])
        streams.append(torch.get_rng_state())
        seed._focus.muted = None
    assert torch.equal(streams[0], streams[1])


def test_each_shadow_draws_anew_and_repeatably() -> None:
    """Goal: a seed's dropout is random over steps and equal over runs. Method: the masks of three shadows of one batch,
    in two runs.
    """
    runs = []
    for _ in range(2):
        loop = mlp_loop()
        seed_id = loop.germinate("1", "DROPPING").seed_id
        (dropout,) = (part for part in loop.manager._bed.live[seed_id].seed.modules() if isinstance(part, nn.Dropout))
        masks: list[torch.Tensor] = []
        dropout.register_forward_pre_hook(lambda _module, args: (torch.ones_like(args[0]),))
        dropout.register_forward_hook(lambda module, _args, output, seen=masks: seen.append(output == 0))
        for _ in range(3):
            loop.manager.after_step(*batch(0))
        runs.append([mask for mask in masks if mask.any()])
    assert len(runs[0]) == 3
    assert len({mask.numpy().tobytes() for mask in runs[0]}) == 3
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_one_kernel_in_two_slots_shares_no_weights() -> None:
    """Goal: a runtime that hands out one object is safe. Method: two slots of equal shape, one module."""
    shared = FACTORIES["BYPASS"](ly.KernelRequestSpec(in_shape=[8], out_shape=[8]), torch.Generator().manual_seed(1))

    class Sharing(InMemoryRuntime):
        def fetch_kernel(self, request: ly.KernelRequestSpec, *, run_id: str, wait_seconds: float) -> FetchedKernel:
            return FetchedKernel(shared, "shared", ly.ArtifactManifest(request=request), 0.0)

    runtime = Sharing({})
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    loop = Loop(model, ["2", "3"], runtime=runtime)
    loop.germinate("2", "ONE")
    loop.train_epoch(2)
    loop.germinate("3", "ONE")
    pointers = [tensor.data_ptr() for live in loop.manager._bed.live.values() for tensor in live.seed.parameters()]
    pointers += [tensor.data_ptr() for tensor in shared.parameters()]
    assert len(set(pointers)) == len(pointers) == 12


def test_a_seed_registers_beside_layers_not_in_a_sequence() -> None:
    """Goal: a slot that is a Sequential does not run its seed as one more layer. Method: where it is registered, a
    name of the host's that is in the way, and one that comes in the way once the seed is planted.
    """
    loop = mlp_loop()
    loop.grow("1", ly.SEED_STAGE_BLENDING)
    assert [name for name, _ in loop.model.named_modules() if name.endswith("esper_1_1")] == ["1.0.esper_1_1"]
    blocked = mlp_loop()
    blocked.model.get_submodule("1.0").esper_1_1 = "taken"  # type: ignore[assignment]
    blocked.grow("1", ly.SEED_STAGE_BLENDING)
    assert next(name for name, _ in blocked.model.named_modules() if "esper_" in name) == "1.0.esper_1_1__2"
    late = mlp_loop()
    late.grow("1", ly.SEED_STAGE_TRAINING)
    late.model.get_submodule("1.0").esper_1_1 = "taken"  # type: ignore[assignment]  # torch takes any attribute
    for _ in range(3):
        late.train_epoch(10)
    with pytest.raises(IntegrityError, match="an attribute of that name"):
        late.order(ly.SEED_OP_START_GRAFTING, seed_id="1.1")


@pytest.mark.parametrize("training", [True, False])
def test_a_seed_joins_in_the_mode_of_its_slot(training: bool) -> None:
    """Goal: dropout of a seed follows the host's mode from the first joint step on. Method: join a host that is in
    training or in eval mode, and that nobody switches afterwards.
    """
    loop = mlp_loop()
    loop.grow("1", ly.SEED_STAGE_TRAINING, blueprint="DROPPING")
    for _ in range(3):
        loop.train_epoch(10)
    loop.model.train(training)
    assert loop.order(ly.SEED_OP_START_GRAFTING, seed_id="1.1").result == ly.COMMAND_RESULT_APPLIED
    assert {module.training for module in loop.manager._bed.live["1.1"].seed.modules()} == {training}


def test_costs_are_those_of_the_work_done() -> None:
    """Goal: own multiply-adds are counted right. Method: an MLP whose work is known by hand: shadow = forward of the
    host + forward and backward of what follows the seed's input, and the rehearsal of G1 is one on a batch of the
    probe; probe = forwards; joint = three forwards of the seed.
    """
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    probe = [batch(-1, size=10)]
    loop = Loop(model, ["0"], probe=probe)
    assert loop.manager.multiply_adds == 0
    loop.germinate("0")
    seed_first, seed_last = 12 * 16, 16 * 8
    host_first, host_last = 12 * 8, 8 * 3
    loop.step()
    forward = host_first + host_last + seed_first + seed_last
    # Backward: the head's input only (its weights are detached); both gradients of the seed's last layer, and of its
    # first layer only that of the weights, for its input is detached.
    backward = host_last + 2 * seed_last + seed_first
    rehearsal, shadow = 10 * (forward + backward), 16 * (forward + backward)
    assert loop.manager.multiply_adds == rehearsal + shadow
    loop.step()
    before = loop.manager.multiply_adds
    assert before == rehearsal + 2 * shadow, "the second of a shape is not counted anew"
    loop.epoch = 1
    loop.manager.end_epoch(1)
    host, seed = host_first + host_last, seed_first + seed_last
    assert loop.manager.multiply_adds == before + 10 * (host + (host + seed))
    assert loop.manager.multiply_adds_per_sample() == 0, "the host hears nothing yet"
    assert loop.manager.parameters() == 0
    loop = Loop(model, ["0"], probe=probe)
    loop.grow("0", ly.SEED_STAGE_SHADOWING)
    assert loop.manager.multiply_adds_per_sample() == seed
    before = loop.manager.multiply_adds
    loop.step()
    assert loop.manager.multiply_adds == before + 3 * 16 * seed
    assert loop.manager.parameters() == seed_first + 16 + seed_last + 8


def test_no_probe_or_loss_disables_the_gates_that_need_it_by_name() -> None:
    """Goal: absent evidence blocks, and says which gate. Method: no loss: G1; no probe: G2, and G1 as well before the
    first batch; a probe that went away: G4.
    """
    empty = (PROBE[0][0][:0], PROBE[0][1][:0])
    silent = mlp_loop(loss_fn=None)
    assert silent.germinate("1").reason == "gate_unavailable:G1"
    for probe in (None, [], [empty]):
        loop = mlp_loop(probe=probe)
        assert loop.germinate("1").reason == "gate_unavailable:G1", "there was no batch yet"
        loop.train_epoch(5)
        seed_id = loop.germinate("1").seed_id
        for _ in range(3):
            loop.train_epoch(5)
        refused = loop.order(ly.SEED_OP_START_GRAFTING, seed_id=seed_id)
        assert (refused.result, refused.reason) == (ly.COMMAND_RESULT_REJECTED, "gate_unavailable:G2")
        assert [type(event) for event in refused.events] == [ly.SeedMoveRejected]
        assert dict(refused.gate_verdicts) == {}
        assert "shadow_loss" in loop.state(seed_id).metrics
    loop = mlp_loop()
    seed_id = loop.grow("1", ly.SEED_STAGE_SHADOWING)
    loop.manager._bed.probe = None
    loop.train_epoch(5)
    assert loop.order(ly.SEED_OP_EVALUATE, seed_id=seed_id).reason == "gate_unavailable:G4"


def test_grafting_too_early_fails_g2() -> None:
    """Goal: G2 wants evidence. Method: START_GRAFTING after one epoch; the seed stays where it is."""
    loop = mlp_loop()
    seed_id = loop.germinate("1").seed_id
    loop.train_epoch(5)
    refused = loop.order(ly.SEED_OP_START_GRAFTING, seed_id=seed_id)
    assert refused.reason == "gate:SEED_GATE_G2_STABILITY"
    health, gate, rejection = refused.events
    assert isinstance(health, ly.GateEvaluated)
    assert isinstance(gate, ly.GateEvaluated)
    assert isinstance(rejection, ly.SeedMoveRejected)
    assert (health.passed, gate.passed) == (True, False)
    assert list(rejection.gate_event_ids) == [health.meta.event_id, gate.meta.event_id]
    assert dict(refused.gate_verdicts) == {"SEED_GATE_G1_GRADIENT_HEALTH": True, "SEED_GATE_G2_STABILITY": False}
    assert loop.state(seed_id).stage == ly.SEED_STAGE_TRAINING


def test_a_harmful_seed_fails_g4() -> None:
    """Goal: what does not help does not stay. Method: spoil a SHADOWING seed's weights; EVALUATE is refused."""
    loop = mlp_loop()
    seed_id = loop.grow("1", ly.SEED_STAGE_SHADOWING, steps=40)
    with torch.no_grad():
        for parameter in loop.manager._bed.live[seed_id].seed.parameters():
            parameter.add_(3.0)
    loop.epoch += 1
    loop.manager.end_epoch(loop.epoch)
    refused = loop.order(ly.SEED_OP_EVALUATE, seed_id=seed_id)
    assert refused.reason == "gate:SEED_GATE_G4_SYSTEM_IMPACT"
    state = loop.state(seed_id)
    assert state.metrics["loss_gain"] < 0
    assert state.stage == ly.SEED_STAGE_SHADOWING


def test_probes_at_other_epochs_do_not_count() -> None:
    """Goal: a gate judges this edge. Method: spoil the seed after end_epoch, decide for a later epoch: it is measured
    afresh and fails.
    """
    loop = mlp_loop()
    seed_id = loop.grow("1", ly.SEED_STAGE_SHADOWING, steps=40)
    loop.train_epoch(5)
    with torch.no_grad():
        for parameter in loop.manager._bed.live[seed_id].seed.parameters():
            parameter.add_(3.0)
    loop.epoch += 1
    assert loop.order(ly.SEED_OP_EVALUATE, seed_id=seed_id).reason == "gate:SEED_GATE_G4_SYSTEM_IMPACT"


def blend_fields() -> list[tuple[dict[str, float], int]]:
    """Return START_GRAFTING parameters with the steps that they mean at 10 steps an epoch."""
    return [({"blend_steps": 7.0}, 7), ({"blend_epochs": 0.5}, 5), ({}, 10)]


@pytest.mark.parametrize(("parameters", "steps"), blend_fields())
def test_a_command_may_say_how_long_alpha_rises(parameters: dict[str, float], steps: int) -> None:
    """Goal: the policy chooses the tempo. Method: parameters of START_GRAFTING, and the step at which alpha is 1."""
    loop = mlp_loop()
    seed_id = loop.grow("1", ly.SEED_STAGE_TRAINING)
    for _ in range(3):
        loop.train_epoch(10)
    decision = loop.order(ly.SEED_OP_START_GRAFTING, seed_id=seed_id, parameters=parameters)
    assert decision.result == ly.COMMAND_RESULT_APPLIED, decision.reason
    assert moves(list(decision.events))[0].metrics["blend_steps"] == steps
    for _ in range(steps - 1):
        loop.step()
    assert loop.state(seed_id).alpha < 1.0
    loop.step()
    assert loop.state(seed_id).alpha == 1.0


def test_kernels_that_do_not_fit_are_refused_by_g0() -> None:
    """Goal: a wrong kernel never reaches the host. Method: kernels of a wrong shape, that do not
    start at zero, that hold infinity, and that raise.
    """

    def wide(_request: ly.KernelRequestSpec, _generator: torch.Generator) -> nn.Module:
        return nn.Linear(12, 9)

    def loud(_request: ly.KernelRequestSpec, _generator: torch.Generator) -> nn.Module:
        return nn.Linear(12, 8)

    def infinite(request: ly.KernelRequestSpec, generator: torch.Generator) -> nn.Module:
        module = FACTORIES["BYPASS"](request, generator)
        with torch.no_grad():
            next(module.parameters())[0, 0] = float("inf")
        return module

    def foreign(_request: ly.KernelRequestSpec, _generator: torch.Generator) -> nn.Module:
        return nn.Linear(5, 8)

    factories: dict[str, tuple[Callable[[ly.KernelRequestSpec, torch.Generator], nn.Module], str]] = {
        "WIDE": (wide, "kernel_shape_fits"),
        "LOUD": (loud, "kernel_output_at_start"),
        "INFINITE": (infinite, "kernel_values_not_finite"),
        "FOREIGN": (foreign, "kernel_shape_fits"),
    }
    runtime = InMemoryRuntime({name: factory for name, (factory, _) in factories.items()})
    loop = mlp_loop(runtime=runtime)
    before = all_bytes(loop.model)
    for name, (_, check) in factories.items():
        loop.train_epoch(0)
        refused = loop.germinate("1", name)
        assert refused.reason == "gate:SEED_GATE_G0_SANITY"
        gate = refused.events[0]
        assert isinstance(gate, ly.GateEvaluated)
        assert check in {each.name for each in gate.checks if not each.passed}
    assert all_bytes(loop.model) == before
    assert loop.manager.summaries() == []
