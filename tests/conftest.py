"""What tests share: one real broker for the whole session, and the system's fabric on it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
import pytest

from esper.core.home import Home
from esper.core.settings import Settings, load_settings
from esper.oona import Cluster, Fabric, TopicCatalog, apply_topics
from esper.oona.broker import LocalBroker
from tests.brokers import chosen, container
from tests.campaigns import Keeper

#: What serves this session, seen before the settings of whoever runs the tests are put away.
KAFKA = chosen()

#: No example has a time limit: machines are shared, and the first one pays for imports.
hypothesis.settings.register_profile("esper", deadline=None)
hypothesis.settings.load_profile("esper")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the figures of whole campaigns, and let interrupts through to the commands that tests start.

    A shell's background job ignores SIGINT, and so does whatever it starts; what a process handles, its children do not
    inherit.
    """
    config.pluginmanager.register(Keeper())
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


#: Whose tests come first. Core looks at all that its own process holds, among which the clients of other packages'
#: brokers would come and go; of the rest those that start many processes, so that what is left for the end is short.
_FIRST = (
    "tests/core",
    "tests/integration",
    "tests/tolaria",
    "tests/cli",
    "tests/kasmina",
    "tests/oona",
    "tests/projection",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run a package's tests together, files with campaigns first, in the order that was drawn for all else.

    What a package shares, brokers and serving members above all, then ends with it: idle ones took a third of a core.
    """
    campaigns = {item.path for item in items if item.get_closest_marker("campaign")}
    ranks: dict[str, int] = {name: rank for rank, name in enumerate(_FIRST)}
    places = {item.path: "/".join(item.nodeid.split("/")[:2]) for item in items}
    for place in places.values():
        ranks.setdefault(place, len(ranks))
    items.sort(key=lambda item: (ranks[places[item.path]], item.path not in campaigns))


def pytest_report_header() -> str:
    """Say which Kafka serves."""
    return str(KAFKA)


@dataclass(frozen=True)
class RunningBroker:
    """A real Kafka broker of its own home, with the shipped topics on it."""

    settings: Settings
    home: Home
    local: LocalBroker
    bootstrap: str
    #: What processes must be told beside the home: nothing where the broker is the home's own.
    told: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables of a process that is to find this broker by its home."""
        return {**os.environ, **self.told}


@contextmanager
def running_broker(root: Path, *, secure: bool = False, **overrides: object) -> Iterator[RunningBroker]:
    """Start the real broker of a new home under `root`, apply the shipped topics, and stop it afterwards."""
    settings = load_settings(**{"_env_file": None, "home": root, **overrides})
    home = Home.create(settings)
    local = LocalBroker(home, settings)
    try:
        bootstrap = local.start(secure=secure)
        apply_topics(Cluster.open(settings, home=home), TopicCatalog.load(settings))
        yield RunningBroker(settings, home, local, bootstrap)
    finally:
        local.stop()


@contextmanager
def contained_broker(root: Path, image: str) -> Iterator[RunningBroker]:
    """Run Kafka in a container for a new home under `root`, with the shipped topics on it."""
    home = Home.create(load_settings(_env_file=None, home=root))
    secret = (home.root / "key").read_text().strip()
    with container(image, home) as bootstrap:
        settings = load_settings(_env_file=None, home=root, kafka_bootstrap=bootstrap, leyline_secret=secret)
        apply_topics(Cluster.open(settings, home=home), TopicCatalog.load(settings))
        told = {"ESPER_KAFKA_BOOTSTRAP": bootstrap, "ESPER_LEYLINE_SECRET": secret}
        yield RunningBroker(settings, home, LocalBroker(home, settings), bootstrap, told)


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """Keep the settings of whoever runs the tests out of them; a test sets what it needs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("ESPER_") and name != "ESPER_REQUIRE_REAL"]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory, _no_settings_from_outside: None) -> Iterator[RunningBroker]:
    """One real broker for the session, in a container where one is at hand. Tests keep apart by run and group."""
    root = tmp_path_factory.mktemp("session") / "home"
    with contained_broker(root, KAFKA.image) if KAFKA.image else running_broker(root) as running:
        yield running


@pytest.fixture(scope="session")
def local_broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """Return the session's broker where it is a home's own: for tests of processes that know nothing but the home."""
    if KAFKA.image is None:
        yield request.getfixturevalue("broker")
        return
    with running_broker(tmp_path_factory.mktemp("local") / "home") as running:
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
