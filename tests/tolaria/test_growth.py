"""Growth through the real Kasmina: it pays, it is part of the digest, and it repeats from the record."""

from __future__ import annotations

import pytest

from esper.kasmina import KasminaSeedManager
from esper.kasmina.testing import InMemoryRuntime, bypass
from esper.leyline import messages as ly
from esper.tolaria import (
    ControllerFactory,
    MemoryJournal,
    Recording,
    ResumingJournal,
    StaticController,
    TolariaTrainer,
    TrainingResult,
    TrainingSetup,
    prepared,
    re_execute,
)
from tests.tolaria.grafting import seed_manager
from tests.tolaria.small import request, scheduled

EPOCHS = 20
#: One seed from the soil to the host, at the epochs that a schedule would choose.
MOVES = {
    2: ly.SEED_OP_GERMINATE,
    5: ly.SEED_OP_START_GRAFTING,
    8: ly.SEED_OP_STABILIZE,
    9: ly.SEED_OP_EVALUATE,
    10: ly.SEED_OP_FOSSILIZE,
}
schedule = scheduled(MOVES)


def grown(runtime: InMemoryRuntime) -> ControllerFactory:
    """Return what makes a real seed manager for an attempt."""

    def make(setup: TrainingSetup) -> KasminaSeedManager:
        return seed_manager(setup, runtime)

    return make


def asked() -> ly.TrainingRunRequested:
    return request(task="mnist1d", epochs=EPOCHS, seed=3)


def train(factory: ControllerFactory, journal: MemoryJournal | ResumingJournal, *, attempt: int = 1) -> TrainingResult:
    with prepared(asked(), attempt=attempt) as setup:
        return TolariaTrainer(setup, factory(setup), journal).run()


@pytest.fixture(scope="module")
def runtime() -> InMemoryRuntime:
    return InMemoryRuntime({"BYPASS": bypass(width=64)})


@pytest.fixture(scope="module")
def journal() -> MemoryJournal:
    return MemoryJournal(policy=schedule)


@pytest.fixture(scope="module")
def result(runtime: InMemoryRuntime, journal: MemoryJournal) -> TrainingResult:
    return train(grown(runtime), journal)


def test_a_grown_network_beats_its_static_self(result: TrainingResult, journal: MemoryJournal) -> None:
    """Goal: growth pays on MNIST-1D. Method: the same request with a seed and without; all moves were applied."""
    static = train(lambda _: StaticController(), MemoryJournal())
    moved = {o.epoch: o.result for o in journal.outcomes if o.command_type == ly.COMMAND_SEED}
    assert moved == dict.fromkeys(MOVES, ly.COMMAND_RESULT_APPLIED)
    assert [seed.stage for seed in result.seeds] == [ly.SEED_STAGE_FOSSILIZED]
    assert result.test.accuracy > static.test.accuracy + 0.05
    assert result.parameters > static.parameters == 418
    assert result.multiply_adds_per_sample > static.multiply_adds_per_sample == 400
    assert result.multiply_adds > static.multiply_adds


def test_a_seed_in_training_is_in_the_digest_before_it_is_in_the_network(
    result: TrainingResult, journal: MemoryJournal
) -> None:
    """Goal: the digest covers all that decides the future. Method: against a run without the seed, epoch by epoch."""
    static = MemoryJournal()
    train(lambda _: StaticController(), static)
    pairs = list(zip(journal.packets, static.packets, strict=True))
    assert [left.weights_digest == right.weights_digest for left, right in pairs[:4]] == [True, True, False, False]
    # In TRAINING the seed is isolated: what the host computes is bit for bit that of the run without it.
    assert [left.validation_loss == right.validation_loss for left, right in pairs[:5]] == [True] * 5
    assert pairs[8][0].validation_loss != pairs[8][1].validation_loss
    assert result.digest == journal.packets[-1].weights_digest


def test_a_grown_run_repeats_from_its_record(
    result: TrainingResult, journal: MemoryJournal, runtime: InMemoryRuntime
) -> None:
    """Goal: the log is the model. Method: re-execute from request, outcomes and packets; then tamper with a kernel."""
    finished = ly.TrainingRunFinished(digest=result.digest, accuracy=result.test.accuracy, loss=result.test.loss)
    comparison = re_execute(asked(), journal.outcomes, journal.packets, grown(runtime), finished=finished)
    assert (comparison.epochs, comparison.first_difference) == (EPOCHS, None)
    outcomes = [ly.CommandOutcome.FromString(outcome.SerializeToString()) for outcome in journal.outcomes]
    outcomes[1].gate_verdicts["SEED_GATE_G0_SANITY"] = False
    difference = re_execute(asked(), outcomes, journal.packets, grown(runtime)).first_difference
    assert difference is not None
    assert difference.epoch == 2


@pytest.mark.parametrize("epochs", [3, 6, 15])
def test_a_successor_goes_on_with_what_has_grown(
    result: TrainingResult, journal: MemoryJournal, runtime: InMemoryRuntime, epochs: int
) -> None:
    """Goal: no stage of growth is lost with a worker. Method: resume in TRAINING, BLENDING and after FOSSILIZED."""
    recording = Recording.of(journal.packets[:epochs], journal.outcomes[:epochs])
    live = MemoryJournal(policy=schedule)
    assert train(grown(runtime), ResumingJournal(recording, live), attempt=2) == result
    assert [packet.weights_digest for packet in live.packets] == [
        packet.weights_digest for packet in journal.packets[epochs:]
    ]
