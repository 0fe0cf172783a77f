"""A leader that settles refuses one request and takes the next: nothing is lost, nothing overtakes."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.admin import AdminClient

from esper.core.home import Home
from esper.core.ids import new_event_id, new_run_id
from esper.core.settings import load_settings
from esper.oona import Fabric, partition_for
from esper.oona._kafka_admin import NewTopic
from tests.conftest import RunningBroker
from tests.oona.log import packet, read_run
from tests.oona.publishing.relay import Refusing

TOPIC = "system-state"
EVENTS = 40


@pytest.mark.parametrize("refused", [{1}, {2}, {1, 4}, {3, 4, 5}, {1, 2, 6, 8}])
def test_what_is_refused_is_not_overtaken(
    broker: RunningBroker, fabric: Fabric, tmp_path: Path, refused: set[int]
) -> None:
    """Goal: acknowledged means in the log, in order. Method: refuse requests of a producer new to its broker."""
    run_id = new_run_id()
    partition = partition_for(run_id, fabric.topics[TOPIC].partitions)
    with Refusing(broker.bootstrap, topic=TOPIC, partition=partition, refused=refused) as relay:
        settings = load_settings(
            _env_file=None,
            home=tmp_path / "home",
            kafka_bootstrap=relay.bootstrap,
            leyline_secret=(broker.home.root / "key").read_text().strip(),
        )
        Home.create(settings)
        with Fabric.open(settings, member="test") as through, through.publisher("tolaria") as publisher:
            pending = []
            for epoch in range(1, EVENTS + 1):
                pending.append(publisher.submit(packet(run_id, epoch), key=run_id))
                if epoch % 5 == 1:
                    # However many a request takes, the next five go in another one.
                    pending[-1].result()
            receipts = [one.result() for one in pending]
        assert relay.refusals == len(refused)
    events = read_run(fabric, TOPIC, run_id)
    assert [event.message.current_epoch for event in events] == list(range(1, EVENTS + 1))  # type: ignore[attr-defined]  # a packet
    assert [event.offset for event in events] == [receipt.offset for receipt in receipts]
    assert [event.meta.sequence for event in events] == list(range(1, EVENTS + 1))


def test_the_relay_bites(broker: RunningBroker, fabric: Fabric) -> None:
    """Goal: the test above can fail. Method: librdkafka with five requests on their way confirms an event that is lost.

    Should this fail one day, librdkafka or the broker has mended it, and the publisher may send more at once.
    """
    topic, found = f"relay-{new_event_id()}", dict[bytes | None, int | None]()
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    admin.create_topics([NewTopic(topic, 1, 1)], operation_timeout=30)[topic].result()
    with Refusing(broker.bootstrap, topic=topic, partition=0, refused={1}) as relay:
        producer = Producer(
            {
                "bootstrap.servers": relay.bootstrap,
                "enable.idempotence": True,
                "linger.ms": 0,
                "batch.num.messages": 1,
                "max.in.flight.requests.per.connection": 5,
            }
        )
        producer.list_topics(timeout=10)

        def confirmed(error: KafkaError | None, message: Message) -> None:
            assert error is None
            found[message.value()] = message.offset()

        for number in range(10):
            producer.produce(topic, b"%d" % number, partition=0, on_delivery=confirmed)
        assert producer.flush(30) == 0
    assert len(found) == 10, "all were confirmed"
    assert found[b"0"] is None, "and of one nobody knows where it stands"
    assert fabric.cluster.watermarks([(topic, 0)])[(topic, 0)] == (0, 9)
