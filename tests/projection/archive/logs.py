"""A log of every kind of record, on a broker of a test's own, and what tests ask of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from esper.core.ids import derive_id, sha256_hex
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.oona import Cluster, Fabric, Position, TopicCatalog
from esper.oona.broker import LocalBroker
from esper.oona.copying import RawReader, RawRecord, ends_of, trim
from esper.oona.proof import append_checkpoint
from esper.projection.archive import Sealed, archive_of, sealing
from tests.conftest import RunningBroker
from tests.projection.log import one_run

BLOB = b"weights of a kernel that a record names"
INNER_BLOB = b"what the first blob names"


@dataclass
class Writer:
    """Publishes as the first source that may, as `tests.projection.log` writes its runs."""

    fabric: Fabric

    def __post_init__(self) -> None:
        """Keep one publisher for each source."""
        self._publishers: dict[str, object] = {}

    def append(self, message: EventMessage, *, key: str, event_id: str | None = None) -> None:
        """Publish one event."""
        spec = self.fabric.topics.topic_of(message.DESCRIPTOR.full_name)  # type: ignore[attr-defined]
        source = "tester" if spec.writers[0] == "all" else spec.writers[0]
        publisher = self._publishers.setdefault(source, self.fabric.publisher(source))
        publisher.publish(message, key=key, event_id=event_id)  # type: ignore[attr-defined]


def fill(fabric: Fabric, *, runs: int = 2, prefix: str = "run") -> None:
    """Append runs, telemetry and blobs that records name, and cover all of it by a checkpoint."""
    writer = Writer(fabric)
    for number in range(runs):
        one_run(writer, f"{prefix}-{number}", epochs=3)
    for number in range(5):
        packet = ly.TelemetryPacket(source_subsystem="tolaria", packet_id=derive_id(prefix, number))
        writer.append(packet, key="tolaria")
    for content in (INNER_BLOB, BLOB + sha256_hex(INNER_BLOB).encode()):
        path = fabric.home.blobs / sha256_hex(content)[:2] / sha256_hex(content)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    digest = sha256_hex(BLOB + sha256_hex(INNER_BLOB).encode())
    message = ly.CheckpointSaved(run_id=f"{prefix}-0", attempt=1, epoch=3, blob_digest=digest)
    writer.append(message, key=f"{prefix}-0")
    append_checkpoint(fabric)


def write_oddities(bootstrap: str, topic: str) -> None:
    """Append what no producer of ours would: forgeries, tombstones, absent and empty parts, markers of transactions."""
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True})
    producer.produce(topic, None, None, 0)
    producer.produce(topic, b"", b"", 0, headers=[("", b""), ("twice", None), ("twice", b"\x00\xff")])
    producer.produce(topic, b"forged", b"run-0", 0, headers=[("signature", b"x" * 40), ("type", b"esper.leyline.v1.X")])
    assert producer.flush(10) == 0
    stranger = Producer({"bootstrap.servers": bootstrap, "transactional.id": "a-stranger"})
    stranger.init_transactions(30)
    for committed in (True, False):
        stranger.begin_transaction()
        stranger.produce(topic, b"in a transaction", b"k", 0)
        assert stranger.flush(10) == 0
        stranger.commit_transaction(10) if committed else stranger.abort_transaction(10)
    producer.produce(topic, b"after the markers", b"k", 0)
    assert producer.flush(10) == 0


def forget_beginning(fabric: Fabric, topic: str, before: int) -> None:
    """Delete the first records of a topic, as retention does."""
    trim(Cluster.open(fabric.settings, home=fabric.home), (topic, 0), before)


def everything(running: RunningBroker) -> dict[Position, tuple[tuple[int, int], list[RawRecord]]]:
    """Return the ends and the records of every partition of the cluster, as Kafka holds them."""
    cluster = Cluster.open(running.settings, home=running.home)
    ends = ends_of(cluster, TopicCatalog.load(running.settings))
    with RawReader(cluster) as reader:
        return {place: (span, list(reader.read(place, *span))) for place, span in sorted(ends.items())}


def records_only(found: dict[Position, tuple[tuple[int, int], Sequence[RawRecord]]]) -> dict[Position, object]:
    """Return what must be equal after a restore: ends, keys, values, headers, times and offsets."""
    return {place: (span, [raw.record for raw in raws]) for place, (span, raws) in found.items()}


def wipe(running: RunningBroker, *, secure: bool = False) -> None:
    """Stop a broker, delete all that it and the home's blobs hold, and start an empty one in its place."""
    running.local.stop()
    shutil.rmtree(running.home.broker)
    shutil.rmtree(running.home.blobs)
    LocalBroker(running.home, running.settings).start(secure=secure)


def seal(fabric: Fabric, **options: Any) -> Sealed:
    """Seal everything into the home's archive."""
    with sealing(fabric, archive_of(fabric.home), **options) as sealer:
        return sealer.seal()


def stored_blobs(root: Path) -> dict[str, bytes]:
    """Return what a store of blobs holds."""
    return {path.name: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@contextmanager
def open_fabric(running: RunningBroker) -> Iterator[Fabric]:
    """Open a fabric on a broker's home, closed with the block."""
    with Fabric.open(running.settings, member="test") as fabric:
        yield fabric


def copy_archive(source: Path, target: Path) -> Path:
    """Copy an archive."""
    return Path(shutil.copytree(source, target))
