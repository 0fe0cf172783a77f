"""Operations on one seed beside the usual way up: held, tuned, cancelled, faded out, pruned."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from esper.core.checkpoint import read_checkpoint, write_checkpoint
from esper.kasmina import GateLimits, KasminaConfig
from esper.kasmina.testing import InMemoryRuntime
from esper.leyline import messages as ly
from tests.kasmina.reborn import reborn
from tests.kasmina.support import FACTORIES, Loop, all_bytes, mlp, outputs, seeded

#: Anything may be pruned, and whatever trained may be grafted.
WIDE = GateLimits(training_epochs_min=1, shadow_loss_rise_max=99.0, gain_min=-99.0, prune_rise_max=99.0)
CONFIG = KasminaConfig(warmup_steps=5, blend_epochs=1.0, limits=WIDE)
JOINT = [ly.SEED_STAGE_BLENDING, ly.SEED_STAGE_SHADOWING, ly.SEED_STAGE_PROBATIONARY]


def loop_of(**options: object) -> Loop:
    """Return a loop around the MLP host after one epoch."""
    loop = Loop(seeded(mlp), ["1", "2"], **({"config": CONFIG} | options))  # type: ignore[arg-type]
    loop.train_epoch(3)
    return loop


def moves(loop: Loop, seed_id: str) -> list[tuple[ly.SeedLifecycleStage, str]]:
    """Return the seed's moves as the log tells them."""
    return [
        (event.to_stage, event.reason)
        for event in loop.log
        if isinstance(event, ly.SeedStageChanged) and event.seed_id == seed_id
    ]


# -- START_TRAINING -----------------------------------------------------------------------------------------


def test_a_held_seed_waits_until_it_is_told_to_train() -> None:
    """Goal: GERMINATED is a stage to stay in. Method: a germination that is held learns nothing and is not heard;
    START_TRAINING measures G1 on it, and from there on it learns as a seed that was never held.
    """
    loop = loop_of()
    held = loop.order(ly.SEED_OP_GERMINATE, slot="1", blueprint="BYPASS", hold=True)
    assert held.result == ly.COMMAND_RESULT_APPLIED
    assert moves(loop, "1.1") == [(ly.SEED_STAGE_GERMINATED, "command:germinate")]
    assert held.gate_verdicts == {"SEED_GATE_G0_SANITY": True}
    before = all_bytes(loop.manager._bed.live["1.1"].seed.body)
    loop.train_epoch(5)
    assert all_bytes(loop.manager._bed.live["1.1"].seed.body) == before
    started = loop.order(ly.SEED_OP_START_TRAINING, seed_id="1.1")
    assert started.gate_verdicts == {"SEED_GATE_G1_GRADIENT_HEALTH": True}
    assert moves(loop, "1.1")[1:] == [(ly.SEED_STAGE_TRAINING, "command:start_training")]
    loop.train_epoch(5)
    assert loop.state("1.1").metrics["shadow_steps"] == 5
    assert all_bytes(loop.manager._bed.live["1.1"].seed.body) != before


def test_a_held_seed_without_gradient_does_not_train() -> None:
    """Goal: G1 guards START_TRAINING. Method: a held seed whose parameters cannot reach the loss (all zero)."""
    loop = loop_of()
    loop.order(ly.SEED_OP_GERMINATE, slot="1", blueprint="BYPASS", hold=True)
    with torch.no_grad():
        for parameter in loop.manager._bed.live["1.1"].seed.parameters():
            parameter.zero_()
        for parameter in loop.model[3].parameters():  # type: ignore[index, union-attr]
            parameter.zero_()
    loop.train_epoch(0)
    refused = loop.order(ly.SEED_OP_START_TRAINING, seed_id="1.1")
    assert (refused.result, refused.reason) == (ly.COMMAND_RESULT_REJECTED, "gate:SEED_GATE_G1_GRADIENT_HEALTH")
    assert loop.manager.lifecycle.stage_of("1.1") == ly.SEED_STAGE_GERMINATED


# -- FINE_TUNE and CANCEL -----------------------------------------------------------------------------------


