"""Tamiyo's rules and the evidence that Kasmina really measures: the names and the timing must fit."""

from __future__ import annotations

from collections.abc import Sequence

from esper.karn import catalogue
from esper.kasmina import KasminaSeedManager, discover_slots
from esper.kasmina.testing import InMemoryRuntime, KernelFactory
from esper.leyline import messages as ly
from esper.tamiyo import RunState, decide, fold
from esper.tamiyo._due import reports_due
from esper.tamiyo.risk import Alarm, Surroundings
from esper.tolaria import MemoryJournal, TolariaTrainer, TrainingResult, TrainingSetup, prepared


def kernels() -> InMemoryRuntime:
    """Return a runtime that builds Karn's blueprints in this process."""

    def factory(blueprint_id: str) -> KernelFactory:
        blueprint = catalogue()[blueprint_id]
        return lambda request, generator: blueprint.build(
            layout=request.layout,
            shape=request.in_shape,
            parameters=request.parameters,
            generator=generator,
            out_shape=request.out_shape,
        )

    return InMemoryRuntime({blueprint_id: factory(blueprint_id) for blueprint_id in catalogue()})


def trained(
    policy: str, *, epochs: int, alarmed: Sequence[int] = (), seen: list[ly.SystemStatePacket] | None = None
) -> tuple[TrainingResult, RunState]:
    """Train `digits` in memory under `policy` and return the result and the controller's state.

    In `alarmed` epochs an emergency signal is in force; what the worker says of each epoch is put into `seen`.
    """
    request = ly.TrainingRunRequested(
        run_id="run-real", task="digits", host="mlp", policy=policy, epochs=epochs, seed=3
    )
    state = RunState(request.run_id)

    def answer(packet: ly.SystemStatePacket) -> ly.AdaptationCommand:
        nonlocal state
        state = fold(state, packet)
        alarms = (Alarm("signal-1", "operator", "smoke"),) if packet.current_epoch in alarmed else ()
        decision = decide(state, state.packets[packet.current_epoch], surroundings=Surroundings(alarms=alarms))
        state = fold(state, decision.made)
        if seen is not None:
            seen.append(packet)
        return decision.command

    with prepared(request) as setup:
        journal = MemoryJournal(policy=answer)
        result = TolariaTrainer(setup, controller(setup), journal).run()
    for outcome in journal.outcomes:
        state = fold(state, outcome)
    return result, fold(state, ly.TrainingRunFinished(attempt=1, epochs=result.epochs))


def controller(setup: TrainingSetup) -> KasminaSeedManager:
    """Return Kasmina on the host's own slots."""
    names = [f"{slot.module}:{slot.placement}" for slot in setup.slots]
    return KasminaSeedManager(
        setup.model,
        discover_slots(setup.model, setup.train.inputs[:2], names),
        runtime=kernels(),
        run_id=setup.request.run_id,
        seed=setup.request.seed,
        loss_fn=setup.loss,
        probe=[(setup.probe.inputs, setup.probe.targets)],
        optimizer=setup.optimizer,
    )


def test_the_rules_grow_a_real_network() -> None:
    """Seven epochs of digits with the real graft controller: every gate passes, the seed is kept, and it pays."""
    grown, state = trained("heuristic", epochs=7)
    static, _ = trained("noop", epochs=7)
    assert [seed.stage for seed in grown.seeds] == [ly.SEED_STAGE_FOSSILIZED]
    assert {outcome.result for outcome in state.outcomes.values()} == {ly.COMMAND_RESULT_APPLIED}
    assert grown.validation.accuracy > static.validation.accuracy + 0.05
    reports = {report.seed_operation: report for report in reports_due(state)}
    germination = reports[ly.SEED_OP_GERMINATE]
    assert germination.counterfactual_gain > 0.0
    assert germination.outcome == ly.FIELD_REPORT_OUTCOME_SUCCESS
    assert germination.reward_parts["parameter_rent"] < 0.0


def test_a_pause_of_the_gate_is_carried_out_and_ends() -> None:
    """An emergency at epoch 3 of 9: Kasmina applies the pause, the seed stands still for two epochs and goes on."""
    seen: list[ly.SystemStatePacket] = []
    result, state = trained("heuristic", epochs=9, alarmed=[3], seen=seen)
    assert {outcome.result for outcome in state.outcomes.values()} == {ly.COMMAND_RESULT_APPLIED}
    paused = [epoch for epoch, decision in state.decisions.items() if decision.paused]
    assert paused == [3]
    assert state.decisions[3].operation == ly.SEED_OP_START_GRAFTING, "what was proposed is kept"
    assert [packet.current_epoch for packet in seen if packet.growth.paused] == [4]
    assert seen[3].growth.paused_until_epoch == 5
    (before,), (after,) = seen[2].seed_states, seen[4].seed_states
    assert before.stage == after.stage == ly.SEED_STAGE_TRAINING
    assert before.metrics["optimizer_steps"] == after.metrics["optimizer_steps"], "nothing was learned meanwhile"
    assert [seed.stage for seed in result.seeds] == [ly.SEED_STAGE_FOSSILIZED]
    reports = {report.epoch: report for report in reports_due(state)}
    assert reports[3].outcome == ly.FIELD_REPORT_OUTCOME_ABORTED
    assert reports[3].seed_operation == ly.SEED_OP_START_GRAFTING
