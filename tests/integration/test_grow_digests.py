"""What a loop under `grow` asks for: how often its weights are hashed, and a policy that suits its slots."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn import functional

import esper
from esper.core.digest import module_digest
from esper.core.errors import UsageError
from esper.core.settings import Settings
from tests.integration.driver import Esper

EDGES = 4


def recorded(home: Esper, *, every: int) -> tuple[str, str]:
    """Train `EDGES` edges of one step; return the run's id and the digest of the network that came of it."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.ones(2, 4), torch.tensor([0, 1])
    with esper.grow(
        model,
        optimizer=optimizer,
        loss_fn=functional.cross_entropy,
        probe=[batch],
        policy="noop",
        digest_every_epochs=every,
        settings=Settings(home=home.home),
    ) as run:
        for _ in range(EDGES):
            optimizer.zero_grad()
            functional.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
            run.step(batch)
            run.end_epoch({"loss": 1.0})
    return run.run_id, module_digest(model)


def test_weights_are_hashed_as_often_as_asked_and_at_the_end(serving: Esper) -> None:
    """Goal: large models pay for what they ask. Method: digests at every other edge, read back from the log."""
    run_id, last = recorded(serving, every=2)
    shown = serving("runs", "show", run_id, "--json").json
    digests = [epoch["digest"] for epoch in shown["epochs"]]
    assert [bool(digest) for digest in digests] == [False, True, False, True]
    assert digests[-1] == shown["digest"] == last


@pytest.mark.parametrize("every", [0, -1])
def test_a_digest_every_no_epochs_is_refused(every: int) -> None:
    """Goal: bad input changes nothing. Method: numbers below 1, refused by name before a home is asked for."""
    with (
        pytest.raises(UsageError, match="digest_every_epochs"),
        esper.grow(nn.Linear(2, 2), digest_every_epochs=every),
    ):
        pass


def test_a_policy_that_no_slot_suits_is_warned_of_and_recorded(serving: Esper) -> None:
    """Goal: nobody wonders why nothing grows. Method: the default policy on a convolution; the run goes on."""
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Flatten(), nn.Linear(16, 2))
    batch, settings = (torch.ones(2, 1, 4, 4), torch.tensor([0, 1])), Settings(home=serving.home)
    asked = esper.grow(model, loss_fn=functional.cross_entropy, probe=[batch], settings=settings)
    with ExitStack() as stack:
        with pytest.warns(UserWarning, match="'heuristic' will graft nothing"):
            run = stack.enter_context(asked)
        run.step(batch)
        run.end_epoch({"loss": 1.0})
    assert serving("runs", "show", run.run_id, "--json").json["status"] == "finished"
