"""Computing a recorded run again: equal where the record is true, and named where it is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch

from esper.core.errors import IntegrityError, UsageError
from esper.core.ports import EdgeDecision, GraftController
from esper.leyline import messages as ly
from esper.tolaria import (
    Comparison,
    Difference,
    MemoryJournal,
    NotRepeated,
    Recording,
    ResumingJournal,
    StaticController,
    TolariaTrainer,
    TrainingResult,
    TrainingSetup,
    prepared,
    re_execute,
)
from tests.tolaria.small import NudgingController, request, scripted
from tests.tolaria.test_trainer import CONTINUE, SEED, digests

POLICY = scripted(SEED, None, CONTINUE, SEED, ly.COMMAND_ROLLBACK)
EPOCHS = 5


@dataclass(frozen=True)
class Recorded:
    """A live run and everything that its log would hold."""

    result: TrainingResult
    journal: MemoryJournal

    @property
    def finished(self) -> ly.TrainingRunFinished:
        return ly.TrainingRunFinished(
            epochs=self.result.epochs,
            digest=self.result.digest,
            accuracy=self.result.test.accuracy,
            loss=self.result.test.loss,
        )


def nudging(setup: TrainingSetup) -> NudgingController:
    return NudgingController(setup, faults=frozenset({3}))


@pytest.fixture
def recorded() -> Recorded:
    """Give a run of 5 epochs with applied, missing and rejected commands, and a fault."""
    journal = MemoryJournal(policy=POLICY)
    with prepared(request(epochs=EPOCHS)) as setup:
        return Recorded(TolariaTrainer(setup, nudging(setup), journal).run(), journal)


def verify(
    recorded: Recorded,
    *,
    factory: Callable[[TrainingSetup], GraftController] = nudging,
    packets: Sequence[ly.SystemStatePacket] | None = None,
    outcomes: Sequence[ly.CommandOutcome] | None = None,
    finished: ly.TrainingRunFinished | None = None,
    **fields: object,
) -> Comparison:
    journal = recorded.journal
    return re_execute(
        request(epochs=EPOCHS, **fields),
        journal.outcomes if outcomes is None else outcomes,
        journal.packets if packets is None else packets,
        factory,
        finished=finished,
    )


def test_a_true_record_repeats(recorded: Recorded) -> None:
    """Goal: the log is the model. Method: re-execute all epochs and the end; everything agrees."""
    seen: list[int] = []
    comparison = re_execute(
        request(epochs=EPOCHS),
        recorded.journal.outcomes,
        recorded.journal.packets,
        nudging,
        finished=recorded.finished,
        on_epoch=seen.append,
    )
    assert comparison == Comparison("run-small", EPOCHS, None)
    assert comparison.equal
    assert seen == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("epoch", [1, 3, 5])
def test_a_tampered_digest_is_named_by_epoch(recorded: Recorded, epoch: int) -> None:
    """Goal: an altered record shows where. Method: one other digit in one epoch's digest."""
    packets = [ly.SystemStatePacket.FromString(packet.SerializeToString()) for packet in recorded.journal.packets]
    true = packets[epoch - 1].weights_digest
    packets[epoch - 1].weights_digest = ("1" if true[0] == "0" else "0") + true[1:]
    comparison = verify(recorded, packets=packets)
    assert not comparison.equal
    assert comparison.epochs == epoch - 1
    assert comparison.first_difference == Difference(
        epoch, "weights_digest", repr(packets[epoch - 1].weights_digest), repr(true)
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("training_loss", 0.25), ("validation_loss", -0.0), ("validation_accuracy", 1.0), ("multiply_adds", 3)],
)
def test_a_tampered_figure_is_named(recorded: Recorded, field: str, value: float) -> None:
    """Goal: figures are part of the record. Method: alter one figure of epoch 2; its digest stays true."""
    packets = [ly.SystemStatePacket.FromString(packet.SerializeToString()) for packet in recorded.journal.packets]
    setattr(packets[1], field, value)
    difference = verify(recorded, packets=packets).first_difference
    assert difference is not None
    assert (difference.epoch, difference.field, difference.recorded) == (2, field, repr(value))


