"""Control loop (state appended -> command handled) beside the bare Kafka round trip, in one run.

python -m benchmarks.control_loop [--epochs 300] [--json]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks._report import at_most, report
from benchmarks._system import whole_system
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.weatherlight import TrainingRequest, train

_PING, _PONG = "bench-ping", "bench-pong"
_WARM_UP = 20
_VALUE_BYTES = 1024
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


def round_trips(bootstrap: str, count: int) -> list[float]:
    """Return milliseconds of `count` round trips over two topics and two processes."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for future in admin.create_topics([NewTopic(name, 1, 1) for name in (_PING, _PONG)]).values():
        future.result()
    command = [sys.executable, "-m", "benchmarks.control_loop", "--echo", bootstrap]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as peer:
        if peer.stdout is None or peer.stdout.readline().strip() != "ready":
            raise RuntimeError("the echo process did not start")
        producer, consumer = _producer(bootstrap), _tail(bootstrap, _PONG)
        taken = [_round_trip(producer, consumer) for _ in range(count + _WARM_UP)]
        producer.produce(_PING, b"", partition=0)
        producer.flush()
        consumer.close()
    return taken[_WARM_UP:]


def _round_trip(producer: Producer, consumer: Consumer) -> float:
    begin = time.perf_counter()
    producer.produce(_PING, b"x" * _VALUE_BYTES, partition=0)
    producer.flush()
    while True:
        message = consumer.poll(1.0)
        if message is not None and not message.error():
            return (time.perf_counter() - begin) * 1000


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
    parser.add_argument("--echo", metavar="BOOTSTRAP")
    arguments = parser.parse_args()
    if arguments.echo:
        echo(arguments.echo)
        return 0
    with whole_system() as (fabric, supervisor):
        request = TrainingRequest(task="digits", policy="noop", epochs=arguments.epochs, seed=1)
        document = train(fabric, request, supervisor)
        loop = loop_latencies(fabric, document["run_id"])
        bare = round_trips(fabric.bootstrap, len(loop))
    claims = [
        at_most("control_loop_p50", percentile(loop, 50), "ms", peer=percentile(bare, 50), bound=_P50_RATIO_MAX),
        at_most("control_loop_p99", percentile(loop, 99), "ms", peer=percentile(bare, 99), bound=_P99_RATIO_MAX),
    ]
    details = {"epochs": len(loop), "peer": "bare Kafka round trip over two topics and two processes, 1 kB"}
    return report("control_loop", claims, details, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
