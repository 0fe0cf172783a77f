"""How many administrative clients an outage makes."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from confluent_kafka.admin import AdminClient

from esper.core.clock import ManualClock
from esper.core.errors import BrokerUnavailable
from esper.core.settings import load_settings
from esper.oona import Cluster

EPOCHS = 25


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nothing listens, and nothing will."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_failing_epochs_share_a_few_clients(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a broker that is away does not use up a process's thread keys. Method: ask for the end of a partition in 25
    failing epochs of one second, and count the real clients that are made.
    """
    made: list[object] = []

    def counted(config: dict[str, object]) -> AdminClient:
        made.append(config)
        return AdminClient(config)

    monkeypatch.setattr("esper.oona._cluster.AdminClient", counted)
    monkeypatch.setattr("esper.oona._cluster._REQUEST_SECONDS", 0.02)
    clock = ManualClock()
    settings = load_settings(_env_file=None, kafka_bootstrap=nobody, leyline_secret="s" * 32)
    cluster = Cluster(settings, nobody, clock=clock)
    for _ in range(EPOCHS):
        with pytest.raises(BrokerUnavailable):
            cluster.watermarks([("runs", 0)], seconds=0.01)
        clock.advance(1.0)
    assert 2 <= len(made) <= 10, "it is replaced, and ever more seldom"
