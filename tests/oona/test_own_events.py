"""Events of a user on a real broker that asks for logins: who may write them, and that spawned processes prove them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, Producer

from esper.core.errors import UsageError
from esper.leyline import EVENT_TYPES, full_name, load_contracts
from esper.leyline import messages as ly
from esper.leyline.contracts import unload_contracts
from esper.oona import Event, Fabric, cat_events
from esper.oona.proof import append_checkpoint, verify_cluster
from esper.oona.publishing._client import key_of
from tests.conftest import RunningBroker, running_broker
from tests.leyline.users import HEAD, POSTED, compile_contract
from tests.oona.topics.test_own_topics import TEXT, topics

TOPIC = "acme-reviews"
COUNT = 40
_SECONDS = 20.0


@pytest.fixture
def shop(tmp_path: Path, _no_settings_from_outside: None) -> Iterator[RunningBroker]:
    """A secure broker of a home with one contract and one topic of its own."""
    image, _ = compile_contract(tmp_path, HEAD + POSTED)
    own = topics(tmp_path / "topics", TEXT.replace("readers: [", "readers: [acme, "))
    try:
        with running_broker(
            tmp_path / "home", secure=True, broker_start_seconds=240, contracts=(str(image),), extra_topics_dirs=(own,)
        ) as running:
            yield running
    finally:
        unload_contracts()


def test_own_events_live_as_ours_do(shop: RunningBroker) -> None:
    """Goal: rights, groups and proof hold for users too. Method: write as the source and as others, consume, prove."""
    with Fabric.open(shop.settings, member="acme-0") as fabric:
        cls = cast("Any", EVENT_TYPES[full_name("ReviewPosted")])
        with fabric.publisher("acme") as acme:
            assert fabric.cluster.principal == "acme"
            for number in range(COUNT):
                acme.submit(cls(product_id=f"p-{number % 5}", stars=number), key=f"p-{number % 5}")
            acme.flush()
            with pytest.raises(UsageError, match="acme may not write FieldReport"):
                acme.publish(ly.FieldReport(), key="r")
            handled: list[int] = []
            consume(fabric, acme, cls, handled)
        assert sorted(handled) == list(range(COUNT))
        with pytest.raises(UsageError, match="tolaria may not write ReviewPosted"):
            fabric.publisher("tolaria").publish(cls(), key="p")
    with Fabric.open(shop.settings, member="karn-0") as other:
        assert code_of_unasked(other) == KafkaError.TOPIC_AUTHORIZATION_FAILED
    with Fabric.open(shop.settings, member="cli") as person:
        assert [one["payload"]["product_id"] for one in cat_events(person, TOPIC, where=["stars=7"])] == ["p-2"]
    with Fabric.open(shop.settings, member="housekeeper-0") as keeper:
        append_checkpoint(keeper)
    with Fabric.open(shop.settings, member="cli") as person:
        verdict = verify_cluster(person, processes=2)
        assert verdict.ok, [one.document() for one in verdict.bad]
        assert sum(one.covered for one in verdict.partitions if one.topic == TOPIC) == COUNT


def consume(fabric: Fabric, publisher: Any, cls: Any, handled: list[int]) -> None:
    """Handle every review that is there, as a member of a group of the source's own."""

    def handle(event: Event) -> None:
        handled.append(cast("Any", event.message).stars)

    with fabric.consumer(
        group="esper.acme", instance="acme-0", topics=[TOPIC], handlers={cls: handle}, publisher=publisher
    ) as consumer:
        while len(handled) < COUNT:  # ends with the records; the test's own time limit is the deadline
            consumer.poll(1.0)


def code_of_unasked(fabric: Fabric) -> int | None:
    """Append to the topic as a principal that it does not name, past our own checks; return the broker's error."""
    answers: list[int | None] = []
    producer = Producer(fabric.cluster.as_principal("karn").config())
    producer.produce(TOPIC, b"x", on_delivery=lambda error, _: answers.append(error and error.code()))
    assert producer.flush(_SECONDS) == 0
    return answers[0]


def test_only_its_writer_knows_the_key_of_an_own_event(tmp_path: Path) -> None:
    """Goal: a clear answer. Method: ask for the key of a user's event."""
    image, _ = compile_contract(tmp_path, HEAD + POSTED)
    (name,) = load_contracts([str(image)])
    try:
        with pytest.raises(UsageError, match="by its own key: its contract is not Esper's"):
            key_of(cast("Any", EVENT_TYPES[name](product_id="p")), source="acme")
    finally:
        unload_contracts()
