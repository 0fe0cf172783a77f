"""What a run's loop is set to, and which wishes are refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from esper.core.errors import UsageError
from esper.tolaria import Split, TrainingLoopConfig, prepared
from esper.tolaria._config import HYPERPARAMETERS, check_hyperparameters, learning_rate_at
from esper.tolaria.loop._steps import parts
from esper.tolaria.tasks._evaluation import batches
from tests.tolaria.small import request, rings


def test_a_request_overrides_the_task() -> None:
    """Goal: the task's numbers by default, the request's where given. Method: one of each."""
    config = TrainingLoopConfig.of(
        request(epochs=0, hyperparameters={"batch_size": 16, "learning_rate": 0.01}), rings(), kernel_wait_seconds=2.5
    )
    assert (config.epochs, config.batch_size, config.learning_rate) == (3, 16, 0.01)
    assert (config.gradient_accumulation, config.threads, config.seed) == (1, 1, 11)
    assert (config.decision_wait_seconds, config.kernel_wait_seconds) == (10.0, 2.5)
    assert config.device == torch.device("cpu")
    assert config.steps_per_epoch(200) == 13
    plain = TrainingLoopConfig.of(request(epochs=5, decision_wait_seconds=0.5), rings())
    assert (plain.epochs, plain.batch_size, plain.learning_rate, plain.decision_wait_seconds) == (5, 32, 3e-3, 0.5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"hyperparameters": {"batchsize": 3}},
            "no hyperparameter 'batchsize': known are batch_size, bfloat16, clip",
        ),
        ({"hyperparameters": {"batch_size": 2.5}}, "batch_size = 2.5 cannot be used: it must be a whole number"),
        ({"hyperparameters": {"batch_size": 0}}, "batch_size = 0 cannot be used"),
        ({"hyperparameters": {"bfloat16": 2}}, "bfloat16 = 2 cannot be used: it must be 0 or 1"),
        ({"hyperparameters": {"clip_norm": 0}}, "clip_norm = 0 cannot be used: it must be a finite number above 0"),
        ({"hyperparameters": {"learning_rate": -1}}, "learning_rate = -1 cannot be used: it must be a finite number"),
        ({"hyperparameters": {"learning_rate": math.nan}}, "learning_rate = nan cannot be used"),
        (
            {"hyperparameters": {"rollbacks_max": -1}},
            "rollbacks_max = -1 cannot be used: it must be a whole number, at least 0",
        ),
        (
            {"hyperparameters": {"rollback_rate_factor": 1.5}},
            "rollback_rate_factor = 1.5 cannot be used: it must be above 0",
        ),
        ({"device": "abacus"}, "'abacus' names no device"),
        ({"device": "meta"}, "'meta' cannot train: runs train on cpu or cuda"),
        ({"device": "cuda:77"}, "there is no device 'cuda:77': this machine has"),
        (
            {"host": "huge"},
            "the task 'rings' has no host 'huge': it has breaking, deaf, doomed, exploding, failing",
        ),
        ({"host": "deaf"}, r"the host 'deaf' does not take the samples of 'rings': RuntimeError: .*shape \(B, 2\)"),
        ({"host": "raising"}, "its factory failed with ZeroDivisionError: in the user's host"),
        ({"host": "failing"}, "the host has no module 'no such module' for a slot"),
        ({"host": "naked"}, "its factory returned a Linear"),
        ({"host": "frozen"}, "the host has nothing to train"),
        ({"slots": ["trunk"]}, "no module 'trunk' for a slot: its modules are body, norm, drop, head"),
        ({"task": "mnist2d"}, "there is no task 'mnist2d'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_unusable_request_is_refused_with_its_cause(fields: dict[str, object], words: str) -> None:
    """Goal: one clear message for each mistake. Method: prepare a request that makes it."""
    with pytest.raises(UsageError, match=words), prepared(request(**fields)):
        pass


@pytest.mark.parametrize("name", [name for name, whole in HYPERPARAMETERS.items() if whole])
@pytest.mark.parametrize("value", [1e300, 2.0**63])
def test_no_count_is_too_large_to_be_refused(name: str, value: float) -> None:
    """Goal: a number that no worker can count to is refused as the others are. Method: every whole number, far out."""
    with pytest.raises(UsageError, match=f"{name} = .* cannot be used"):
        check_hyperparameters({name: value})


def test_the_largest_counts_are_counted() -> None:
    """Goal: what is let through can be trained. Method: an attempt's configuration with the bounds themselves."""
    config = TrainingLoopConfig.of(request(hyperparameters={"batch_size": 2**31 - 1, "threads": 256}), rings())
    assert config.steps_per_epoch(200) == 1
    samples, targets = torch.zeros(5, 2), torch.zeros(5)
    assert sum(len(inputs) for inputs, _ in batches(Split(samples, targets), config.batch_size)) == 5
    assert sum(len(inputs) for inputs, _ in parts(samples, targets, 1_000_000)) == 5


def test_slots_are_the_hosts_or_those_asked_for() -> None:
    """Goal: empty means the host's own choice. Method: ask for none, and for one of each kind."""
    with prepared(request()) as setup:
        assert [(slot.name, slot.placement) for slot in setup.slots] == [("body", "branch")]
    with prepared(request(slots=["head", "body"])) as setup:
        assert [(slot.name, slot.placement) for slot in setup.slots] == [("head", "branch"), ("body", "branch")]


def test_the_learning_rate_is_half_a_cosine() -> None:
    """Goal: the schedule of the source. Method: its first, middle and last values, and that it only falls."""
    rates = [learning_rate_at(step, steps=100, top=0.4) for step in range(101)]
    assert rates[0] == 0.4
    assert rates[50] == pytest.approx(0.2)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))


def test_weights_are_hashed_every_so_many_epochs_and_at_the_last() -> None:
    """Goal: the end is always named by a digest. Method: every third of seven epochs."""
    config = TrainingLoopConfig.of(request(epochs=7, digest_every_epochs=3), rings())
    assert [epoch for epoch in range(1, 8) if config.is_hashed(epoch)] == [3, 6, 7]