def test_a_tampered_outcome_shows_in_the_weights_that_follow(recorded: Recorded) -> None:
    """Goal: outcomes decide what is computed. Method: turn the applied command of epoch 1 into another."""
    outcomes = [ly.CommandOutcome.FromString(outcome.SerializeToString()) for outcome in recorded.journal.outcomes]
    outcomes[0].command.command_type = CONTINUE
    difference = verify(recorded, outcomes=outcomes).first_difference
    assert difference is not None
    assert (difference.epoch, difference.field) == (1, "outcome.seed_id")
    outcomes[0].seed_id = ""
    difference = verify(recorded, outcomes=outcomes).first_difference
    assert difference is not None
    assert (difference.epoch, difference.field) == (2, "weights_digest")


def test_a_seed_state_that_differs_is_named(recorded: Recorded) -> None:
    """Goal: seeds are part of the record. Method: a packet that claims a seed that was never there."""
    packets = [ly.SystemStatePacket.FromString(packet.SerializeToString()) for packet in recorded.journal.packets]
    packets[2].seed_states.add(seed_id="body.9", stage=ly.SEED_STAGE_FOSSILIZED)
    difference = verify(recorded, packets=packets).first_difference
    assert difference is not None
    assert (difference.epoch, difference.field) == (3, "seed_states")


@pytest.mark.parametrize(("field", "value"), [("digest", "0" * 64), ("accuracy", 0.123), ("loss", 9.0)])
def test_a_tampered_end_is_named(recorded: Recorded, field: str, value: object) -> None:
    """Goal: the end's figures are recomputed as well. Method: alter one of them."""
    finished = recorded.finished
    setattr(finished, field, value)
    difference = verify(recorded, finished=finished).first_difference
    assert difference is not None
    assert (difference.epoch, difference.field, difference.recorded) == (EPOCHS, field, repr(value))


def test_another_seed_does_not_repeat(recorded: Recorded) -> None:
    """Goal: the request is part of the record. Method: re-execute with another seed."""
    difference = verify(recorded, seed=12).first_difference
    assert difference is not None
    assert (difference.epoch, difference.field) == (1, "weights_digest")


@pytest.mark.parametrize(("packets", "outcomes"), [(3, 3), (4, 3), (0, 0)])
def test_a_run_that_was_cut_off_is_compared_as_far_as_it_goes(recorded: Recorded, packets: int, outcomes: int) -> None:
    """Goal: dead and running runs can be verified. Method: cut after an outcome, and between packet and outcome."""
    journal = recorded.journal
    comparison = verify(recorded, packets=journal.packets[:packets], outcomes=journal.outcomes[:outcomes])
    assert comparison == Comparison("run-small", outcomes, None)
    if packets > outcomes:
        broken = [ly.SystemStatePacket.FromString(packet.SerializeToString()) for packet in journal.packets[:packets]]
        broken[-1].weights_digest = "0" * 64
        difference = verify(recorded, packets=broken, outcomes=journal.outcomes[:outcomes]).first_difference
        assert difference is not None
        assert difference.epoch == packets


def test_gates_that_measure_otherwise_are_a_difference(recorded: Recorded) -> None:
    """Goal: recorded verdicts bind. Method: a controller that refuses the recorded one, as Kasmina does."""

    class Refusing(NudgingController):
        def decide(
            self,
            command: ly.AdaptationCommand | None,
            *,
            epoch: int,
            recorded: ly.CommandOutcome | None = None,
            ruled: EdgeDecision | None = None,
        ) -> EdgeDecision:
            if epoch == 4:
                raise IntegrityError("the gate G0 fails now and passed then")
            return super().decide(command, epoch=epoch, recorded=recorded, ruled=ruled)

    comparison = verify(recorded, factory=lambda setup: Refusing(setup, faults=frozenset({3})))
    assert comparison.epochs == 3
    assert comparison.first_difference is not None
    assert comparison.first_difference.epoch == 4
    assert "G0 fails now" in comparison.first_difference.repeated


