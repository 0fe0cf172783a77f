"""The speed of the fabric beside bare clients of the same real broker, in one run.

Peer and subject take turns, round after round, and medians are compared, so that noise of the machine hits both.

python -m benchmarks.oona [--rounds 5] [--records 50000] [--json]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks._bare import BareProducer, Place, Sent, read_in_processes, read_with_hmac
from benchmarks._load import SOURCE, TOPIC, packets
from benchmarks._report import Claim, at_least, at_most, report
from benchmarks._system import broker_only
from esper.leyline import messages as ly
from esper.oona import Event, Fabric, Publisher
from esper.oona._events import Gatekeeper
from esper.oona.proof import append_checkpoint, verify_cluster

_BARE_TOPIC: Final = "bench-oona"
_SINGLE_RECORDS: Final = 400
_OPENED_RECORDS: Final = 20_000
_PUBLISH_P95_MS_MAX: Final = 10.0
_OPEN_P99_US_MAX: Final = 100.0
_PRODUCER_RATIO_MIN: Final = 0.4
_READER_RATIO_MIN: Final = 0.5


@dataclass(frozen=True)
class Rounds:
    """What peer and subject gave, round by round."""

    bare: list[float]
    esper: list[float]

    def at_least(self, name: str, bound: float) -> Claim:
        """Return the claim that the median subject reaches `bound` times the median peer."""
        return at_least(
            name, statistics.median(self.esper), "records/s", peer=statistics.median(self.bare), bound=bound
        )


def taking_turns(rounds: int, bare: Callable[[], float], esper: Callable[[], float]) -> Rounds:
    """Measure peer and subject `rounds` times in turn, after one unmeasured turn of each."""
    bare()
    esper()
    found = Rounds([], [])
    for _ in range(rounds):
        found.bare.append(bare())
        found.esper.append(esper())
    return found


def percentile(values: list[float], percent: int) -> float:
    """Return a percentile of at least 100 values."""
    return statistics.quantiles(values, n=100)[percent - 1]


def sent_by(fabric: Fabric, count: int) -> list[Sent]:
    """Return the first records of the topic as a bare producer sends them again: same bytes, keys and headers."""
    with fabric.reader(dict.fromkeys(fabric.topics.partitions(TOPIC), "begin")) as reader:
        found: list[Sent] = []
        while len(found) < count:
            found += [
                (record.key or b"", record.value or b"", list(record.headers), record.partition)
                for record in reader.read_raw(1.0)
            ]
    return found[:count]


def publish_one(publisher: Publisher, packet: ly.SystemStatePacket) -> float:
    """Return the milliseconds that one event took to be acknowledged."""
    began = time.perf_counter()
    publisher.publish(packet, key=packet.training_run_id)
    return (time.perf_counter() - began) * 1_000


def publish_latencies(publisher: Publisher, bare: BareProducer, sample: Sent, rounds: int) -> Rounds:
    """Return the milliseconds of events that are published one at a time, each acknowledged before the next."""
    found = Rounds([], [])
    for number in range(rounds):
        for _ in range(_SINGLE_RECORDS):
            began = time.perf_counter()
            bare.publish(sample)
            found.bare.append((time.perf_counter() - began) * 1_000)
        for packet in packets(_SINGLE_RECORDS, first=1 + number * _SINGLE_RECORDS):
            found.esper.append(publish_one(publisher, packet))
    return found


def stream(publisher: Publisher, count: int) -> float:
    """Return the events a second that are submitted one by one and acknowledged; they were made before."""
    made = packets(count)
    began = time.perf_counter()
    for packet in made:
        publisher.submit(packet, key=packet.training_run_id)
    publisher.flush()
    return count / (time.perf_counter() - began)


def opened_us(fabric: Fabric) -> list[float]:
    """Return the microseconds that each of many records took to be verified and decoded."""
    gate, taken = Gatekeeper(keyring=fabric.keyring, topics=fabric.topics), []
    with fabric.reader(dict.fromkeys(fabric.topics.partitions(TOPIC), "begin")) as reader:
        while len(taken) < _OPENED_RECORDS:
            for record in reader.read_raw(1.0):
                began = time.perf_counter()
                gate.decode(record, gate.authenticate(record))
                taken.append((time.perf_counter() - began) * 1e6)
    return taken


def _ignore(_: Event) -> None:
    """Handle nothing: what is left is the fabric's own work."""