def test_fine_tuning_changes_the_rate_for_its_epochs_only() -> None:
    """Goal: a bounded change that ends by itself. Method: the rate before, during and after two epochs of it, and a
    run without it, whose seed is another from the first tuned epoch on.
    """
    ends = []
    for tuned in (False, True):
        loop = loop_of()
        loop.germinate("1")
        loop.train_epoch(8)
        own = loop.state("1.1").learning_rate
        if tuned:
            decision = loop.order(ly.SEED_OP_FINE_TUNE, seed_id="1.1", parameters={"rate_factor": 0.1, "epochs": 2.0})
            (event,) = decision.events
            assert isinstance(event, ly.SeedTuned)
            assert (event.rate_factor, event.epochs, event.stage) == (0.1, 2, ly.SEED_STAGE_TRAINING)
            assert loop.state("1.1").learning_rate == pytest.approx(0.1 * own)
        loop.train_epoch(4)
        assert loop.state("1.1").learning_rate == pytest.approx(own * (0.1 if tuned else 1.0))
        loop.train_epoch(4)
        assert loop.state("1.1").learning_rate == own
        assert "rate_factor" not in loop.state("1.1").metrics
        ends.append(all_bytes(loop.manager._bed.live["1.1"].seed.body))
    assert ends[0] != ends[1]


def test_a_move_ends_a_fine_tuning() -> None:
    """Goal: it is of the stage it was ordered in. Method: graft a tuned seed."""
    loop = loop_of()
    loop.germinate("1")
    loop.train_epoch(8)
    own = loop.state("1.1").learning_rate
    loop.order(ly.SEED_OP_FINE_TUNE, seed_id="1.1", parameters={"rate_factor": 2.0, "epochs": 50.0})
    loop.train_epoch(8)
    assert loop.order(ly.SEED_OP_START_GRAFTING, seed_id="1.1").result == ly.COMMAND_RESULT_APPLIED
    assert loop.state("1.1").learning_rate == own
    loop.train_epoch(2)
    assert loop.order(ly.SEED_OP_CANCEL, seed_id="1.1").result == ly.COMMAND_RESULT_APPLIED
    assert loop.manager.lifecycle.stage_of("1.1") == ly.SEED_STAGE_CULLED, "there was no tuning left to cancel"


def test_cancel_ends_a_fine_tuning_and_leaves_the_seed_where_it_is() -> None:
    """Goal: CANCEL takes back what was ordered last. Method: in PROBATIONARY, where nothing else can be cancelled."""
    loop = loop_of()
    loop.grow("1", ly.SEED_STAGE_PROBATIONARY, steps=10)
    loop.train_epoch(2)
    own = loop.state("1.1").learning_rate
    assert loop.order(ly.SEED_OP_CANCEL, seed_id="1.1").reason == "nothing_to_cancel"
    loop.train_epoch(2)
    loop.order(ly.SEED_OP_FINE_TUNE, seed_id="1.1", parameters={"rate_factor": 0.5, "epochs": 9.0})
    assert loop.state("1.1").learning_rate == 0.5 * own
    loop.train_epoch(2)
    decision = loop.order(ly.SEED_OP_CANCEL, seed_id="1.1")
    (event,) = decision.events
    assert isinstance(event, ly.SeedTuned)
    assert (event.epochs, event.reason) == (0, "command:cancel")
    assert loop.state("1.1").learning_rate == own
    assert loop.manager.lifecycle.stage_of("1.1") == ly.SEED_STAGE_PROBATIONARY


def test_cancel_takes_an_unheard_seed_off_at_once() -> None:
    """Goal: a training that proved nothing yet ends. Method: CANCEL in TRAINING; its embargo begins at that edge."""
    loop = loop_of()
    loop.germinate("1")
    loop.train_epoch(2)
    loop.order(ly.SEED_OP_CANCEL, seed_id="1.1")
    assert moves(loop, "1.1")[2:] == [
        (ly.SEED_STAGE_CULLED, "command:cancel"),
        (ly.SEED_STAGE_EMBARGOED, "command:cancel"),
    ]
    assert loop.outcomes[-1].choices == {"fall_steps": 0.0}


# -- how a heard seed goes ----------------------------------------------------------------------------------


