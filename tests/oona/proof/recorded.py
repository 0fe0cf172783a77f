"""A real log, recorded from a real broker with the checkpoints that the real writer appended to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from esper.core._log_key import LogKey, open_log_key
from esper.core.clock import Deadline
from esper.leyline import KeyRing, Record
from esper.leyline import messages as ly
from esper.oona import Fabric, TopicCatalog
from esper.oona._cluster import Position
from esper.oona.proof._evidence import last_boundaries
from esper.oona.proof._judge import Judge, fabric_judge
from esper.oona.proof._kafka import KafkaLog
from esper.oona.proof._log import Bounds, ListLog, Span
from esper.oona.proof._verdict import read_evidence
from esper.oona.proof._writer import CheckpointWriter
from esper.oona.publishing._publisher import Publisher
from tests.oona.log import packet

RUNS = ("run-of-the-recording", "run-beside-it", "run-that-came-late")


@dataclass(frozen=True)
class Recorded:
    """Everything of a log that its last checkpoint covers, and what is needed to prove it."""

    log: ListLog
    key: LogKey
    keyring: KeyRing
    topics: TopicCatalog
    judge: Judge
    cluster_id: str

    @property
    def public_key(self) -> bytes:
        """The log's public key."""
        return self.key.public_key

    def with_log(self, partitions: Mapping[Position, Sequence[Record]]) -> Recorded:
        """Return the same with other records."""
        return replace(self, log=replace(self.log, partitions=dict(partitions)))


def write_events(fabric: Fabric, *, rounds: int) -> None:
    """Append events of several producers, runs and topics, interleaved, some producers ending in between."""
    with fabric.publisher("tolaria") as tolaria, fabric.publisher("kasmina") as kasmina:
        second = fabric.publisher("tolaria")
        for epoch in range(rounds):
            for run in RUNS:
                tolaria.submit(packet(run, epoch), key=run)
                second.submit(packet(run, epoch), key=run)
                kasmina.submit(ly.SeedStageChanged(), key=run)
                second.submit(ly.CommandOutcome(epoch=epoch), key=run)
            tolaria.submit(ly.TelemetryPacket(), key="tolaria")
            if epoch % 7 == 6:
                second.close()
                second = fabric.publisher("tolaria")
        second.close()


@contextmanager
def writing(fabric: Fabric, publisher: Publisher) -> Iterator[CheckpointWriter]:
    """Run a writer in a thread; leaving the block stops it after its last checkpoint."""
    stop, failures = threading.Event(), []
    writer = CheckpointWriter(fabric, publisher)

    def run() -> None:
        try:
            writer.run(stop)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread of the test
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield writer
    finally:
        stop.set()
        thread.join(60)
    assert not failures, failures
    assert not thread.is_alive()


def last_number(fabric: Fabric) -> int:
    """Return the number of the last checkpoint that the log holds."""
    public_key = open_log_key(fabric.home.root).public_key
    return read_evidence(KafkaLog(fabric), public_key=public_key, judge=fabric_judge(fabric)).last_number


def wait_for_checkpoint(fabric: Fabric, number: int, *, seconds: float = 60.0) -> None:
    """Wait until the log holds checkpoint `number`."""
    deadline = Deadline(seconds)
    while last_number(fabric) < number:
        assert not deadline.expired, f"checkpoint {number} did not come"


def record_log(fabric: Fabric, *, covered_only: bool = True) -> Recorded:
    """Read everything into memory; with `covered_only` up to the last checkpoint, that one's own record included."""
    log, judge = KafkaLog(fabric), fabric_judge(fabric)
    key = open_log_key(fabric.home.root)
    bounds = log.bounds()
    ends: dict[Position, int] = {place: found.high for place, found in bounds.items()}
    if covered_only:
        evidence = read_evidence(log, public_key=key.public_key, judge=judge)
        ends |= dict.fromkeys(ends, 0) | last_boundaries(evidence.boundaries)
        ends[("operations", 0)] = bounds[("operations", 0)].high
    partitions: dict[Position, list[Record]] = {place: [] for place in bounds}
    for record in log.read({place: Span(found.low, ends[place]) for place, found in bounds.items()}):
        partitions[(record.topic, record.partition)].append(record)
    recorded = ListLog(dict(partitions), topic_ids=log.topic_ids(), passing=_passing(bounds))
    return Recorded(recorded, key, fabric.keyring, fabric.topics, judge, log.cluster_id())


def _passing(bounds: Mapping[Position, Bounds]) -> frozenset[str]:
    return frozenset(topic for (topic, _), found in bounds.items() if not found.keeps_all)
