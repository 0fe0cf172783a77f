"""A real Esper system in a temporary home: broker, topics, members."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esper.core.home import Home
from esper.core.settings import load_settings
from esper.oona import Cluster, Fabric, TopicCatalog, apply_topics
from esper.oona.broker import LocalBroker
from esper.weatherlight import SUBSYSTEMS, Supervisor, members_for_a_while


@contextmanager
def broker_only() -> Iterator[Fabric]:
    """Yield a fabric over a fresh local broker with its topics; stop the broker at the end."""
    with tempfile.TemporaryDirectory(prefix="esper-bench-") as folder:
        settings = load_settings(home=Path(folder))
        broker = LocalBroker(Home.create(settings), settings)
        broker.start()
        try:
            apply_topics(Cluster.open(settings), TopicCatalog.load(settings))
            with Fabric.open(settings, member="bench") as fabric:
                yield fabric
        finally:
            broker.stop()


@contextmanager
def whole_system() -> Iterator[tuple[Fabric, Supervisor]]:
    """Yield a fabric and the supervisor of one member of each subsystem."""
    with broker_only() as fabric, members_for_a_while(fabric.settings, wanted=tuple(SUBSYSTEMS)) as supervisor:
        yield fabric, supervisor
