"""A system of its own on the session's broker: own home, own topics, own copies of the shipped projections."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.home import Home
from esper.core.ids import new_event_id
from esper.core.settings import Settings
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.oona import Cluster, Fabric, Publisher, TopicCatalog, apply_topics, shipped_topics_dir
from esper.projection import Projector, query
from esper.projection.definitions._definition import shipped_projections_dir
from esper.projection.serving._control import ProjectorClient, find_projector
from tests.conftest import RunningBroker

#: The fabric itself knows this one by name.
_SHARED = ("dead-letters", "emergency", "operations")
#: What a system has unless its test asks for others; those of shared topics would hold what other tests wrote.
PROJECTIONS = ("field_reports", "runs", "urza_catalog")
PATIENCE_SECONDS = 60.0


@dataclass
class System:
    """One system under test; `publish` writes as the subsystem that may."""

    fabric: Fabric
    prefix: str
    _publishers: dict[str, Publisher] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """Settings of the system."""
        return self.fabric.settings

    def topic(self, name: str) -> str:
        """Return this system's name of a shipped topic."""
        return name if name in _SHARED else f"{self.prefix}-{name}"

    def publish(self, message: EventMessage, *, key: str, event_id: str | None = None, causation_id: str = "") -> None:
        """Append an event as the first source that may write it."""
        spec = self.fabric.topics.topic_of(message.DESCRIPTOR.full_name)  # type: ignore[attr-defined]
        source = "tester" if spec.writers[0] == "all" else spec.writers[0]
        if source not in self._publishers:
            self._publishers[source] = self.fabric.publisher(source)
        self._publishers[source].publish(message, key=key, event_id=event_id, causation_id=causation_id)

    def append(self, message: EventMessage, *, key: str, event_id: str | None = None) -> None:
        """Publish: the name under which `tests.projection.log` writes its runs."""
        self.publish(message, key=key, event_id=event_id)

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Return the rows of a query, as a user's process gets them."""
        rows: list[dict[str, Any]] = query(sql, settings=self.settings).to_pylist()
        return rows

    def count(self, table: str) -> int:
        """Return how many rows a table or view has."""
        return int(self.query(f"select count(*) as n from {table}")[0]["n"])  # noqa: S608 - a test's own name

    def client(self) -> ProjectorClient:
        """Return a client of the projector, once it listens."""
        return wait_for(lambda: find_projector(self.fabric.home))

    @contextmanager
    def projector(self) -> Iterator[threading.Thread]:
        """Run a projector in a thread of this process for the time of the block."""
        stop, failures = threading.Event(), list[BaseException]()

        def work() -> None:
            try:
                Projector(self.fabric).run(stop)
            except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
                failures.append(error)

        thread = threading.Thread(target=work, name="projector", daemon=True)
        thread.start()
        try:
            wait_for(lambda: find_projector(self.fabric.home) or failures)
            yield thread
        finally:
            stop.set()
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()
        if failures:
            raise failures[0]


def wait_for(probe: Any) -> Any:
    """Return the first true answer of `probe`, asked until the patience ends."""
    deadline = Deadline(PATIENCE_SECONDS)
    while not (answer := probe()):
        assert not deadline.expired, "it did not happen in time"
        SYSTEM_CLOCK.sleep(0.02)
    return answer


def _copies(root: Path, prefix: str, wanted: Sequence[str]) -> tuple[Path, Path]:
    """Copy topics and the wanted projections, every topic renamed but the shared ones; return both folders."""
    topics, projections = root / "topics", root / "projections"
    topics.mkdir(parents=True)
    names = [path.stem for path in shipped_topics_dir().glob("*.yaml") if path.stem not in _SHARED]
    for name in _SHARED:
        shutil.copy(shipped_topics_dir() / f"{name}.yaml", topics)
    for name in names:
        text = (shipped_topics_dir() / f"{name}.yaml").read_text()
        (topics / f"{prefix}-{name}.yaml").write_text(text.replace(f"name: {name}\n", f"name: {prefix}-{name}\n"))
    for name in wanted:
        shutil.copytree(shipped_projections_dir() / name, projections / name)
    for path in projections.glob("*/projection.yaml"):
        head, _, rest = path.read_text().partition("topics: [")
        listed, _, tail = rest.partition("]")
        names = [name.strip() for name in listed.split(",")]
        renamed = ", ".join(name if name in _SHARED else f"{prefix}-{name}" for name in names)
        path.write_text(f"{head}topics: [{renamed}]{tail}")
    return topics, projections


@contextmanager
def own_system(
    broker: RunningBroker, root: Path, *, projections: Sequence[str] = PROJECTIONS, **overrides: Any
) -> Iterator[System]:
    """Make a system of its own on the broker's cluster, with fresh topics."""
    prefix = f"t{new_event_id()[:8]}"
    topics, copies = _copies(root, prefix, projections)
    settings = Settings(
        _env_file=None,
        home=root / "home",
        kafka_bootstrap=broker.bootstrap,
        leyline_secret=(broker.home.root / "key").read_text().strip(),
        topics_dir=topics,
        projections_dir=copies,
        # The session's broker holds hundreds of partitions by now, and other tests load it.
        **{"connect_seconds": 60.0, **overrides},
    )
    home = Home.create(settings)
    apply_topics(Cluster.open(settings, home=home), TopicCatalog.load(settings))
    with Fabric.open(settings, member="test") as fabric:
        yield System(fabric, prefix)


def state(run_id: str, epoch: int) -> ly.SystemStatePacket:
    """Return one epoch's packet."""
    return ly.SystemStatePacket(training_run_id=run_id, attempt=1, current_epoch=epoch, validation_loss=1.0 / epoch)
