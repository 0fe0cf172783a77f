"""A stack of hosts that do not grow, against the same runs one at a time."""

from __future__ import annotations

import pytest

from esper.core.errors import UsageError
from esper.leyline import messages as ly
from esper.tolaria import MemoryJournal, StaticController, TolariaTrainer, prepared
from esper.tolaria.stack import (
    MemoryStackJournal,
    RecordedStackJournal,
    StackTrainer,
    StaticStackGrafts,
    prepared_stack,
)
from tests.tolaria.stack.stacked import alone, requests


def _stacked(asked: list[ly.TrainingRunRequested]) -> tuple[MemoryStackJournal, list[str]]:
    journal = MemoryStackJournal()
    with prepared_stack(asked) as setup:
        trainer = StackTrainer(setup, StaticStackGrafts(len(asked)), journal)
        initial = list(map(str, trainer.digests()))
        trainer.run()
    return journal, initial


def _lone(asked: ly.TrainingRunRequested) -> tuple[MemoryJournal, str]:
    journal = MemoryJournal()
    with prepared(alone(asked)) as setup:
        trainer = TolariaTrainer(setup, StaticController(), journal)
        initial = str(trainer.digest())
        trainer.run()
    return journal, initial


def test_members_are_the_runs_that_they_would_be_alone() -> None:
    """Same initial bits and same data orders; losses agree to 1e-5 a step, for the sums run in another order."""
    asked = requests(3)
    journal, initial = _stacked(asked)
    for index, request in enumerate(asked):
        lone, digest = _lone(request)
        assert initial[index] == digest
        mine = [packet for packet in journal.packets if packet.training_run_id == request.run_id]
        assert len(mine) == len(lone.packets) == 3
        for stacked, single in zip(mine, lone.packets, strict=True):
            for name in ("training_loss", "validation_loss"):
                assert getattr(stacked, name) == pytest.approx(getattr(single, name), rel=1e-5)
            assert dict(stacked.training_metrics) == pytest.approx(dict(single.training_metrics), rel=1e-4)
            for name in ("parameters", "multiply_adds", "multiply_adds_per_sample", "global_step", "seed"):
                assert getattr(stacked, name) == getattr(single, name), name


def test_a_member_depends_on_nothing_of_its_neighbours() -> None:
    """The same member at the same place among other neighbours gives the same digests."""
    first, _ = _stacked(requests(4, seeds=[1, 2, 3, 4]))
    other, _ = _stacked(requests(4, seeds=[9, 2, 8, 7]))
    digests = [[p.weights_digest for p in one.packets if p.seed == 2] for one in (first, other)]
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 3


def test_a_stack_repeats_bit_for_bit() -> None:
    """Trained again with the recorded outcomes, every packet of every member comes out as recorded."""
    asked = requests(3)
    journal, _ = _stacked(asked)
    recordings = journal.recordings(asked)
    with prepared_stack(asked) as setup:
        trainer = StackTrainer(setup, StaticStackGrafts(3), RecordedStackJournal(recordings))
        trainer.run()
        assert trainer.epochs_finished == 3


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"host": "cnn"}, "no host"),
        ({"hyperparameters": {"clip_norm": 1.0}}, "clip_norm"),
        ({"hyperparameters": {"bfloat16": 1.0}}, "bfloat16"),
        ({"forked_from": "run-1", "forked_epochs": 1}, "fork"),
    ],
)
def test_what_a_stack_cannot_train_is_refused_by_name(fields: dict[str, object], named: str) -> None:
    """Each request that only a lone run can be is refused before anything is computed."""
    with pytest.raises(UsageError, match=named), prepared_stack(requests(2, **fields)):
        pass


def test_members_that_differ_are_no_stack() -> None:
    """A request for other epochs is named."""
    asked = requests(2)
    asked[1].epochs = 7
    with pytest.raises(UsageError, match="epochs"), prepared_stack(asked):
        pass


def test_a_host_that_keeps_buffers_is_refused_by_name() -> None:
    """Batch norm would mix its statistics up."""
    with (
        pytest.raises(UsageError, match=r"body\.norm|stem\.norm"),
        prepared_stack(requests(2, task="tests.tolaria.short:lines", host="cnn_bn")),
    ):
        pass
