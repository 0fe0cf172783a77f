"""What a loop may say of an epoch, and that a call which says something else costs nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from esper.core.errors import UsageError
from tests.weatherlight.loops import OwnLoop, perceptron

BAD: list[tuple[Any, str]] = [
    (None, "its metrics are None, no mapping"),
    (1.0, "its metrics are 1.0, no mapping"),
    ({}, "metrics has no 'loss'"),
    ({"loss": None}, "metric 'loss' is None"),
    ({"loss": "0.3"}, "metric 'loss' is '0.3'"),
    ({"loss": 10**400}, "metric 'loss' is of type int"),
    ({"loss": 1j}, "metric 'loss' is 1j"),
    ({"loss": torch.ones(3)}, "metric 'loss' is a Tensor of shape (3,)"),
    ({"loss": torch.ones((), device="meta")}, "metric 'loss' is a Tensor of shape ()"),
    ({"loss": 1.0, "note": "text"}, "metric 'note' is 'text'"),
    ({"loss": 1.0, "per_class": np.ones(3)}, "metric 'per_class' is a ndarray of shape (3,)"),
    ({"loss": 1.0, 7: 1.0}, "7 is no name of a metric"),
    ({"loss": 1.0, "\ud800": 1.0}, "is no name of a metric"),
]


def test_a_bad_call_costs_no_epoch() -> None:
    """Goal: epochs in the log are in a row. Method: every bad call between two good ones, as an epoch and as a tick;
    epochs, outcomes and causes as if they had not been made."""
    loop = OwnLoop(perceptron())
    loop.epoch(2)
    for metrics, cause in BAD:
        loop.step()
        with pytest.raises(UsageError) as refused:
            loop.run.end_epoch(metrics)
        assert cause in str(refused.value)
        with pytest.raises(UsageError):
            loop.run.tick(lambda given=metrics: given, every=1)
        assert loop.run.epoch == 1
    with pytest.raises(UsageError, match=r"every 2\.5 steps"):
        loop.run.tick({"loss": 1.0}, every=2.5)  # type: ignore[arg-type]  # what is refused
    loop.epoch(2)
    record = loop.side.record
    assert [packet.current_epoch for packet in record.packets] == [1, 2]
    assert [outcome.epoch for outcome in record.outcomes] == [1, 2]
    assert record.packets[1].meta.causation_id == record.outcomes[0].meta.event_id


def test_a_held_out_loss_is_asked_for_before_the_epoch_counts() -> None:
    """Goal: the same where nothing measures. Method: a loop without a probe forgets "val_loss", then gives it."""
    loop = OwnLoop(perceptron(), probe=None)
    loop.step()
    with pytest.raises(UsageError, match="needs a validation loss"):
        loop.run.end_epoch({"loss": 1.0})
    assert loop.run.end_epoch({"loss": 1.0, "val_loss": 2.0}).epoch == 1


@pytest.mark.parametrize(
    "loss",
    [2, np.float32(2.0), np.int64(2), np.array(2.0), torch.tensor(2.0), torch.tensor([2.0], requires_grad=True)],
)
def test_one_number_is_a_figure_whoever_holds_it(loss: object) -> None:
    """Goal: a loop need not unpack its numbers. Method: numbers of numpy and torch, as the packet has them."""
    loop = OwnLoop(perceptron())
    loop.step()
    loop.run.end_epoch({"loss": loss, "grad_norm": loss})  # type: ignore[dict-item]  # what is taken
    (packet,) = loop.side.record.packets
    assert (packet.training_loss, packet.training_metrics["grad_norm"]) == (2.0, 2.0)


def test_a_loss_that_is_no_number_is_recorded() -> None:
    """Goal: a loop that diverges is heard. Method: NaN and infinity, as floats and as tensors."""
    loop = OwnLoop(perceptron())
    for loss in (float("nan"), float("inf"), torch.tensor(float("nan")), torch.tensor(float("-inf"))):
        loop.step()
        loop.run.end_epoch({"loss": loss})  # type: ignore[dict-item]  # tensors are taken
    found = [packet.training_loss for packet in loop.side.record.packets]
    assert repr(found) == "[nan, inf, nan, -inf]"
