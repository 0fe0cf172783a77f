"""What tests share: one real broker for the whole session, and the system's fabric on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from esper.core.home import Home
from esper.core.settings import Settings, load_settings
from esper.oona import Cluster, Fabric, TopicCatalog, apply_topics
from esper.oona.broker import LocalBroker
from tests.campaigns import Keeper


def pytest_configure(config: pytest.Config) -> None:
    """Keep the figures of whole campaigns."""
    config.pluginmanager.register(Keeper())


@dataclass(frozen=True)
class RunningBroker:
    """A real Kafka broker of its own home, with the shipped topics on it."""

    settings: Settings
    home: Home
    local: LocalBroker
    bootstrap: str


@contextmanager
def running_broker(root: Path, **overrides: object) -> Iterator[RunningBroker]:
    """Start the real broker of a new home under `root`, apply the shipped topics, and stop it afterwards."""
    settings = load_settings(**{"_env_file": None, "home": root, **overrides})
    home = Home.create(settings)
    local = LocalBroker(home, settings)
    try:
        bootstrap = local.start()
        apply_topics(Cluster.open(settings, home=home), TopicCatalog.load(settings))
        yield RunningBroker(settings, home, local, bootstrap)
    finally:
        local.stop()


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """Keep the settings of whoever runs the tests out of them; a test sets what it needs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("ESPER_") and name != "ESPER_REQUIRE_REAL"]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory, _no_settings_from_outside: None) -> Iterator[RunningBroker]:
    """One real broker for the session. Tests keep apart by fresh run ids and group names."""
    with running_broker(tmp_path_factory.mktemp("session") / "home") as running:
        yield running


@pytest.fixture
def fabric(broker: RunningBroker) -> Iterator[Fabric]:
    """Return the fabric on the session's broker; what a test opens through it is closed with it."""
    with Fabric.open(broker.settings, member="test") as opened:
        yield opened


StartBroker = Callable[..., RunningBroker]


@pytest.fixture
def start_broker(tmp_path: Path) -> Iterator[StartBroker]:
    """Return a function that starts a broker for this test alone, to be killed or filled at will."""
    with ExitStack() as stack:
        yield lambda **overrides: stack.enter_context(running_broker(tmp_path / "home", **overrides))
