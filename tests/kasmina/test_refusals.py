"""Orders that are refused: each with a reason, an event where it asked for a move, and an untouched host."""

from __future__ import annotations

import pytest
import torch

from esper.core.errors import IntegrityError, UsageError
from esper.core.ports import FetchedKernel
from esper.kasmina import KasminaConfig
from esper.kasmina.testing import InMemoryRuntime
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from tests.kasmina.support import FACTORIES, RUN_ID, Loop, all_bytes, mlp, seed_command, seeded


def mlp_loop(**options: object) -> Loop:
    """Return a loop around the MLP host after one epoch."""
    loop = Loop(seeded(mlp), ["1"], **options)  # type: ignore[arg-type]
    loop.train_epoch(3)
    return loop


@pytest.mark.parametrize(
    "kind",
    [ly.COMMAND_UNKNOWN, ly.COMMAND_ROLLBACK, ly.COMMAND_OPTIMIZER],
    ids=ly.CommandType.Name,
)
def test_commands_that_are_not_built_say_so(kind: ly.CommandType) -> None:
    """Goal: nothing is accepted that is not done. Method: every type that Kasmina does not know."""
    loop = mlp_loop()
    decision = loop.manager.decide(ly.AdaptationCommand(command_type=kind), epoch=1)
    assert (decision.result, decision.reason) == (ly.COMMAND_RESULT_REJECTED, "unsupported_command")
    assert list(decision.events) == []


def test_an_operation_that_the_contract_does_not_know_says_so() -> None:
    """Goal: the same for operations on seeds. Method: the one that names none."""
    loop = mlp_loop()
    seed_id = loop.germinate("1").seed_id
    loop.train_epoch(3)
    decision = loop.order(ly.SEED_OP_UNKNOWN, seed_id=seed_id)
    assert (decision.result, decision.reason) == (ly.COMMAND_RESULT_REJECTED, "unsupported_seed_operation")


def test_silence_and_continue_change_nothing() -> None:
    """Goal: no command and "go on" are told apart. Method: both; neither has an event."""
    loop = mlp_loop()
    assert loop.manager.decide(None, epoch=1).result == ly.COMMAND_RESULT_NONE
    decision = loop.manager.decide(ly.AdaptationCommand(command_type=ly.COMMAND_CONTINUE), epoch=2)
    assert (decision.result, decision.reason) == (ly.COMMAND_RESULT_APPLIED, "")
    missing = loop.manager.decide(ly.AdaptationCommand(command_type=ly.COMMAND_SEED), epoch=3)
    assert missing.reason == "malformed_command:no_seed_operation"