def test_cancel_of_a_rise_lets_alpha_fall_from_where_it_is() -> None:
    """Goal: the end of a rise is no jump. Method: CANCEL at alpha about 1/2; alpha only falls, to exactly 0."""
    loop = loop_of(config=KasminaConfig(warmup_steps=5, blend_epochs=2.0, limits=WIDE))
    loop.grow("1", ly.SEED_STAGE_BLENDING)
    loop.train_epoch(10)
    half = loop.state("1.1").alpha
    assert 0.3 < half < 0.7
    loop.order(ly.SEED_OP_CANCEL, seed_id="1.1", parameters={"fall_steps": 4.0})
    seen = [half]
    for _ in range(4):
        loop.step()
        seen.append(loop.manager._bed.live["1.1"].seed.alpha)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == 0.0
    assert seen[1] > 0.0


@pytest.mark.parametrize("stage", JOINT, ids=ly.SeedLifecycleStage.Name)
def test_a_culled_seed_fades_before_its_embargo_begins(stage: ly.SeedLifecycleStage) -> None:
    """Goal: CULL ramps down over an epoch, then frees everything, and the embargo counts from there. Method: stages,
    alpha and the log edge by edge; while it falls the seed learns nothing and has no gradient left.
    """
    loop = loop_of(config=KasminaConfig(warmup_steps=5, blend_epochs=1.0, limits=WIDE, embargo_epochs=2))
    loop.grow("1", stage)
    loop.train_epoch(10)
    assert loop.order(ly.SEED_OP_CULL, seed_id="1.1").events[-1].metrics == {"fall_steps": 10.0}  # type: ignore[attr-defined]
    assert loop.outcomes[-1].choices == {"fall_steps": 10.0}
    live = loop.manager._bed.live["1.1"]
    before = all_bytes(live.seed.body)
    for _ in range(5):
        loop.step()
    assert 0.0 < live.seed.alpha < 1.0
    assert all_bytes(live.seed.body) == before
    reference = weakref.ref(live.seed)
    del live
    faded = loop.train_epoch(5)
    assert [(event.to_stage, event.reason, event.epoch) for event in faded] == [  # type: ignore[attr-defined]
        (ly.SEED_STAGE_EMBARGOED, "faded_out", loop.epoch)
    ]
    assert reference() is None
    bare = mlp()
    bare.load_state_dict(loop.model.state_dict())
    assert torch.equal(outputs(loop.model), outputs(bare))
    end = loop.epoch
    while loop.manager.lifecycle.holder("1") is not None:
        loop.manager.handle_command(None, epoch=loop.epoch, append=loop.log.append)
        loop.train_epoch(1)
    assert moves(loop, "1.1")[-1] == (ly.SEED_STAGE_DORMANT, "embargo_over")
    assert loop.log[-1].epoch == end + 2  # type: ignore[attr-defined]


def test_a_fault_ends_a_fall_at_once() -> None:
    """Goal: nobody waits for a seed that is broken. Method: spoil it while it falls; the host hears none of it."""
    loop = loop_of()
    loop.grow("1", ly.SEED_STAGE_SHADOWING)
    loop.train_epoch(10)
    loop.order(ly.SEED_OP_CULL, seed_id="1.1", parameters={"fall_epochs": 5.0})
    loop.step()
    with torch.no_grad():
        next(iter(loop.manager._bed.live["1.1"].seed.parameters())).fill_(float("nan"))
    (event,) = loop.train_epoch(2)
    assert (event.to_stage, event.reason) == (ly.SEED_STAGE_EMBARGOED, "fault:non_finite")  # type: ignore[attr-defined]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in loop.model.state_dict().values())


# -- STRUCTURAL_PRUNING -------------------------------------------------------------------------------------


