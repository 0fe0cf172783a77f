"""How often a loop under `grow` hashes its weights into the log."""

from __future__ import annotations

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
