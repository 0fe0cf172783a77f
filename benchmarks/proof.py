"""`esper verify` beside a bare consumer that computes one HMAC per value, and an audit bundle of 100,000 events.

Both read the same topic of the same real broker, one after the other, the bare consumer before and after.

python -m benchmarks.proof [--records 100000] [--json]
"""

from __future__ import annotations

import argparse
import hmac
import os
import statistics
import tempfile
import time
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition

from benchmarks._report import at_least, at_most, report
from benchmarks._system import broker_only
from esper.core._log_key import log_public_key
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.oona.proof import append_checkpoint, export_from_cluster, verify_bundle, verify_cluster

_RUNS = 16
#: One run has this many events, all of them in one partition: what a bundle shows.
_SHOWN_RUN = "run-that-is-shown"
_VALUE_BYTES = 1024
_BATCH = 500
_BUNDLE_SECONDS_MAX = 10.0
_RATIO_MIN = 0.5


def fill(fabric: Fabric, topic_runs: dict[str, int]) -> None:
    """Append state packets of about 1 KiB, `topic_runs` naming each run's number of them."""
    payload = "x" * (_VALUE_BYTES - 300)
    with fabric.publisher("tolaria") as publisher:
        for run, count in topic_runs.items():
            for epoch in range(count):
                packet = ly.SystemStatePacket(training_run_id=run, current_epoch=epoch, experiment_name=payload)
                publisher.submit(packet, key=run)


def bare(fabric: Fabric) -> float:
    """Return the records/s of one process that reads the topic and computes one HMAC per value."""
    places = fabric.topics.partitions("system-state")
    ends = {place: high for place, (_, high) in fabric.cluster.watermarks(places).items()}
    left = sum(ends.values())
    consumer = Consumer({"bootstrap.servers": fabric.bootstrap, "group.id": "bench", "enable.auto.commit": False})
    began = time.perf_counter()
    consumer.assign([TopicPartition(*place, 0) for place in places])
    total, key = left, b"k" * 32
    while left > 0:
        for message in consumer.consume(_BATCH, 1.0):
            if message.error() is None:
                hmac.digest(key, message.value(), "sha256")
                left -= 1
    seconds = time.perf_counter() - began
    consumer.close()
    return total / seconds


def _must(holds: bool, what: object) -> None:
    if not holds:
        raise RuntimeError(f"the log of the benchmark is not proved: {what}")


def verified(fabric: Fabric, processes: int) -> float:
    """Return the records/s of `esper verify`, start of its processes and reading of checkpoints included."""
    began = time.perf_counter()
    verdict = verify_cluster(fabric, processes=processes)
    seconds = time.perf_counter() - began
    _must(verdict.ok, verdict.document()["first_bad"])
    return verdict.records / seconds


def bundle_seconds(fabric: Fabric) -> tuple[int, float, float]:
    """Return how many events a bundle of one run holds, its seconds of export and of verification."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.jsonl"
        began = time.perf_counter()
        exported = export_from_cluster(fabric, path, run_id=_SHOWN_RUN)
        written = time.perf_counter()
        public_key = log_public_key(fabric.home.root)
        if public_key is None:
            raise RuntimeError("the writer left no public key")
        with path.open("rb") as file:
            verdict = verify_bundle(file, public_key=public_key)
        seconds = time.perf_counter() - written
        _must(verdict.ok and verdict.records == exported.records, verdict.document()["first_bad"])
        return verdict.records, written - began, seconds


def main() -> int:
    """Measure, judge and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    runs = {f"run-{number}": arguments.records // _RUNS for number in range(_RUNS)} | {_SHOWN_RUN: arguments.records}
    with broker_only() as fabric:
        fill(fabric, runs)
        append_checkpoint(fabric)
        peers = [bare(fabric)]
        one = verified(fabric, 1)
        peers.append(bare(fabric))
        spread = verified(fabric, cores)
        peers.append(bare(fabric))
        shown, export, check = bundle_seconds(fabric)
    peer = statistics.median(peers)
    name = f"esper verify on {cores} cores against one bare consumer with one HMAC per value"
    claims = [
        at_least(name, spread, "records/s", peer=peer, bound=_RATIO_MIN),
        at_most(f"audit bundle of {shown} events, verified", check, "s", peer=_BUNDLE_SECONDS_MAX, bound=1.0),
    ]
    details = {
        "records": sum(runs.values()),
        "bare_records_per_second": peers,
        "verify_records_per_second_one_process": one,
        "verify_ratio_one_process": one / peer,
        "bundle_export_seconds": export,
    }
    return report("proof", claims, details, as_json=arguments.json)


if __name__ == "__main__":
    raise SystemExit(main())
