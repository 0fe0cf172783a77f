"""Steps that are recorded once and replayed, against the same steps one by one; the CPU's tape stands for a graph."""

from __future__ import annotations

import pytest
import torch

from esper.core.stacking import StepClock, StepLoop
from esper.tolaria.stack import (
    MemoryStackJournal,
    RecordedStackJournal,
    StackTrainer,
    StaticStackGrafts,
    prepared_stack,
)
from esper.weatherlight._stack_grafting import stacked_controller
from tests.kasmina.kernels import RealKernels
from tests.tolaria.stack.growing import Tamiyo, schedule
from tests.tolaria.stack.stacked import requests
from tests.tolaria.stack.tape import TapeRecorder


def test_a_stack_that_grows_is_the_same_when_its_steps_are_replayed() -> None:
    """Seeds come, blend, are culled and fossilised: every digest, figure and move is that of plain steps."""
    asked = requests(3, epochs=9)
    plans = (schedule(blueprint=21), schedule(blueprint=9, germinate=2, graft=4), schedule(blueprint=21, cull=6))
    for request, plan in zip(asked, plans, strict=True):
        request.policy_parameters.update(plan)
    kernels = RealKernels()
    journals, counts = [], []
    for recorder in (None, TapeRecorder()):
        journal = MemoryStackJournal(Tamiyo(asked))
        with prepared_stack(asked) as setup:
            trainer = StackTrainer(setup, stacked_controller(setup, kernels), journal, recorder=recorder)
            trainer.run()
        journals.append(journal)
        counts.append(trainer.step_counts)
    plain, replayed = journals
    for one, other in zip(plain.packets, replayed.packets, strict=True):
        assert one.weights_digest == other.weights_digest, one.current_epoch
        assert one.training_loss == other.training_loss
        assert [(s.seed_id, s.stage, dict(s.metrics)) for s in one.seed_states] == [
            (s.seed_id, s.stage, dict(s.metrics)) for s in other.seed_states
        ]
    assert len({packet.weights_digest for packet in plain.packets}) == len(plain.packets)
    assert [type(event) for event in plain.seed_events] == [type(event) for event in replayed.seed_events]
    assert counts[0].replayed == 0
    assert counts[1].replayed > counts[1].eager
    assert 2 <= counts[1].recorded < 9, "a recording holds as long as the groups do"


def test_a_replayed_stack_repeats_bit_for_bit() -> None:
    """Requests and outcomes give a stack again whose steps were replayed."""
    asked = requests(2, epochs=6)
    for request in asked:
        request.policy_parameters.update(schedule())
    kernels, journal = RealKernels(), MemoryStackJournal(Tamiyo(asked))
    with prepared_stack(asked) as setup:
        StackTrainer(setup, stacked_controller(setup, kernels), journal, recorder=TapeRecorder()).run()
    with prepared_stack(asked) as setup:
        recorded = RecordedStackJournal(journal.recordings(asked))
        again = StackTrainer(setup, stacked_controller(setup, kernels), recorded, recorder=TapeRecorder())
        again.run()
        assert again.epochs_finished == 6


def test_what_cannot_be_recorded_is_computed_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """A device that refuses a step is asked once, and the stack trains all the same."""
    asked = requests(2)
    digests = []
    for recorder in (None, TapeRecorder(refuses=True)):
        with prepared_stack(asked) as setup:
            trainer = StackTrainer(setup, StaticStackGrafts(2), MemoryStackJournal(), recorder=recorder)
            digests.append([each.digest for each in trainer.run() if each is not None])
    assert digests[0] == digests[1]
    assert (trainer.step_counts.refused, trainer.step_counts.replayed) == (1, 0)
    assert sum("cannot be replayed" in record.message for record in caplog.records) == 1


def test_few_steps_are_not_worth_a_recording() -> None:
    """An epoch of four steps is taken step by step."""
    clock, taken = StepClock(torch.device("cpu"), captured=True), []
    loop = StepLoop(clock, TapeRecorder())
    loop.run(lambda: taken.append(clock.step), steps=4, alike=3, structure=0)
    assert taken == [0, 1, 2, 3]
    assert loop.counts.recorded == 0
