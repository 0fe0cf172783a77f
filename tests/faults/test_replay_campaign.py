"""Commands that come again: while a run is trained, right after its worker was killed, and after three days.

Copies of what was ordered are appended byte by byte, as anybody with access to the broker could, and signed anew under
the same command ids, as a sender that lost its memory would. No command may be applied twice, no request for a kernel
answered twice.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import Producer
from google.protobuf.message import Message

from esper.core.ids import new_event_id
from esper.core.rng import derive_seed
from esper.core.settings import load_settings
from esper.leyline import SIGNATURE_HEADER, TYPE_HEADER, Envelope, Record, decode
from esper.leyline import messages as ly
from esper.oona import Event, Fabric, list_dead_letters
from esper.weatherlight import Ordered, RunOrder, await_outcome, cancel_run, order_run
from tests.campaigns import WHOLE
from tests.integration.conftest import own_home
from tests.integration.driver import Esper, eventually, finish, kill
from tests.oona.log import read_run

#: Copies in all; three times a third of them.
COPIES = 5_100 if WHOLE else 300
SEED = 7
KINDS = ("the same bytes", "the same event, signed anew", "the same order, another event")
DAYS_MS = 3 * 86_400_000
#: An epoch of so small batches takes a seventh of a second on an idle core: long enough to strike within one.
TRAIN = ["--task", "mnist1d", "--policy", "fixed", "--epochs", "2000", "--hyper", "batch_size=8", "--no-members"]
MEMBERS = ("karn", "tezzeret", "urza", "tamiyo", "tolaria")
Note = Callable[[str, object], None]
_KERNELS = ("kernel-requests", 0)


def append(fabric: Fabric, records: Iterable[Record], *, time_ms: int = 0) -> None:
    """Append raw records; `time_ms` is their append time where the topic takes it from the producer."""
    producer = Producer({"bootstrap.servers": fabric.bootstrap, "linger.ms": 5})
    for record in records:
        headers = cast("list[tuple[str, str | bytes | None]]", list(record.headers))
        producer.produce(record.topic, record.value, record.key, record.partition, headers=headers, timestamp=time_ms)
    assert producer.flush(60) == 0


def signed_anew(fabric: Fabric, record: Record, *, same_event: bool) -> Record:
    """Return what a record says, said again by another life of its sender at the time of the first."""
    meta = ly.AnyEvent.FromString(record.value or b"").meta
    message = cast("Message", decode(record, meta))
    meta.producer_id, meta.sequence, meta.previous_mac = f"{meta.source}:{new_event_id()[:16]}", 1, b""
    meta.event_id = meta.event_id if same_event else new_event_id()
    cast("Any", message).meta.CopyFrom(meta)
    value = message.SerializeToString(deterministic=True)
    signature = fabric.keyring.sign(Envelope(record.topic, record.partition, meta.subject, meta.type, value))
    headers = ((SIGNATURE_HEADER, signature), (TYPE_HEADER, meta.type.encode()))
    return replace(record, value=value, headers=headers)


class Attack:
    """Appends copies of the genuine orders of one run, and of what it asked of the library."""

    def __init__(self, fabric: Fabric, run_id: str) -> None:
        self.fabric = fabric
        self.run_id = run_id
        self.random = random.Random(derive_seed(SEED, "replays"))  # noqa: S311 - a seeded campaign
        self.tried: Counter[str] = Counter()
        self.genuine: list[Record] = []

    def learn(self) -> None:
        """Take in what may be copied."""
        commands = read_run(self.fabric, "adaptation-commands", self.run_id)
        with self.fabric.reader({_KERNELS: "begin"}) as reader:
            requests = [event for event in reader.read_to_end() if isinstance(event.message, ly.KernelPrefetchRequest)]
        self.genuine = [event.record for event in (*commands, *requests)]
        assert len(commands) > 2
        assert requests

    def strike(self, copies: int, *, time_ms: int = 0) -> None:
        """Append that many copies, of all kinds."""
        records = []
        for _ in range(copies):
            original = self.random.choice(self.genuine)
            kind = self.random.choice(
                ["the same bytes", "the same event, signed anew", "the same order, another event"]
            )
            self.tried[kind] += 1
            records.append(
                original if kind == KINDS[0] else signed_anew(self.fabric, original, same_event=kind == KINDS[1])
            )
        append(self.fabric, records, time_ms=time_ms)


class Watch:
    """What the log says of a run so far; reads on from where it was."""

    def __init__(self, fabric: Fabric, run_id: str) -> None:
        self.outcomes: list[ly.CommandOutcome] = []
        self.claims = 0
        self._run_id = run_id
        self._reader = fabric.reader({("runs", fabric.partition_of("runs", run_id)): "begin"})

    def look(self) -> None:
        """Take in what is new."""
        for event in self._reader.read(0.2):
            if event.meta.subject == self._run_id:
                self.claims += isinstance(event.message, ly.TrainingRunClaimed)
                self.outcomes += [event.message] if isinstance(event.message, ly.CommandOutcome) else []

    def until(self, condition: Callable[[], bool], *, what: str) -> None:
        """Look until `condition` holds."""

        def holds() -> bool:
            self.look()
            return condition()

        eventually(holds, what=what)

    def epochs_pass(self, count: int = 2) -> None:
        """Wait until the run has that many more epochs behind it."""
        wanted = len(self.outcomes) + count
        self.until(lambda: len(self.outcomes) >= wanted, what=f"{count} more epochs")

    def applied(self) -> list[ly.CommandOutcome]:
        """Return the outcomes of commands that were applied."""
        return [one for one in self.outcomes if one.result == ly.COMMAND_RESULT_APPLIED]


def order(fabric: Fabric, run_id: str, **wish: Any) -> tuple[Ordered, ly.CommandOutcome]:
    ordered = order_run(fabric, run_id, RunOrder(**wish))
    return ordered, await_outcome(fabric, ordered)


def grow_and_cull(fabric: Fabric, run_id: str, slot: str) -> str:
    """Let an operator graft and remove a seed, so that copies of both orders could do it again; return its id."""
    wish = {"slot": slot, "blueprint_id": "BP009", "parameters": {"depth": 2.0}}
    _, born = order(fabric, run_id, operation="germinate", **wish)
    assert born.result == ly.COMMAND_RESULT_APPLIED
    _, gone = order(fabric, run_id, operation="cull", seed_id=born.seed_id)
    assert gone.result == ly.COMMAND_RESULT_APPLIED
    return born.seed_id


def running_run(fabric: Fabric) -> str | None:
    """Return the run that is in training, once it has a few epochs."""
    with fabric.reader(dict.fromkeys(fabric.topics.partitions("system-state"), "begin")) as reader:
        epochs = {event.meta.subject: event.message.current_epoch for event in reader.read_to_end()}  # type: ignore[attr-defined]  # packets only
    return next((run_id for run_id, epoch in epochs.items() if epoch > 3), None)


def order_to_go_on(fabric: Fabric, run_id: str) -> None:
    """Order what could be done at every edge, so that nothing but the ledger of outcomes stands against a copy."""
    command = ly.AdaptationCommand(
        command_id=f"cmd-{new_event_id()}",
        command_type=ly.COMMAND_CONTINUE,
        training_run_id=run_id,
        first_epoch=1,
        last_epoch=2**31,
    )
    with fabric.publisher("cli") as publisher:
        publisher.publish(command, key=run_id)


def kill_worker(esper: Esper, watch: Watch) -> None:
    """Kill the worker at once; its supervisor starts another, whose attempt goes on."""
    watch.look()
    attempts = watch.claims
    kill(esper.member_pid("tolaria-0"))
    watch.until(lambda: watch.claims > attempts, what="another attempt claims the run")


def replies(events: Sequence[Event]) -> Counter[str]:
    wanted = (ly.KernelArtifactReady, ly.KernelArtifactError)
    return Counter(event.message.request_id for event in events if isinstance(event.message, wanted))


@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_no_command_is_executed_twice(tmp_path: Path, record_property: Note) -> None:
    """Goal: a copy of an order does nothing, ever. Method: copies live, after kill -9, and three days later."""
    settings = load_settings(_env_file=None, home=tmp_path / "home")
    with own_home(tmp_path) as esper, esper.serving(*MEMBERS), Fabric.open(settings, member="cli") as fabric:
        run = esper.spawn("train", *TRAIN)
        run_id = eventually(lambda: running_run(fabric), what="the run is in training")
        watch = Watch(fabric, run_id)
        packet = cast("ly.SystemStatePacket", read_run(fabric, "system-state", run_id)[0].message)
        grow_and_cull(fabric, run_id, packet.slots[-1].slot)
        order_to_go_on(fabric, run_id)
        attack = Attack(fabric, run_id)
        watch.epochs_pass()
        attack.learn()

        attack.strike(COPIES // 3)
        watch.epochs_pass()

        kill_worker(esper, watch)
        attack.strike(COPIES // 3)
        watch.epochs_pass()

        for topic in ("adaptation-commands", "kernel-requests"):
            stamp(fabric, topic, "CreateTime")
        time_ms = attack.genuine[0].append_time_ms + DAYS_MS
        attack.strike(COPIES - 2 * (COPIES // 3), time_ms=time_ms)
        for topic in ("adaptation-commands", "kernel-requests"):
            stamp(fabric, topic, "LogAppendTime")
        kill_worker(esper, watch)
        watch.epochs_pass()
        cancel_run(fabric, run_id)
        finish(run)

        watch.look()
        found = watch.applied()
        twice = {name: n for name, n in Counter(one.command_id for one in found).items() if n > 1}
        epochs = [one.epoch for one in watch.outcomes]
        with fabric.reader(dict.fromkeys(fabric.topics.partitions("kernel-replies"), "begin")) as reader:
            answered = replies(reader.read_to_end())
        letters = Counter(row.reason for row in list_dead_letters(fabric))
    genuine = {record.offset for record in attack.genuine if record.topic == "adaptation-commands"}
    copied = [
        one for one in found if one.command_offset > max(genuine) and one.command_id in commands_of(attack.genuine)
    ]
    assert twice == {}
    assert copied == []
    assert epochs == sorted(set(epochs)), "each epoch has one outcome"
    assert max(answered.values()) == 1, "each request for a kernel has one reply"
    assert letters["REPLAYED"] > COPIES // 4
    assert sum(attack.tried.values()) == COPIES
    record_property("seed", SEED)
    record_property("copies", dict(attack.tried))
    record_property("commands_executed_twice", len(twice))
    record_property("commands_applied", len(found))
    record_property("set_aside", dict(letters))


def commands_of(records: Iterable[Record]) -> dict[str, int]:
    """Return the command ids that records name, each with the offset of its original."""
    found: dict[str, int] = {}
    for record in records:
        message = decode(record, ly.AnyEvent.FromString(record.value or b"").meta)
        if isinstance(message, ly.AdaptationCommand):
            found.setdefault(message.command_id, record.offset)
    return found


def stamp(fabric: Fabric, topic: str, kind: str) -> None:
    """Have a topic take append times from its broker or from its producers."""
    from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

    entry = ConfigEntry("message.timestamp.type", kind, incremental_operation=AlterConfigOpType.SET)
    wide = ConfigEntry("message.timestamp.after.max.ms", str(2**62), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry, wide])
    for future in fabric.cluster.admin.incremental_alter_configs([resource]).values():
        future.result()