@pytest.mark.parametrize(
    ("operation", "fields", "reason"),
    [
        (ly.SEED_OP_STABILIZE, {}, "illegal_transition:SEED_STAGE_TRAINING->SEED_STAGE_SHADOWING"),
        (ly.SEED_OP_START_TRAINING, {}, "illegal_transition:SEED_STAGE_TRAINING->SEED_STAGE_TRAINING"),
        (ly.SEED_OP_FINE_TUNE, {}, "missing_parameter:rate_factor"),
        (ly.SEED_OP_FINE_TUNE, {"parameters": {"rate_factor": 11.0}}, "parameter_out_of_bounds:rate_factor"),
        (ly.SEED_OP_FINE_TUNE, {"parameters": {"rate_factor": 1.0, "epochs": 0.5}}, "parameter_out_of_bounds:epochs"),
        (ly.SEED_OP_FINE_TUNE, {"parameters": {"rate_factor": float("nan")}}, "parameter_out_of_bounds:rate_factor"),
        (ly.SEED_OP_CULL, {"parameters": {"fall_steps": -1.0}}, "parameter_out_of_bounds:fall_steps"),
        (ly.SEED_OP_CULL, {"parameters": {"fall_epochs": 1e9}}, "parameter_out_of_bounds:fall_epochs"),
        (ly.SEED_OP_CANCEL, {"parameters": {"fall_steps": 1e9}}, "parameter_out_of_bounds:fall_steps"),
        (ly.SEED_OP_START_GRAFTING, {"parameters": {"blend_epochs": 1e7}}, "parameter_out_of_bounds:blend_epochs"),
        (ly.SEED_OP_START_GRAFTING, {"parameters": {"blend_steps": 1e9}}, "parameter_out_of_bounds:blend_steps"),
        (ly.SEED_OP_CULL, {"blend_mode": ly.BLEND_MODE_CONVEX}, "unknown_parameter:blend_mode"),
        (ly.SEED_OP_CULL, {"hold": True}, "unknown_parameter:hold"),
        (ly.SEED_OP_START_GRAFTING, {"blend_mode": 77}, "parameter_out_of_bounds:blend_mode"),
        (ly.SEED_OP_START_GRAFTING, {"alpha_curve": 77}, "parameter_out_of_bounds:alpha_curve"),
        (ly.SEED_OP_EVALUATE, {}, "illegal_transition:SEED_STAGE_TRAINING->SEED_STAGE_PROBATIONARY"),
        (ly.SEED_OP_FOSSILIZE, {}, "illegal_transition:SEED_STAGE_TRAINING->SEED_STAGE_FOSSILIZED"),
        (ly.SEED_OP_CULL, {"seed_id": "nobody"}, "unknown_seed"),
        (ly.SEED_OP_CULL, {"parameters": {"softly": 1.0}}, "unknown_parameter:softly"),
        (ly.SEED_OP_START_GRAFTING, {"parameters": {"tempo": 1.0}}, "unknown_parameter:tempo"),
        (ly.SEED_OP_START_GRAFTING, {"parameters": {"blend_steps": 0.0}}, "parameter_out_of_bounds:blend_steps"),
        (
            ly.SEED_OP_START_GRAFTING,
            {"parameters": {"blend_epochs": float("inf")}},
            "parameter_out_of_bounds:blend_epochs",
        ),
    ],
)
def test_refused_moves_are_events(operation: ly.SeedOperation, fields: dict[str, object], reason: str) -> None:
    """Goal: an illegal move is a rejection event, never swallowed. Method: one of each on a seed in TRAINING."""
    loop = mlp_loop()
    seed_id = loop.germinate("1").seed_id
    loop.train_epoch(3)
    before = loop.manager.lifecycle.seeds
    decision = loop.order(operation, **({"seed_id": seed_id} | fields))
    assert (decision.result, decision.reason) == (ly.COMMAND_RESULT_REJECTED, reason)
    (event,) = decision.events
    assert isinstance(event, ly.SeedMoveRejected)
    assert (event.reason, event.epoch, event.run_id) == (reason, 2, RUN_ID)
    assert event.command_id == "command-2"
    assert loop.manager.lifecycle.seeds == before


def test_stabilize_waits_for_alpha_one() -> None:
    """Goal: SHADOWING begins at alpha 1. Method: STABILIZE half-way up, then at the top."""
    loop = mlp_loop(config=KasminaConfig(blend_epochs=2.0))
    seed_id = loop.grow("1", ly.SEED_STAGE_BLENDING)
    loop.train_epoch(10)
    assert loop.order(ly.SEED_OP_STABILIZE, seed_id=seed_id).reason == "alpha_below_one"
    loop.train_epoch(10)
    assert loop.order(ly.SEED_OP_STABILIZE, seed_id=seed_id).result == ly.COMMAND_RESULT_APPLIED


@pytest.mark.parametrize(
    ("slot", "blueprint", "parameters", "check"),
    [
        ("nowhere", "BYPASS", {}, "slot_known"),
        ("1", " ", {}, "blueprint_named"),
        ("1", "BYPASS", {"width": float("inf")}, "parameters_not_finite"),
        ("1", "BYPASS", {"width": 99.0}, "width_max"),
        ("1", "BYPASS", {"width": 4.0, "depth": 1.0}, "parameters_unknown"),
    ],
)
def test_g0_refuses_before_anything_is_fetched(
    slot: str, blueprint: str, parameters: dict[str, float], check: str
) -> None:
    """Goal: an insane germination costs no kernel. Method: each fault; the runtime was never asked."""
    descriptor = ly.BlueprintDescriptor(
        allowed_parameters={"width": ly.BlueprintParameterBounds(min_value=1.0, max_value=32.0)},
        tier=ly.BLUEPRINT_TIER_SAFE,
        risk=0.3,
    )
    runtime = InMemoryRuntime(FACTORIES)
    loop = mlp_loop(runtime=runtime, descriptors={"BYPASS": descriptor})
    decision = loop.order(ly.SEED_OP_GERMINATE, slot=slot, blueprint=blueprint, parameters=parameters)
    assert decision.reason == "gate:SEED_GATE_G0_SANITY"
    gate, rejection = decision.events
    assert isinstance(gate, ly.GateEvaluated)
    assert check in {each.name for each in gate.checks if not each.passed}
    assert isinstance(rejection, ly.SeedMoveRejected)
    assert (rejection.from_stage, rejection.to_stage) == (ly.SEED_STAGE_DORMANT, ly.SEED_STAGE_GERMINATED)
    assert runtime.requests == []
    assert loop.manager.slot_states()[0].seed_id == ""
    loop.train_epoch(1)
    assert loop.germinate("1", width=8.0).result == ly.COMMAND_RESULT_APPLIED
    assert loop.state("1.1").risk_score == pytest.approx(0.3)


