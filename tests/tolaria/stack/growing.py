"""Stacks and lone runs that grow by one schedule, on real kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from esper.kasmina.stack import StackedSeedManager
from esper.leyline import messages as ly
from esper.tamiyo import RunState, decide, fold
from esper.tolaria import MemoryJournal, TolariaTrainer, prepared
from esper.tolaria.stack import MemoryStackJournal, StackTrainer, prepared_stack
from esper.weatherlight._grafting import controller
from esper.weatherlight._stack_grafting import stacked_controller
from tests.kasmina.kernels import RealKernels
from tests.tolaria.stack.stacked import alone


class Tamiyo:
    """Decides by each run's own policy, as the real one does, without a log."""

    def __init__(self, requests: Sequence[ly.TrainingRunRequested]) -> None:
        self.states: dict[str, RunState] = {}
        for request in requests:
            request.meta.subject = request.run_id
            self.states[request.run_id] = fold(RunState(request.run_id), request)

    def __call__(self, packet: ly.SystemStatePacket) -> ly.AdaptationCommand:
        run_id = packet.training_run_id
        state = fold(self.states[run_id], packet)
        decision = decide(state, state.packets[packet.current_epoch])
        self.states[run_id] = fold(state, decision.made)
        command = decision.command
        command.meta.event_id = decision.command.command_id
        return command


class Impatient(Tamiyo):
    """Lets every seed that the policy culls fall for 50 epochs, and has the fall shortened an epoch later."""

    def __call__(self, packet: ly.SystemStatePacket) -> ly.AdaptationCommand:
        command = super().__call__(packet)
        if command.seed_operation.operation == ly.SEED_OP_CULL:
            command.seed_operation.parameters["fall_epochs"] = 50.0
        falling = [seed for seed in packet.seed_states if seed.stage == ly.SEED_STAGE_CULLED]
        if falling:
            command.command_type = ly.COMMAND_SEED
            command.target_seed_id = falling[0].seed_id
            command.seed_operation.CopyFrom(
                ly.CommandSeedOperation(operation=ly.SEED_OP_CULL, parameters={"fall_steps": 3.0})
            )
        return command


def grow_stack(
    requests: list[ly.TrainingRunRequested],
    kernels: RealKernels | None = None,
    decider: type[Tamiyo] = Tamiyo,
) -> tuple[MemoryStackJournal, StackTrainer, StackedSeedManager]:
    """Train a stack to its end."""
    journal = MemoryStackJournal(decider(requests))
    with prepared_stack(requests) as setup:
        grafts = stacked_controller(setup, kernels or RealKernels())
        trainer = StackTrainer(setup, grafts, journal)
        trainer.run()
    return journal, trainer, grafts


def grow_alone(request: ly.TrainingRunRequested, decider: type[Tamiyo] = Tamiyo) -> MemoryJournal:
    """Train a member by itself, to its end."""
    lone = alone(request)
    journal = MemoryJournal(decider([lone]))
    with prepared(lone) as setup:
        TolariaTrainer(setup, controller(setup, RealKernels()), journal).run()
    return journal


def schedule(**fields: float) -> Mapping[str, float]:
    """Return parameters of the policy `fixed`: quick, so that a seed comes to its end in few epochs."""
    return {"germinate": 1, "graft": 3, "blend": 1, **fields}