def consume(fabric: Fabric, publisher: Publisher, total: int, number: int) -> float:
    """Return the events a second that a new group's only member handles, from its first poll with events on."""
    consumer = fabric.consumer(
        group=f"bench.oona-{number}",
        instance=f"bench-oona-{number}",
        topics=[TOPIC],
        handlers={ly.SystemStatePacket: _ignore},
        publisher=publisher,
    )
    with consumer:
        first = 0
        while first == 0:
            first = consumer.poll(1.0)
        began, handled = time.perf_counter(), first
        while handled < total:
            handled += consumer.poll(1.0)
        seconds = time.perf_counter() - began
        metrics = consumer.metrics()
    if metrics.handled != total:
        raise RuntimeError(f"the consumer handled {metrics.handled} of {total} events")
    return (total - first) / seconds


def verify(fabric: Fabric, processes: int) -> float:
    """Return the records a second of `esper verify`, the start of its processes included."""
    began = time.perf_counter()
    verdict = verify_cluster(fabric, processes=processes)
    seconds = time.perf_counter() - began
    if not verdict.ok:
        raise RuntimeError(f"the log of the benchmark is not proved: {verdict.document()['first_bad']}")
    return verdict.records / seconds


def ends_of(fabric: Fabric) -> dict[Place, int]:
    """Return the offset after the last record of each partition of the topic."""
    places = fabric.topics.partitions(TOPIC)
    return {place: high for place, (_, high) in fabric.cluster.watermarks(places).items()}


def main() -> int:
    """Measure, judge and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=50_000, help="of one round")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rounds, records, cores = arguments.rounds, arguments.records, os.cpu_count() or 1
    with broker_only() as fabric:
        admin = AdminClient({"bootstrap.servers": fabric.bootstrap})
        for future in admin.create_topics([NewTopic(_BARE_TOPIC, fabric.topics[TOPIC].partitions, 1)]).values():
            future.result()
        bare = BareProducer(fabric.bootstrap, _BARE_TOPIC)
        with fabric.publisher(SOURCE) as publisher:
            stream(publisher, records)
            sent = sent_by(fabric, records)
            latencies = publish_latencies(publisher, bare, sent[0], rounds)
            rates = taking_turns(rounds, lambda: bare.stream(sent), lambda: stream(publisher, records))
            opened = opened_us(fabric)
            ends = ends_of(fabric)
            total, numbers = sum(ends.values()), iter(range(1_000))
            consumed = taking_turns(
                rounds,
                lambda: read_with_hmac(fabric.bootstrap, ends),
                lambda: consume(fabric, publisher, total, next(numbers)),
            )
        append_checkpoint(fabric)
        verified = taking_turns(rounds, lambda: read_with_hmac(fabric.bootstrap, ends), lambda: verify(fabric, 1))
        spread = taking_turns(
            rounds,
            lambda: read_in_processes(fabric.bootstrap, ends, cores),
            lambda: verify(fabric, cores),
        )
    claims = [
        at_most(
            "publish of one signed 1 KiB event at a time, acknowledged: p95 against the budget",
            percentile(latencies.esper, 95),
            "ms",
            peer=_PUBLISH_P95_MS_MAX,
            bound=1.0,
        ),
        rates.at_least(
            "signed 1 KiB events submitted one by one and acknowledged, against a bare idempotent producer",
            _PRODUCER_RATIO_MIN,
        ),
        at_most(
            "verify + decode of one 1 KiB event: p99 against the budget",
            percentile(opened, 99),
            "us",
            peer=_OPEN_P99_US_MAX,
            bound=1.0,
        ),
        consumed.at_least(
            "consumer loop with an empty handler, against a bare consumer with one HMAC per value", _READER_RATIO_MIN
        ),
        verified.at_least(
            "esper verify in one process, against one bare consumer with one HMAC per value", _READER_RATIO_MIN
        ),
    ]
    details = {
        "value_bytes": len(sent[0][1]),
        "records_of_a_producer_round": records,
        "records_read": total,
        "publish_ms": {
            side: {"p50": percentile(values, 50), "p95": percentile(values, 95), "p99": percentile(values, 99)}
            for side, values in (("bare", latencies.bare), ("esper", latencies.esper))
        },
        "produced_per_second": vars(rates),
        "verify_and_decode_us": {"p50": percentile(opened, 50), "p99": percentile(opened, 99)},
        "consumed_per_second": vars(consumed),
        "verified_per_second": vars(verified),
        # The start of the processes counts on both sides.
        f"verified_per_second_{cores}_processes": vars(spread),
    }
    return report("oona", claims, details, as_json=arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