class Tampered(InMemoryRuntime):
    """A runtime whose store was meddled with, or that cannot read the request."""

    def __init__(self, error: Exception) -> None:
        super().__init__(FACTORIES)
        self._error = error

    def fetch_kernel(self, request: ly.KernelRequestSpec, *, run_id: str, wait_seconds: float) -> FetchedKernel:
        raise self._error


@pytest.mark.parametrize(
    ("runtime", "reason"),
    [
        (InMemoryRuntime(FACTORIES, unavailable={"BYPASS": "timeout"}), "kernel_unavailable:timeout"),
        (InMemoryRuntime({}), "kernel_unavailable:unknown_blueprint"),
        (Tampered(IntegrityError("the digest differs")), "kernel_unavailable:integrity"),
        (Tampered(UsageError("no such layout")), "kernel_unavailable:unusable_request"),
    ],
)
def test_without_a_kernel_the_seed_contributes_nothing(runtime: InMemoryRuntime, reason: str) -> None:
    """Goal: a failed fetch is a rejection. Method: four ways to fail; no seed, no hook, the host byte-equal."""
    loop = mlp_loop(runtime=runtime)
    before = all_bytes(loop.model)
    decision = loop.germinate("1")
    assert (decision.result, decision.reason) == (ly.COMMAND_RESULT_REJECTED, reason)
    (event,) = decision.events
    assert isinstance(event, ly.SeedMoveRejected)
    assert loop.manager.summaries() == loop.manager.seed_states() == []
    assert not any(module._forward_hooks for module in loop.model.modules())
    assert all_bytes(loop.model) == before


def test_building_a_kernel_draws_nothing_from_the_hosts_stream() -> None:
    """Goal: germination does not shift the host's random stream. Method: a factory that draws from the global one."""

    def careless(request: ly.KernelRequestSpec, generator: torch.Generator) -> torch.nn.Module:
        torch.rand(3)
        return FACTORIES["BYPASS"](request, generator)

    loop = mlp_loop(runtime=InMemoryRuntime({"BYPASS": careless}))
    state = torch.get_rng_state()
    assert loop.germinate("1").result == ly.COMMAND_RESULT_APPLIED
    assert torch.equal(torch.get_rng_state(), state)


def test_an_edge_is_decided_once() -> None:
    """Goal: exactly one decision per edge. Method: decide the same epoch twice, an earlier one, and the next."""
    loop = mlp_loop()
    loop.manager.decide(None, epoch=3)
    for epoch in (3, 2):
        with pytest.raises(IntegrityError, match="was decided before"):
            loop.manager.decide(None, epoch=epoch)
    loop.manager.decide(None, epoch=4)


def test_nothing_happens_before_the_log_has_it() -> None:
    """Goal: append first, then act. Method: an append that fails on the second event; the host is as before, and the
    manager refuses to go on without it.
    """
    loop = mlp_loop()
    appended: list[EventMessage] = []

    def failing(event: EventMessage) -> None:
        if appended:
            raise ConnectionError("the broker is away")
        appended.append(event)

    command = seed_command(ly.SEED_OP_GERMINATE, slot="1", blueprint="BYPASS")
    with pytest.raises(ConnectionError):
        loop.manager.handle_command(command, epoch=1, append=failing)
    assert loop.manager.summaries() == []
    assert not any(module._forward_hooks for module in loop.model.modules())
    for finish in (lambda: loop.manager.end_epoch(2), lambda: loop.manager.decide(None, epoch=2)):
        with pytest.raises(IntegrityError, match="4 of its events were not folded"):
            finish()


def test_only_the_next_event_can_be_folded() -> None:
    """Goal: folding is in order, once. Method: a foreign event, the second before the first, and one twice."""
    loop = mlp_loop()
    with pytest.raises(IntegrityError, match="no event is waited for"):
        loop.manager.fold(ly.SeedStageChanged())
    decision = loop.manager.decide(seed_command(ly.SEED_OP_GERMINATE, slot="1", blueprint="BYPASS"), epoch=1)
    with pytest.raises(IntegrityError, match="the next one is"):
        loop.manager.fold(decision.events[1])
    for event in decision.events:
        loop.manager.fold(event)
    with pytest.raises(IntegrityError):
        loop.manager.fold(decision.events[-1])
    assert loop.state("1.1").stage == ly.SEED_STAGE_TRAINING
