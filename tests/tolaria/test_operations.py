"""Runs that use every order on a seed repeat from their record, and successors go on in the middle of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from esper.kasmina import GateLimits, KasminaConfig, KasminaSeedManager
from esper.kasmina.testing import InMemoryRuntime, bypass
from esper.leyline import messages as ly
from esper.tolaria import (
    ControllerFactory,
    MemoryJournal,
    Recording,
    ResumingJournal,
    TolariaTrainer,
    TrainingResult,
    TrainingSetup,
    prepared,
    re_execute,
)
from tests.kasmina.test_folding import low_rank
from tests.tolaria.grafting import seed_manager
from tests.tolaria.small import Policy, command, request

EPOCHS, SLOT, SEED = 12, "hidden.linear", "hidden.linear.1"
LIMITS = GateLimits(training_epochs_min=1, shadow_loss_rise_max=99.0, gain_min=-99.0, prune_rise_max=99.0)
Orders = Mapping[int, dict[str, Any]]
#: A linear seed that is held, tuned, blended by confidence and folded; the prune comes too late for it.
FOLDED: Orders = {
    1: {"operation": ly.SEED_OP_GERMINATE, "blueprint_id": "LOW_RANK", "slot": SLOT, "hold": True},
    2: {"operation": ly.SEED_OP_START_TRAINING},
    3: {"operation": ly.SEED_OP_FINE_TUNE, "parameters": {"rate_factor": 0.5, "epochs": 2.0}},
    4: {
        "operation": ly.SEED_OP_START_GRAFTING,
        "blend_mode": ly.BLEND_MODE_CONFIDENCE,
        "alpha_curve": ly.ALPHA_CURVE_LINEAR,
        "parameters": {"blend_epochs": 2.0},
    },
    6: {"operation": ly.SEED_OP_STABILIZE},
    7: {"operation": ly.SEED_OP_EVALUATE},
    8: {"operation": ly.SEED_OP_FOSSILIZE},
}
#: A seed that blends channel by channel, is taken back and fades.
FADED: Orders = {
    1: {"operation": ly.SEED_OP_GERMINATE, "blueprint_id": "BYPASS", "slot": SLOT},
    3: {"operation": ly.SEED_OP_START_GRAFTING, "blend_mode": ly.BLEND_MODE_CHANNEL},
    4: {"operation": ly.SEED_OP_CANCEL, "parameters": {"fall_epochs": 1.5}},
}
ALL = {"folded": FOLDED, "faded": FADED}
KERNELS = InMemoryRuntime({"LOW_RANK": low_rank, "BYPASS": bypass(width=16)})


def policy(orders: Orders) -> Policy:
    """Return a policy that gives these orders, whatever it sees."""

    def answer(packet: ly.SystemStatePacket) -> ly.AdaptationCommand:
        wish = orders.get(packet.current_epoch)
        if wish is None:
            return command(packet, ly.COMMAND_CONTINUE)
        ordered = command(packet, ly.COMMAND_SEED)
        ordered.seed_operation.CopyFrom(ly.CommandSeedOperation(**wish))
        if wish["operation"] != ly.SEED_OP_GERMINATE:
            ordered.target_seed_id = SEED
        return ordered

    return answer


def growing(setup: TrainingSetup) -> KasminaSeedManager:
    """Make a real seed manager for an attempt, with wide gates."""
    return seed_manager(setup, KERNELS, slots=[SLOT], config=KasminaConfig(limits=LIMITS))


def train(journal: MemoryJournal | ResumingJournal, *, attempt: int = 1) -> TrainingResult:
    """Train the run, to its end."""
    factory: ControllerFactory = growing
    with prepared(request(task="mnist1d", epochs=EPOCHS, seed=3), attempt=attempt) as setup:
        return TolariaTrainer(setup, factory(setup), journal).run()


@pytest.fixture(scope="module", params=ALL)
def lived(request: pytest.FixtureRequest) -> tuple[Orders, MemoryJournal, TrainingResult]:
    """A run of one of the scripts."""
    journal = MemoryJournal(policy=policy(ALL[request.param]))
    return ALL[request.param], journal, train(journal)


def test_the_orders_were_carried_out(lived: tuple[Orders, MemoryJournal, TrainingResult]) -> None:
    """Goal: what follows compares something. Method: results, choices and ends of both runs."""
    orders, journal, result = lived
    assert {outcome.epoch: outcome.result for outcome in journal.outcomes if outcome.epoch in orders} == dict.fromkeys(
        orders, ly.COMMAND_RESULT_APPLIED
    )
    choices = {outcome.epoch: dict(outcome.choices) for outcome in journal.outcomes if outcome.choices}
    (seed,) = result.seeds
    if orders is FOLDED:
        assert choices == {8: {"folded": 1.0}}
        assert seed.stage == ly.SEED_STAGE_FOSSILIZED
        assert result.parameters == 418, "the network has the host's own parameters and no others"
    else:
        (fall,) = choices[4].values()
        assert fall > 0
        stages = {packet.current_epoch: [seed.stage for seed in packet.seed_states] for packet in journal.packets}
        assert stages[5] == [ly.SEED_STAGE_CULLED]
        assert stages[6] == []
        assert seed.stage == ly.SEED_STAGE_DORMANT


def test_such_a_run_repeats_from_its_record(lived: tuple[Orders, MemoryJournal, TrainingResult]) -> None:
    """Goal: the log is the model. Method: every packet and the end, from request and outcomes; an outcome whose choice
    was altered does not repeat.
    """
    _, journal, result = lived
    asked = request(task="mnist1d", epochs=EPOCHS, seed=3)
    finished = ly.TrainingRunFinished(digest=result.digest, accuracy=result.test.accuracy, loss=result.test.loss)
    again = re_execute(asked, journal.outcomes, journal.packets, growing, finished=finished)
    assert (again.epochs, again.first_difference) == (EPOCHS, None)
    altered = [ly.CommandOutcome.FromString(outcome.SerializeToString()) for outcome in journal.outcomes]
    (chosen,) = [outcome for outcome in altered if outcome.choices]
    chosen.choices.clear()
    assert re_execute(asked, altered, journal.packets, growing).first_difference is not None


@pytest.mark.parametrize("epochs", [3, 5, 9])
def test_a_successor_goes_on_in_the_middle_of_it(
    lived: tuple[Orders, MemoryJournal, TrainingResult], epochs: int
) -> None:
    """Goal: held, tuned, falling or folded: a takeover loses none of it. Method: resume, compare digests and result."""
    orders, journal, result = lived
    recording = Recording.of(journal.packets[:epochs], journal.outcomes[:epochs])
    live = MemoryJournal(policy=policy(orders))
    assert train(ResumingJournal(recording, live), attempt=2) == result
    assert [packet.weights_digest for packet in live.packets] == [
        packet.weights_digest for packet in journal.packets[epochs:]
    ]
