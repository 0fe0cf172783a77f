"""A scripted stand-in for a worker: packets by the contract, moves as the lifecycle allows, losses by formula.

It trains nothing. The real worker is tested with Tamiyo where both are wired together; here a run must be cheap
enough to play hundreds of them and odd enough to contain what no real run shows on demand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from esper.core.ids import derive_id
from esper.leyline import messages as ly
from esper.tamiyo._decide import decide
from esper.tamiyo._due import packet_to_decide, reports_due
from esper.tamiyo._state import RunState, fold

_NEXT = {
    ly.SEED_OP_START_GRAFTING: (ly.SEED_STAGE_TRAINING, ly.SEED_STAGE_BLENDING),
    ly.SEED_OP_STABILIZE: (ly.SEED_STAGE_BLENDING, ly.SEED_STAGE_SHADOWING),
    ly.SEED_OP_EVALUATE: (ly.SEED_STAGE_SHADOWING, ly.SEED_STAGE_PROBATIONARY),
    ly.SEED_OP_FOSSILIZE: (ly.SEED_STAGE_PROBATIONARY, ly.SEED_STAGE_FOSSILIZED),
}


def slot_state(name: str = "hidden", *, placement: str = "branch", inputs: int = 40, outputs: int = 8) -> ly.SlotState:
    """Return a free slot."""
    return ly.SlotState(
        slot=name, module=name, placement=placement, layout="vector", in_shape=[inputs], out_shape=[outputs]
    )


@dataclass
class Seed:
    """A seed of the script; `gain` is the share of the loss that it saves at alpha 1."""

    seed_id: str
    slot: str
    blueprint_id: str
    gain: float
    stage: ly.SeedLifecycleStage = ly.SEED_STAGE_TRAINING
    alpha: float = 0.0
    blend_epochs: float = 2.0
    stage_epochs: int = 0
    age_epochs: int = 0


@dataclass
class ScriptedRun:
    """Plays the worker's part of one run; `gain` is what its seeds are worth, negative for harmful ones."""

    run_id: str
    epochs: int = 40
    policy: str = "heuristic"
    gain: float = 0.2
    parameters: Mapping[str, float] = field(default_factory=dict)
    slots: Sequence[ly.SlotState] = field(default_factory=lambda: [slot_state()])
    refuse: Sequence[int] = ()
    epochs_told: int | None = None
    seed: int = 7
    seeds: list[Seed] = field(default_factory=list)
    epoch: int = 0
    stages_seen: dict[str, list[int]] = field(default_factory=dict)
    #: Epoch -> by how much its loss leaps up.
    leaps: Mapping[int, float] = field(default_factory=dict)
    paused_until: int = 0

    def request(self) -> ly.TrainingRunRequested:
        """Return the request that began the run."""
        return ly.TrainingRunRequested(
            meta=self._meta("request", 0, "cli"),
            run_id=self.run_id,
            task="mnist1d",
            host="mlp",
            policy=self.policy,
            policy_parameters=dict(self.parameters),
            epochs=self.epochs,
            seed=self.seed,
        )

    def next_packet(self) -> ly.SystemStatePacket:
        """Train one epoch and return its packet."""
        self.epoch += 1
        for seed in self.seeds:
            seed.stage_epochs += 1
            seed.age_epochs += 1
            if seed.stage == ly.SEED_STAGE_BLENDING and self.epoch > self.paused_until:
                seed.alpha = min(1.0, seed.stage_epochs / seed.blend_epochs)
            self.stages_seen.setdefault(seed.seed_id, []).append(seed.stage)
        host_loss = 2.0 * 0.97**self.epoch
        loss = host_loss * (1.0 - sum(seed.gain * seed.alpha for seed in self.seeds if seed.alpha))
        loss *= self.leaps.get(self.epoch, 1.0)
        paused = self.paused_until > self.epoch
        held = ly.GrowthState(paused=True, paused_until_epoch=self.paused_until) if paused else None
        return ly.SystemStatePacket(
            meta=self._meta("state", self.epoch, "tolaria"),
            version=1,
            training_run_id=self.run_id,
            attempt=1,
            current_epoch=self.epoch,
            epochs_planned=self.epochs if self.epochs_told is None else self.epochs_told,
            training_loss=loss,
            validation_loss=loss,
            validation_accuracy=max(0.0, 1.0 - loss / 2.0),
            training_metrics={"latency_ms": 12.5},
            seed_states=[self._seed_state(seed, host_loss) for seed in self.seeds],
            slots=[self._slot(slot) for slot in self.slots],
            policy=self.policy,
            parameters=400 + 3000 * sum(seed.alpha > 0 for seed in self.seeds),
            multiply_adds=1_000_000 * self.epoch,
            task="mnist1d",
            host="mlp",
            seed=self.seed,
            growth=held,
        )

    def apply(self, command: ly.AdaptationCommand | None) -> ly.CommandOutcome:
        """Carry out a command as Kasmina's lifecycle would; return the epoch's outcome."""
        outcome = ly.CommandOutcome(
            meta=self._meta("outcome", self.epoch, "tolaria"), run_id=self.run_id, attempt=1, epoch=self.epoch
        )
        outcome.state_event_id = derive_id(self.run_id, "state", self.epoch)
        if command is None:
            outcome.result, outcome.reason = ly.COMMAND_RESULT_NONE, "timeout"
            return outcome
        operation = command.seed_operation
        outcome.command_id, outcome.decision_id = command.command_id, command.decision_id
        outcome.command_type, outcome.seed_operation = command.command_type, operation.operation
        if command.command_type == ly.COMMAND_PAUSE:
            self.paused_until = self.epoch + command.pause.epochs
            outcome.result = ly.COMMAND_RESULT_APPLIED
            return outcome
        refused = operation.operation in self.refuse
        done = command.command_type == ly.COMMAND_CONTINUE or (not refused and self._move(command, outcome))
        outcome.result = ly.COMMAND_RESULT_APPLIED if done else ly.COMMAND_RESULT_REJECTED
        outcome.reason = "" if done else "gate:SEED_GATE_TEST" if refused else "illegal_move"
        return outcome

    def finished(self) -> ly.TrainingRunFinished:
        """Return the end of a run that trained all its epochs."""
        return ly.TrainingRunFinished(
            meta=self._meta("finished", self.epoch, "tolaria"), run_id=self.run_id, attempt=1, epochs=self.epoch
        )

    def failed(self) -> ly.TrainingRunFailed:
        """Return the end of a run whose worker was lost."""
        return ly.TrainingRunFailed(
            meta=self._meta("failed", self.epoch, "weatherlight"),
            run_id=self.run_id,
            attempt=1,
            epochs=self.epoch,
            reason="worker_lost",
        )

    def stages(self) -> list[str]:
        """Return the last stage of every seed by its short name."""
        return [ly.SeedLifecycleStage.Name(seed.stage).removeprefix("SEED_STAGE_") for seed in self.seeds]

    def _move(self, command: ly.AdaptationCommand, outcome: ly.CommandOutcome) -> bool:
        operation = command.seed_operation
        if operation.operation == ly.SEED_OP_GERMINATE:
            free = any(slot.slot == operation.slot for slot in self.slots) and not self._holder(operation.slot)
            if free:
                seed_id = f"{operation.slot}.{1 + sum(seed.slot == operation.slot for seed in self.seeds)}"
                self.seeds.append(Seed(seed_id, operation.slot, operation.blueprint_id, self.gain))
                outcome.seed_id = seed_id
            return free
        seed = next((seed for seed in self.seeds if seed.seed_id == command.target_seed_id), None)
        if seed is None:
            return False
        outcome.seed_id = seed.seed_id
        if operation.operation == ly.SEED_OP_CULL:
            seed.stage, seed.alpha, seed.stage_epochs = ly.SEED_STAGE_EMBARGOED, 0.0, 0
            return True
        begin, end = _NEXT.get(operation.operation, (None, None))
        ready = operation.operation != ly.SEED_OP_STABILIZE or seed.alpha >= 1.0
        if seed.stage != begin or end is None or not ready:
            return False
        seed.stage, seed.stage_epochs = end, 0
        seed.blend_epochs = operation.parameters.get("blend_epochs", seed.blend_epochs)
        return True

    def _holder(self, slot: str) -> Seed | None:
        return next((seed for seed in self.seeds if seed.slot == slot), None)

    def _slot(self, slot: ly.SlotState) -> ly.SlotState:
        holder = self._holder(slot.slot)
        held = ly.SlotState()
        held.CopyFrom(slot)
        held.seed_id = holder.seed_id if holder else ""
        return held

    def _seed_state(self, seed: Seed, host_loss: float) -> ly.SeedState:
        state = ly.SeedState(
            seed_id=seed.seed_id,
            slot=seed.slot,
            stage=seed.stage,
            blueprint_id=seed.blueprint_id,
            alpha=seed.alpha,
            stage_epochs=seed.stage_epochs,
            age_epochs=seed.age_epochs,
            learning_rate=0.003,
        )
        if seed.stage == ly.SEED_STAGE_TRAINING:
            learnt = seed.gain * min(1.0, 0.3 * seed.stage_epochs)
            on = host_loss * (1.0 - learnt)
            state.metrics.update(shadow_loss_first=host_loss, shadow_loss=on, loss_seed_on=on, loss_seed_off=host_loss)
        elif seed.alpha > 0.0:
            state.metrics.update(loss_seed_off=host_loss, loss_seed_on=host_loss * (1.0 - seed.gain * seed.alpha))
        return state

    def _meta(self, kind: str, number: int, source: str) -> ly.EventMeta:
        return ly.EventMeta(event_id=derive_id(self.run_id, kind, number), subject=self.run_id, source=source)


def play(run: ScriptedRun, *, deaf_epochs: Sequence[int] = ()) -> RunState:
    """Play a whole run against the pure core and return the state at its end, reports folded in.

    In `deaf_epochs` the worker gets no command, as if Tamiyo were away.
    """
    state = fold(RunState(run.run_id), run.request())
    for _ in range(run.epochs):
        state = fold(state, run.next_packet())
        command = None
        packet = packet_to_decide(state)
        assert packet is not None, "an open epoch waits for its decision"
        if run.epoch not in deaf_epochs:
            decision = decide(state, packet)
            command = decision.command
            state = fold(fold(state, decision.made), command)
        state = fold(state, run.apply(command))
        for report in reports_due(state):
            state = fold(state, report)
    state = fold(state, run.finished())
    for report in reports_due(state):
        state = fold(state, report)
    return state
