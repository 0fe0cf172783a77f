"""Tamiyo's rules and the evidence that Kasmina really measures: the names and the timing must fit."""

from __future__ import annotations

from esper.karn import catalogue
from esper.kasmina import KasminaSeedManager, discover_slots
from esper.kasmina.testing import InMemoryRuntime, KernelFactory
from esper.leyline import messages as ly
from esper.tamiyo import RunState, decide, fold
from esper.tamiyo._due import reports_due
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


def trained(policy: str, *, epochs: int) -> tuple[TrainingResult, RunState]:
    """Train `digits` in memory under `policy` and return the result and the controller's state."""
    request = ly.TrainingRunRequested(
        run_id="run-real", task="digits", host="mlp", policy=policy, epochs=epochs, seed=3
    )
    state = RunState(request.run_id)

    def answer(packet: ly.SystemStatePacket) -> ly.AdaptationCommand:
        nonlocal state
        state = fold(state, packet)
        decision = decide(state, state.packets[packet.current_epoch])
        state = fold(state, decision.made)
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
