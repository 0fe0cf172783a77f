"""Recorded runs of every kind, computed again and forked from the log of a real broker."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from esper.karn import catalogue
from esper.kasmina import GateLimits, KasminaConfig
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.tolaria import re_execute
from esper.weatherlight._grafting import controller
from esper.weatherlight._run_record import read_record
from tests.campaigns import WHOLE, seed_of
from tests.kasmina.kernels import RealKernels
from tests.tolaria.live import Answers, Log, ask, responder, worker

RUNS = 50 if WHOLE else 3
#: Each so many runs are forked as well, with the same commands and with others.
FORKED_EVERY = 5 if WHOLE else 3
EPOCHS = 8
#: A transformer with a large seed takes a while on a machine that is busy.
PATIENCE_SECONDS = 900.0
KINDS = [("spirals", "mlp"), ("lines", "mlp"), ("lines", "cnn_bn"), ("squares", "cnn"), ("characters", "transformer")]
#: What a loop may be asked for; each with even chances.
HYPERPARAMETERS = {"bfloat16": 1.0, "clip_norm": 0.3, "gradient_accumulation": 2.0, "batch_size": 128.0}
SAFE = [blueprint for blueprint in catalogue().values() if blueprint.tier == "SAFE"]
#: Of few epochs nothing pays; here it counts that every move is made.
EASY = KasminaConfig(blend_epochs=1.0, limits=GateLimits(shadow_loss_rise_max=10.0, gain_min=-10.0))
NEXT = {
    ly.SEED_STAGE_TRAINING: [ly.SEED_OP_START_GRAFTING, ly.SEED_OP_START_GRAFTING, ly.SEED_OP_CULL],
    ly.SEED_STAGE_BLENDING: [ly.SEED_OP_STABILIZE, ly.SEED_OP_STABILIZE, ly.SEED_OP_CULL],
    ly.SEED_STAGE_SHADOWING: [ly.SEED_OP_EVALUATE],
    ly.SEED_STAGE_PROBATIONARY: [ly.SEED_OP_FOSSILIZE],
}
Note = Callable[[str, object], None]


@dataclass(frozen=True)
class Plan:
    """What a run is asked for."""

    task: str
    host: str
    policy: str
    seed: int
    checkpoint_every: int
    hyperparameters: dict[str, float] = field(default_factory=dict)

    @classmethod
    def drawn(cls, number: int, chosen: random.Random) -> Plan:
        task, host = KINDS[number % len(KINDS)]
        wanted = {name: value for name, value in HYPERPARAMETERS.items() if chosen.random() < 0.5}
        policy = "keeps still" if number % 10 == 9 else "grafts at random"
        return cls(task, host, policy, chosen.randrange(1 << 30), chosen.choice([0, 1, 2, 3]), wanted)

    def ask(self, fabric: Fabric, **fields: object) -> ly.TrainingRunRequested:
        return ask(
            fabric,
            task=f"tests.tolaria.short:{self.task}",
            host=self.host,
            epochs=EPOCHS,
            seed=self.seed % 1000,
            decision_wait_seconds=60,
            hyperparameters=self.hyperparameters,
            **fields,
        )


def still(_: ly.SystemStatePacket) -> ly.CommandType:
    """Order nothing."""
    return ly.COMMAND_CONTINUE


def grafting(packet: ly.SystemStatePacket, *, seed: int) -> ly.CommandType | ly.AdaptationCommand:
    """Germinate any SAFE blueprint with any parameters in any free slot, and move seeds on or cull them, at random."""
    chosen = random.Random(f"{seed} {packet.current_epoch}")  # noqa: S311 - a policy's whim, not a secret
    free = [slot for slot in packet.slots if not slot.seed_id]
    moving = [state for state in packet.seed_states if state.stage in NEXT]
    if free and (not moving or chosen.random() < 0.2):
        return _germination(chosen.choice(free), chosen)
    if not moving:
        return ly.COMMAND_CONTINUE
    state = chosen.choice(moving)
    command = ly.AdaptationCommand(command_type=ly.COMMAND_SEED, target_seed_id=state.seed_id)
    command.seed_operation.operation = chosen.choice(NEXT[state.stage])
    return command


def _germination(slot: ly.SlotState, chosen: random.Random) -> ly.AdaptationCommand:
    blueprint = chosen.choice([each for each in SAFE if slot.layout in each.layouts])
    command = ly.AdaptationCommand(command_type=ly.COMMAND_SEED)
    command.seed_operation.operation = ly.SEED_OP_GERMINATE
    command.seed_operation.slot, command.seed_operation.blueprint_id = slot.slot, blueprint.blueprint_id
    for name, (low, high) in blueprint.parameters.items():
        command.seed_operation.parameters[name] = chosen.uniform(low, high)
    return command


def recorded(fabric: Fabric, asked: ly.TrainingRunRequested, answers: Answers, runtime: RealKernels) -> list[str]:
    """Let a worker train what was asked for; return the digests of its epochs."""
    log = Log(fabric, asked.run_id)
    with (
        responder(fabric, asked.run_id, answers),
        worker(fabric, controller_factory=lambda setup: controller(setup, runtime, EASY)),
    ):
        log.finished(PATIENCE_SECONDS)
    packets = {packet.current_epoch: packet.weights_digest for packet in log.of(ly.SystemStatePacket)}
    return [packets[epoch] for epoch in sorted(packets)]


def difference(fabric: Fabric, run_id: str, runtime: RealKernels) -> object:
    """Return the first thing in which a run, computed again from the log, is not what was recorded."""
    record = read_record(fabric, run_id)
    past = record.past
    compared = re_execute(
        record.request,
        past.recording.outcomes.values(),
        past.recording.packets.values(),
        lambda setup: controller(setup, runtime, EASY),
        finished=past.finished,
        checkpoints=past.checkpoints,
    )
    return compared.first_difference if compared.epochs == EPOCHS else f"only {compared.epochs} epochs were compared"


@contextmanager
def keeping(fabric: Fabric, every: int) -> Iterator[Fabric]:
    """Open the broker's fabric with a checkpoint every so many epochs."""
    settings = fabric.settings.model_copy(update={"checkpoint_every_epochs": every})
    with Fabric.open(settings, member="test-recorded") as opened:
        yield opened


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_recorded_runs_of_every_kind_repeat_and_fork(
    request: pytest.FixtureRequest, fabric: Fabric, record_property: Note
) -> None:
    """Goal: the log is the model. Method: runs of varied tasks, hosts, hyperparameters, cadences and seeds whose random
    policy really grafts; each computed again, checkpoints and end included. Some are forked: under the same commands
    every digest is the origin's, under others those up to the fork, and both forks repeat too."""
    chosen = random.Random(seed_of(request))  # noqa: S311 - which runs are made, not a secret
    runtime, tally, found = RealKernels(), Counter[str](), []
    for number in range(RUNS):
        plan = Plan.drawn(number, chosen)
        answers: Answers = still if plan.policy == "keeps still" else partial(grafting, seed=plan.seed)
        with keeping(fabric, plan.checkpoint_every) as opened:
            asked = plan.ask(opened)
            digests = recorded(opened, asked, answers, runtime)
            run_ids = [asked.run_id]
            if number % FORKED_EVERY == 0:
                at = chosen.randint(2, EPOCHS - 2)
                again, other = (plan.ask(opened, forked_from=asked.run_id, forked_epochs=at) for _ in range(2))
                assert recorded(opened, again, answers, runtime) == digests, plan
                # The packet after the fork still follows from the last recorded outcome.
                otherwise = recorded(opened, other, still, runtime)
                assert otherwise[: at + 1] == digests[: at + 1], plan
                run_ids += [again.run_id, other.run_id]
                tally.update(forks=2, forks_that_parted=int(otherwise != digests))
            differences = [difference(opened, run_id, runtime) for run_id in run_ids]
            found += [(plan, each) for each in differences if each is not None]
            tally.update(_facts(Log(opened, asked.run_id), plan))
            tally.update(verified=len(run_ids))
    record_property("runs", RUNS)
    record_property("seen", dict(tally))
    record_property("that_differ", len(found))
    assert not found, found
    assert tally["applied"] > tally["runs"], "seeds were really moved"


def _facts(log: Log, plan: Plan) -> dict[str, int]:
    """Return what is worth counting of a run."""
    outcomes: list[Any] = log.of(ly.CommandOutcome)
    seeds = [each for each in outcomes if each.command_type == ly.COMMAND_SEED]
    applied = sum(each.result == ly.COMMAND_RESULT_APPLIED for each in seeds)
    checkpoints = len(log.of(ly.CheckpointSaved))
    asked = {f"{plan.task} on {plan.host}": 1, **dict.fromkeys(plan.hyperparameters, 1)}
    return {"runs": 1, "applied": applied, "rejected": len(seeds) - applied, "checkpoints": checkpoints, **asked}