def test_a_fossil_is_pruned_with_all_that_was_known_of_it() -> None:
    """Goal: FOSSILIZED -> TERMINATED frees slot, weights, moments, hook and names, and stops no scheduler. Method:
    weak references to parameters and moments die with the move, the host is the bare one, and trains and grafts on.
    """
    loop = loop_of()
    names = set(loop.model.state_dict())
    loop.grow("1", ly.SEED_STAGE_FOSSILIZED)
    scheduler = torch.optim.lr_scheduler.StepLR(loop.optimizer, 1)
    loop.train_epoch(5)
    seed = loop.manager._bed.live["1.1"].seed
    watched: list[weakref.ref[object]] = [weakref.ref(seed)]
    for parameter in seed.parameters():
        watched += [weakref.ref(parameter), weakref.ref(loop.optimizer.state[parameter]["exp_avg"])]
    assert len(watched) > 8
    del seed, parameter
    decision = loop.prune("1.1")
    assert decision.result == ly.COMMAND_RESULT_APPLIED, decision.reason
    assert moves(loop, "1.1")[-1] == (ly.SEED_STAGE_TERMINATED, "command:structural_pruning")
    assert [ref for ref in watched if ref() is not None] == []
    assert set(loop.model.state_dict()) == names
    own = {id(parameter) for parameter in loop.model.parameters()}
    assert {id(parameter) for group in loop.optimizer.param_groups for parameter in group["params"]} == own
    assert loop.manager.lifecycle.holder("1") is None
    assert loop.manager.parameters() == loop.manager.multiply_adds_per_sample() == 0
    loop.train_epoch(2)
    scheduler.step()
    assert loop.germinate("1").seed_id == "1.2"
    assert loop.manager.figures()["kasmina.isolation.violations"] == 0.0


def test_pruning_that_harms_is_refused() -> None:
    """Goal: the gate measures. Method: a fossil that the host relies on (its output is made large), under a limit of
    the run's and under a stricter one of the command's; the refusal is an event with the losses behind it.
    """
    limits = GateLimits(training_epochs_min=1, shadow_loss_rise_max=99.0, gain_min=-99.0)
    loop = loop_of(config=KasminaConfig(warmup_steps=5, blend_epochs=1.0, limits=limits))
    loop.grow("1", ly.SEED_STAGE_FOSSILIZED, steps=60)
    loop.train_epoch(60)
    before = all_bytes(loop.model)
    refused = loop.prune("1.1", loss_rise_max=0.0)
    gate, rejected = refused.events
    assert isinstance(gate, ly.GateEvaluated)
    assert isinstance(rejected, ly.SeedMoveRejected)
    figures = {check.name: (check.value, check.bound, check.passed) for check in gate.checks}
    rise, bound, passed = figures["loss_rise"]
    assert not passed
    assert rise > bound == 0.0
    assert rejected.reason == refused.reason == "gate:SEED_GATE_G4_SYSTEM_IMPACT"
    assert all_bytes(loop.model) == before


def test_pruning_what_is_no_fossil_is_refused() -> None:
    """Goal: only fossils are pruned. Method: an unknown seed, one in TRAINING, a bad limit, and no probe."""
    loop = loop_of()
    assert loop.prune("nobody").reason == "unknown_seed"
    loop.train_epoch(2)
    loop.germinate("1")
    loop.train_epoch(2)
    assert loop.prune("1.1").reason == "illegal_transition:SEED_STAGE_TRAINING->SEED_STAGE_TERMINATED"
    grown = loop_of()
    grown.grow("1", ly.SEED_STAGE_FOSSILIZED)
    for bound in (-0.1, 1.5, float("nan")):
        grown.train_epoch(1)
        assert grown.prune("1.1", loss_rise_max=bound).reason == "parameter_out_of_bounds:loss_rise_max"
    grown.train_epoch(1)
    grown.manager._bed.probe = None
    assert grown.prune("1.1").reason == "gate_unavailable:G4"


# -- the same run again, from any edge ----------------------------------------------------------------------

