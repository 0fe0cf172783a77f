"""Control loop (state appended -> command handled) beside the bare Kafka round trip, at the same time.

Both share the machine with the run that trains, so that the ratio tells of Esper and not of how busy the cores are.

python -m benchmarks.control_loop [--epochs 300] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks._report import at_most, report
from benchmarks._system import whole_system
from esper.core.clock import SYSTEM_CLOCK
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.weatherlight import TrainingRequest, train

_PING, _PONG = "bench-ping", "bench-pong"
_WARM_UP = 20
_VALUE_BYTES = 1024
#: Between two pings: the peer is to feel the load, not to make it.
_PAUSE_SECONDS = 0.01
_IDLE_SECONDS = 5.0
#: The targets of the design over the round trips seen there: 6 / 2.6 ms and 18 / 9.5 ms.
_P50_RATIO_MAX, _P99_RATIO_MAX = 2.3, 1.9


def _producer(bootstrap: str) -> Producer:
    return Producer({"bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True, "linger.ms": 0})


def _tail(bootstrap: str, topic: str) -> Consumer:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench", "enable.auto.commit": False,
                         "fetch.wait.max.ms": 100})  # fmt: skip
    _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)
    consumer.assign([TopicPartition(topic, 0, end)])
    return consumer


def echo(bootstrap: str) -> None:
    """Send back what arrives, until an empty value comes."""
    producer, consumer = _producer(bootstrap), _tail(bootstrap, _PING)
    print("ready", flush=True)
    while True:
        message = consumer.poll(1.0)
        if message is None or message.error():
            continue
        if not message.value():
            return
        producer.produce(_PONG, message.value(), partition=0)
        producer.flush()


def ping(bootstrap: str) -> None:
    """Measure round trips until stdin ends, then print their milliseconds as JSON."""
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    producer, consumer = _producer(bootstrap), _tail(bootstrap, _PONG)
    print("ready", flush=True)
    taken = []
    while not ended.wait(_PAUSE_SECONDS):
        taken.append(_round_trip(producer, consumer))
    print(json.dumps(taken[_WARM_UP:]), flush=True)
    producer.produce(_PING, b"", partition=0)
    producer.flush()
    consumer.close()


def _round_trip(producer: Producer, consumer: Consumer) -> float:
    begin = time.perf_counter()
    producer.produce(_PING, b"x" * _VALUE_BYTES, partition=0)
    producer.flush()
    while True:
        message = consumer.poll(1.0)
        if message is not None and not message.error():
            return (time.perf_counter() - begin) * 1000


def _process(role: str, bootstrap: str) -> subprocess.Popen[str]:
    """Start this script in another role and wait until it is ready."""
    command = [sys.executable, "-m", "benchmarks.control_loop", role, bootstrap]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if process.stdout is None or process.stdout.readline().strip() != "ready":
        raise RuntimeError(f"the process {role} did not start")
    return process


@contextmanager
def bare_round_trips(bootstrap: str) -> Iterator[list[float]]:
    """Ping over two topics and two processes for the time of the block; the list is filled at its end."""
    taken: list[float] = []
    with _process("--echo", bootstrap) as echoing, _process("--ping", bootstrap) as pinging:
        yield taken
        said, _ = pinging.communicate("")
        taken.extend(json.loads(said))
        echoing.wait()


def loop_latencies(fabric: Fabric, run_id: str) -> list[float]:
    """Return milliseconds from each state packet's acknowledgement to its command's handling."""
    reader = fabric.reader({("runs", fabric.partition_of("runs", run_id)): "begin"})
    outcomes = [event.message for event in reader.read_to_end() if event.meta.subject == run_id]
    reader.close()
    found = [
        o.latency_ms for o in outcomes if isinstance(o, ly.CommandOutcome) and o.result == ly.COMMAND_RESULT_APPLIED
    ]
    return found[_WARM_UP:]


def percentile(values: list[float], percent: int) -> float:
    """Return a percentile of at least 100 values."""
    return statistics.quantiles(values, n=100)[percent - 1]


def main() -> int:
    """Measure both in one run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--echo", metavar="BOOTSTRAP", help=argparse.SUPPRESS)
    parser.add_argument("--ping", metavar="BOOTSTRAP", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.echo or arguments.ping:
        echo(arguments.echo) if arguments.echo else ping(arguments.ping)
        return 0
    with whole_system() as (fabric, supervisor):
        admin = AdminClient({"bootstrap.servers": fabric.bootstrap})
        for future in admin.create_topics([NewTopic(name, 1, 1) for name in (_PING, _PONG)]).values():
            future.result()
        request = TrainingRequest(task="digits", policy="noop", epochs=arguments.epochs, seed=1)
        train(fabric, replace(request, epochs=_WARM_UP), supervisor)
        with bare_round_trips(fabric.bootstrap) as bare:
            document = train(fabric, request, supervisor)
        with bare_round_trips(fabric.bootstrap) as idle:
            SYSTEM_CLOCK.sleep(_IDLE_SECONDS)
        loop = loop_latencies(fabric, document["run_id"])
    claims = [
        at_most("control_loop_p50", percentile(loop, 50), "ms", peer=percentile(bare, 50), bound=_P50_RATIO_MAX),
        at_most("control_loop_p99", percentile(loop, 99), "ms", peer=percentile(bare, 99), bound=_P99_RATIO_MAX),
    ]
    details = {
        "epochs": len(loop),
        "round_trips": len(bare),
        "peer": "bare Kafka round trip over two topics and two processes, 1 kB, while the run trains",
        "idle_round_trip_ms": {"p50": percentile(idle, 50), "p99": percentile(idle, 99)},
    }
    return report("control_loop", claims, details, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
