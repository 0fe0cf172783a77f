"""Every kind of slot that a shipped host has is grown by a worker on the real broker, and repeated from the log."""

from __future__ import annotations

import pytest

from esper.karn import catalogue
from esper.kasmina.testing import InMemoryRuntime, KernelFactory
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.tolaria import re_execute
from esper.weatherlight._grafting import controller
from tests.tolaria.live import Log, ask, responder, worker

BLUEPRINT = "BP009"
MOVES = {
    1: ly.SEED_OP_GERMINATE,
    6: ly.SEED_OP_START_GRAFTING,
    9: ly.SEED_OP_STABILIZE,
    10: ly.SEED_OP_EVALUATE,
    11: ly.SEED_OP_FOSSILIZE,
}
EPOCHS = 12


def of_catalogue(blueprint_id: str) -> KernelFactory:
    """Return what builds the kernels of a blueprint as Karn does."""
    blueprint = catalogue()[blueprint_id]
    return lambda request, generator: blueprint.build(
        layout=request.layout,
        shape=tuple(request.in_shape),
        out_shape=tuple(request.out_shape),
        parameters=dict(request.parameters),
        generator=generator,
    )


def order(packet: ly.SystemStatePacket) -> ly.CommandType | ly.AdaptationCommand:
    """Answer as a fixed schedule does: one seed in the first slot, from the soil to the host."""
    operation = MOVES.get(packet.current_epoch)
    if operation is None:
        return ly.COMMAND_CONTINUE
    command = ly.AdaptationCommand(command_type=ly.COMMAND_SEED)
    command.seed_operation.operation = operation
    if operation == ly.SEED_OP_GERMINATE:
        command.seed_operation.slot = packet.slots[0].slot
        command.seed_operation.blueprint_id = BLUEPRINT
        command.seed_operation.parameters["depth"] = 1.0
    elif packet.seed_states:
        command.target_seed_id = packet.seed_states[0].seed_id
    return command


@pytest.mark.parametrize(
    ("task", "host", "layout", "shape", "rate"),
    [
        ("spirals", "mlp", "vector", [2], 0.01),
        ("lines", "cnn_bn", "map1d", [4, 20], 0.01),
        ("squares", "cnn", "map2d", [2, 4, 4], 0.01),
        ("characters", "transformer", "sequence", [64, 32], 0.003),
    ],
)
def test_a_graft_in_each_kind_of_slot(
    fabric: Fabric, task: str, host: str, layout: str, shape: list[int], rate: float
) -> None:
    """Goal: shipped hosts grow, whatever their layout. Method: a short version of each task through a worker; a seed of
    the catalogue to the end of its life; the recorded run computed again.
    """
    runtime = InMemoryRuntime({BLUEPRINT: of_catalogue(BLUEPRINT)})
    asked = ask(
        fabric,
        task=f"tests.tolaria.short:{task}",
        host=host,
        epochs=EPOCHS,
        decision_wait_seconds=60,
        hyperparameters={"learning_rate": rate},
    )
    log = Log(fabric, asked.run_id)
    with (
        responder(fabric, asked.run_id, order),
        worker(fabric, controller_factory=lambda setup: controller(setup, runtime)),
    ):
        finished = log.finished()
    packets, outcomes = log.of(ly.SystemStatePacket), log.of(ly.CommandOutcome)
    slot = packets[0].slots[0]
    assert (slot.layout, list(slot.in_shape)) == (layout, shape)
    moved = {outcome.epoch: (outcome.result, outcome.reason) for outcome in outcomes if outcome.epoch in MOVES}
    assert moved == dict.fromkeys(MOVES, (ly.COMMAND_RESULT_APPLIED, ""))
    assert [(seed.slot, seed.blueprint_id, seed.stage) for seed in finished.seeds] == [
        (slot.slot, BLUEPRINT, ly.SEED_STAGE_FOSSILIZED)
    ]
    assert finished.parameters > packets[0].parameters
    again = re_execute(asked, outcomes, packets, lambda setup: controller(setup, runtime), finished=finished)
    assert (again.epochs, again.first_difference) == (EPOCHS, None)