#: What is ordered after each epoch of a run that uses all of it.
SCRIPT: dict[int, tuple[ly.SeedOperation, dict[str, object]]] = {
    1: (ly.SEED_OP_GERMINATE, {"slot": "1", "blueprint": "DROPPING", "hold": True}),
    2: (ly.SEED_OP_START_TRAINING, {"seed_id": "1.1"}),
    3: (ly.SEED_OP_FINE_TUNE, {"seed_id": "1.1", "parameters": {"rate_factor": 3.0, "epochs": 2.0}}),
    4: (ly.SEED_OP_GERMINATE, {"slot": "2", "blueprint": "BYPASS"}),
    5: (
        ly.SEED_OP_START_GRAFTING,
        {"seed_id": "1.1", "blend_mode": ly.BLEND_MODE_CONFIDENCE, "alpha_curve": ly.ALPHA_CURVE_SIGMOID},
    ),
    6: (ly.SEED_OP_START_GRAFTING, {"seed_id": "2.1", "blend_mode": ly.BLEND_MODE_CHANNEL}),
    7: (ly.SEED_OP_STABILIZE, {"seed_id": "1.1"}),
    8: (ly.SEED_OP_EVALUATE, {"seed_id": "1.1"}),
    9: (ly.SEED_OP_CULL, {"seed_id": "2.1", "parameters": {"fall_epochs": 2.0}}),
    10: (ly.SEED_OP_FOSSILIZE, {"seed_id": "1.1"}),
    12: (ly.SEED_OP_UNKNOWN, {}),
}
STEPS = 6


def edges(loop: Loop) -> Iterator[int]:
    """Train the script's epochs; yield at every edge before its order, and carry it out afterwards."""
    while loop.epoch < 13:
        loop.train_epoch(STEPS)
        yield loop.epoch


def ordered(loop: Loop, epoch: int) -> None:
    """Carry out what the script orders after `epoch`; the twelfth prunes."""
    if epoch == 12:
        decision = loop.prune("1.1")
    elif epoch in SCRIPT:
        operation, fields = SCRIPT[epoch]
        decision = loop.order(operation, **fields)
    else:
        loop.manager.handle_command(None, epoch=epoch, append=loop.log.append)
        loop.outcomes.append(ly.CommandOutcome(epoch=epoch, result=ly.COMMAND_RESULT_NONE))
        return
    assert decision.result == ly.COMMAND_RESULT_APPLIED, (epoch, decision.reason)


def trail(loop: Loop) -> tuple[dict[str, bytes], dict[str, bytes], list[bytes]]:
    """Return host, isolated seeds and seed states, bit for bit."""
    isolated = {name: tensor.detach().numpy().tobytes() for name, tensor in loop.manager.state().items()}
    states = [state.SerializeToString(deterministic=True) for state in loop.manager.seed_states()]
    return all_bytes(loop.model), isolated, states


@pytest.fixture(scope="module")
def recorded() -> tuple[InMemoryRuntime, Loop, list[tuple[dict[str, bytes], dict[str, bytes], list[bytes]]]]:
    """A run of the script, with its state at every edge."""
    runtime = InMemoryRuntime(FACTORIES)
    loop = Loop(seeded(mlp), ["1", "2"], config=CONFIG, runtime=runtime)
    torch.manual_seed(11)
    seen = []
    for epoch in edges(loop):
        seen.append(trail(loop))
        ordered(loop, epoch)
    stages = {summary.seed_id: summary.stage for summary in loop.manager.summaries()}
    assert stages == {"1.1": ly.SEED_STAGE_TERMINATED, "2.1": ly.SEED_STAGE_EMBARGOED}
    return runtime, loop, seen


def test_the_record_is_computed_again(
    recorded: tuple[InMemoryRuntime, Loop, list[tuple[dict[str, bytes], dict[str, bytes], list[bytes]]]],
) -> None:
    """Goal: a run is a function of its request and its outcomes, all operations included. Method: outcomes alone."""
    runtime, loop, seen = recorded
    again = Loop(seeded(mlp), ["1", "2"], config=CONFIG, runtime=runtime)
    torch.manual_seed(11)
    for epoch in edges(again):
        assert trail(again) == seen[epoch - 1], epoch
        decision = again.manager.decide(None, epoch=epoch, recorded=loop.outcomes[epoch - 1])
        for event in decision.events:
            again.log.append(event)
            again.manager.fold(event)
    assert [(type(event), event.meta.event_id) for event in again.log] == [
        (type(event), event.meta.event_id) for event in loop.log
    ]
    assert [moves(again, seed_id) for seed_id in ("1.1", "2.1")] == [moves(loop, seed_id) for seed_id in ("1.1", "2.1")]