def test_a_loop_of_the_users_own_is_not_computed_again() -> None:
    """Goal: no claim that cannot be kept. Method: ask for a run that says it cannot be repeated."""
    asked = request()
    asked.re_executable = False
    with pytest.raises(UsageError, match="its loop was the user's own"):
        re_execute(asked, [], [], lambda _: StaticController())


def test_of_two_events_for_one_epoch_the_first_counts(recorded: Recorded) -> None:
    """Goal: the log's order decides. Method: a second, other outcome and packet for epoch 1 at the end."""
    journal = recorded.journal
    outcomes = [*journal.outcomes, ly.CommandOutcome(epoch=1, result=ly.COMMAND_RESULT_NONE)]
    packets = [*journal.packets, ly.SystemStatePacket(current_epoch=1, weights_digest="0" * 64)]
    assert verify(recorded, packets=packets, outcomes=outcomes).equal


@pytest.mark.parametrize(
    ("packets", "outcomes", "words"),
    [
        ([1, 3], [1], "the state packet of epoch 2 is missing"),
        ([1, 2, 3], [1, 3], "the outcome of epoch 2 is missing"),
        ([1], [1, 2], "it has 2 outcomes, but 1 state packets"),
    ],
)
def test_a_record_with_a_gap_is_refused(packets: list[int], outcomes: list[int], words: str) -> None:
    """Goal: what was lost is said, not guessed. Method: take an epoch out."""
    with pytest.raises(IntegrityError, match=words):
        Recording.of(
            [ly.SystemStatePacket(current_epoch=epoch) for epoch in packets],
            [ly.CommandOutcome(epoch=epoch) for epoch in outcomes],
        )


@pytest.mark.parametrize(("packets", "outcomes"), [(2, 2), (3, 2), (EPOCHS, EPOCHS)])
def test_a_successor_repeats_in_silence_and_goes_on(recorded: Recorded, packets: int, outcomes: int) -> None:
    """Goal: a dead attempt costs nothing but time. Method: resume from each kind of cut; the end is the same."""
    journal = recorded.journal
    recording = Recording.of(journal.packets[:packets], journal.outcomes[:outcomes])
    live = MemoryJournal(policy=POLICY)
    torch.rand(5)
    with prepared(request(epochs=EPOCHS), attempt=2) as setup:
        result = TolariaTrainer(setup, nudging(setup), ResumingJournal(recording, live)).run()
    assert result == recorded.result
    assert digests(live) == digests(journal)[packets:]
    assert [outcome.epoch for outcome in live.outcomes] == list(range(outcomes + 1, EPOCHS + 1))
    assert all(outcome.attempt == 2 for outcome in live.outcomes)
    assert len(live.telemetry) == EPOCHS - outcomes
    again = {event.meta.event_id for event in live.seed_events}
    assert again == {event.meta.event_id for event in journal.seed_events if event.epoch > outcomes}  # type: ignore[attr-defined]


def test_a_successor_stops_where_the_record_is_not_its_own(recorded: Recorded) -> None:
    """Goal: nothing is appended on top of a wrong state. Method: a tampered digest before the cut."""
    packets = [ly.SystemStatePacket.FromString(packet.SerializeToString()) for packet in recorded.journal.packets[:2]]
    packets[1].weights_digest = "0" * 64
    live = MemoryJournal(policy=POLICY)
    recording = Recording.of(packets, recorded.journal.outcomes[:2])
    with prepared(request(epochs=EPOCHS), attempt=2) as setup:
        trainer = TolariaTrainer(setup, nudging(setup), ResumingJournal(recording, live))
        with pytest.raises(NotRepeated, match="epoch 2 of run run-small does not repeat: weights_digest is"):
            trainer.run()
    assert (live.packets, live.outcomes) == ([], [])