@pytest.mark.parametrize("stop", [2, 4, 6, 7, 10, 11, 12])
def test_the_run_goes_on_from_a_checkpoint_at_any_edge(
    recorded: tuple[InMemoryRuntime, Loop, list[tuple[dict[str, bytes], dict[str, bytes], list[bytes]]]], stop: int
) -> None:
    """Goal: held, tuned, blending in a mode, falling, fossil: all of it is in the checkpoint. Method: leave the process
    at one edge, go on from bytes, and compare every later edge with the run that was not disturbed.
    """
    runtime, _, seen = recorded
    loop = Loop(seeded(mlp), ["1", "2"], config=CONFIG, runtime=runtime)
    torch.manual_seed(11)
    for epoch in edges(loop):
        if epoch == stop:
            break
        ordered(loop, epoch)
    loop = reborn(loop, mlp_apart, config=CONFIG, runtime=runtime)
    ordered(loop, stop)
    for epoch in edges(loop):
        assert trail(loop) == seen[epoch - 1], epoch
        ordered(loop, epoch)


def mlp_apart() -> nn.Module:
    """Return a host of other weights, built without drawing from the stream that the run goes on with."""
    with torch.random.fork_rng():
        return seeded(mlp, 5)


def test_a_record_of_old_culls_at_once_and_folds_nothing() -> None:
    """Goal: what was recorded before there was a choice is computed as it was. Method: re-execute the cull of a heard
    seed from an outcome without choices; the seed goes at that edge.
    """
    loop = loop_of()
    loop.grow("1", ly.SEED_STAGE_BLENDING)
    loop.train_epoch(10)
    assert loop.state("1.1").alpha == 1.0
    recorded = ly.CommandOutcome(epoch=loop.epoch, result=ly.COMMAND_RESULT_APPLIED, seed_id="1.1")
    recorded.command.command_type = ly.COMMAND_SEED
    recorded.command.target_seed_id = "1.1"
    recorded.command.seed_operation.operation = ly.SEED_OP_CULL
    decision = loop.manager.decide(None, epoch=loop.epoch, recorded=recorded)
    for event in decision.events:
        loop.manager.fold(event)
    assert loop.manager.lifecycle.stage_of("1.1") == ly.SEED_STAGE_EMBARGOED


@pytest.mark.parametrize("to", [4, 7, 10, 11])
def test_a_run_may_return_from_its_end_to_any_stage(to: int) -> None:
    """Goal: tuned, blending in a mode, falling, fossil: all come back. Method: keep the state at one edge, live on to
    where one seed is pruned and the other gone, and return on the same host: stages, alphas and rates are those of
    the edge, epochs move along, and training goes on without a fault or a stranger in the host's optimiser.
    """
    loop = Loop(seeded(mlp), ["1", "2"], config=CONFIG)
    for epoch in edges(loop):
        if epoch == to:
            kept = {name: tensor.clone() for name, tensor in (loop.model.state_dict() | loop.manager.state()).items()}
            content, then = write_checkpoint(loop.manager.checkpoint()), loop.manager.lifecycle.seeds
            shown = [(state.stage, state.alpha, state.learning_rate) for state in loop.manager.seed_states()]
        ordered(loop, epoch)
    manager, saved, shift = loop.manager, read_checkpoint(content), loop.epoch - to
    manager.prepare_return(saved, epoch=loop.epoch, to_epoch=to)
    manager.rewind(saved)
    with torch.no_grad():
        for name, tensor in (loop.model.state_dict() | manager.state()).items():
            tensor.copy_(kept[name])
    manager.go_on(to_epoch=to)
    assert [(state.stage, state.alpha, state.learning_rate) for state in manager.seed_states()] == shown
    for seed_id, record in then.items():
        until = record.tuned_until + shift if record.tuned_until else 0
        assert manager.lifecycle.seeds[seed_id].tuned_until == until
    loop.train_epoch(STEPS)
    assert all(live.trainer.rate_factor == 1.0 for live in manager._bed.live.values())
    own = {id(parameter) for parameter in loop.model.parameters()}
    assert {id(parameter) for group in loop.optimizer.param_groups for parameter in group["params"]} <= own
    assert manager.figures()["kasmina.isolation.violations"] == 0.0
