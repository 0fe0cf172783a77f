"""The secure broker, always the real one: what it answers is what the topic files say, read here as plain YAML."""

from __future__ import annotations

import functools
import random
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import NotReadyError
from esper.core.principals import Principals
from esper.core.settings import load_settings
from esper.leyline import messages as ly
from esper.oona import Cluster, Fabric, shipped_topics_dir
from esper.oona._failures import Refused
from esper.oona.broker import LocalBroker
from esper.oona.broker._access import _ALL_GRANTS
from tests.campaigns import WHOLE
from tests.conftest import RunningBroker, running_broker

FILES: dict[str, Any] = {path.stem: yaml.safe_load(path.read_text()) for path in shipped_topics_dir().glob("*.yaml")}
TOPICS = sorted(FILES)
NAMED = sorted({name for file in FILES.values() for name in file["writers"] + file["readers"]} - {"all"})
PRINCIPALS = [*NAMED, "admin"]
#: Each principal's own group and the one of the housekeeper, whose principal is oona.
GROUPS = {**{f"esper.{name}": name for name in NAMED}, "esper.housekeeping": "oona"}
DENIED = {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED}
SEED = 20_261_122
#: All principals act in the whole campaign; the cut takes some of them, and admin always.
ACTING = PRINCIPALS if WHOLE else [*random.Random(SEED).sample(NAMED, 3), "admin"]  # noqa: S311 - a choice of tests
_SECONDS = 20.0


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, _no_settings_from_outside: None) -> Iterator[RunningBroker]:
    """A secure broker with one record in each topic and one commit of each group."""
    with running_broker(tmp_path_factory.mktemp("secure") / "home", secure=True) as running:
        fill(running)
        yield running
    admin_of.cache_clear()


def config(running: RunningBroker, principal: str, **more: object) -> dict[str, Any]:
    """Return the settings of a bare client of `principal`."""
    cluster = Cluster(running.settings, running.bootstrap, passwords=Principals(running.home), principal=principal)
    return {**cluster.config(), **more}


@functools.cache
def admin_of(running: RunningBroker, principal: str) -> AdminClient:
    """Return the administrative client of `principal`; kept, for a client that goes takes its answers with it."""
    settings = config(running, principal)
    del settings["allow.auto.create.topics"]
    return AdminClient(settings)


def fill(running: RunningBroker) -> None:
    """As admin, append one record to each topic and commit an offset for each group."""
    producer = Producer(config(running, "admin"))
    for topic in TOPICS:
        producer.produce(topic, b"x", partition=0)
    assert producer.flush(_SECONDS) == 0
    for group in GROUPS:
        with closing(Consumer(config(running, "admin", **{"group.id": group}))) as consumer:
            consumer.commit(offsets=[TopicPartition("telemetry", 0, 0)], asynchronous=False)


def says(topic: str, principal: str, field: str) -> bool:
    """Whether the topic's file names the principal, or everybody, in `field`."""
    return principal == "admin" or bool({principal, "all"} & set(FILES[topic][field]))


def expected(principal: str) -> dict[str, set[str]]:
    """Return for each topic what the files let `principal` do; admin may do everything."""
    found: dict[str, set[str]] = {}
    for topic in TOPICS:
        writes, reads = says(topic, principal, "writers"), says(topic, principal, "readers")
        found[topic] = {"write"} if writes else set()
        found[topic] |= {"read"} if reads else set()
        found[topic] |= {"describe"} if reads or writes else set()
        found[topic] |= {"create", "delete", "alter"} if principal == "admin" else set()
    return found


def allowed(code: int | None) -> bool:
    """Whether an answer is no refusal; anything but success and refusal fails the test."""
    assert code in DENIED or code in (None, KafkaError.NO_ERROR), KafkaError(code).str()
    return code not in DENIED


def code_of(future: Any, *fine: int) -> int | None:
    """Return the error code that a request came to; None for success and for the codes in `fine`."""
    try:
        future.result(timeout=_SECONDS)
    except KafkaException as exception:
        code: int = exception.args[0].code()
        return None if code in fine else code
    return None


def test_the_authorizer_agrees_with_the_files(secure: RunningBroker, record_property: Any) -> None:
    """Goal: every principal x topic x operation. Method: ask the broker what it authorises, compare with the YAML."""
    compared = 0
    words = {"read", "write", "describe", "create", "delete", "alter"}
    for principal in PRINCIPALS:
        futures = admin_of(secure, principal).describe_topics(
            TopicCollection(TOPICS), include_authorized_operations=True
        )
        for topic, future in futures.items():
            found = (
                set()
                if not allowed(code_of(future))
                else {operation.name.lower() for operation in future.result().authorized_operations}
            )
            assert found & words == expected(principal)[topic], (principal, topic)
            compared += len(words)
    assert compared == len(PRINCIPALS) * len(TOPICS) * len(words)
    record_property("answers_compared", compared)


def test_groups_are_their_owners(secure: RunningBroker, record_property: Any) -> None:
    """Goal: every principal x group: only the owner may read. Method: ask the broker for each pair."""
    for principal in PRINCIPALS:
        asked = admin_of(secure, principal).describe_consumer_groups(list(GROUPS), include_authorized_operations=True)
        for group, future in asked.items():
            found = {operation.name for operation in future.result(timeout=_SECONDS).authorized_operations}
            assert ("READ" in found) == (principal in ("admin", GROUPS[group])), (principal, group)
            assert "DESCRIBE" in found
            assert "DELETE" not in found or principal == "admin"
    record_property("answers_compared", len(PRINCIPALS) * len(GROUPS))


@pytest.mark.campaign
@pytest.mark.parametrize("principal", ACTING)
def test_requests_get_the_answers_of_the_files(secure: RunningBroker, principal: str) -> None:
    """Goal: what is authorised is what happens. Method: send each kind of request for each topic and group."""
    wanted = expected(principal)
    for operation, found in (
        ("write", writes(secure, principal)),
        ("read", reads(secure, principal)),
        ("describe", describes(secure, principal)),
        ("create", creates(secure, principal)),
        ("alter", alters(secure, principal)),
        ("delete", deletes(secure, principal)),
    ):
        assert found == {topic: operation in wanted[topic] for topic in TOPICS}, operation
    assert joins(secure, principal) == {group: principal in ("admin", owner) for group, owner in GROUPS.items()}


def writes(running: RunningBroker, principal: str) -> dict[str, bool]:
    """Append to each topic by an idempotent producer, as Esper's are; each denied topic leaves the others alone."""
    found: dict[str, bool] = {}
    for topic in TOPICS:
        # One producer each: one that was denied a topic refuses it from its own memory afterwards.
        producer = Producer(config(running, principal, **{"enable.idempotence": True}))
        answers: list[int | None] = []
        producer.produce(
            topic, b"y", partition=0, on_delivery=lambda error, _, into=answers: into.append(error and error.code())
        )
        assert producer.flush(_SECONDS) == 0
        found[topic] = allowed(answers[0])
    return found


def reads(running: RunningBroker, principal: str) -> dict[str, bool]:
    """Read the first record of each topic; of one that it cannot even find, a client is told nothing at all."""
    found = {topic: False for topic, there in describes(running, principal).items() if not there}
    more = {"group.id": "esper.reader", "enable.auto.commit": False, "auto.offset.reset": "error"}
    with closing(Consumer(config(running, principal, **more))) as consumer:
        consumer.assign([TopicPartition(topic, 0, 0) for topic in TOPICS])
        deadline = Deadline(2 * _SECONDS)
        while len(found) < len(TOPICS) and not deadline.expired:
            message = consumer.poll(1.0)
            if message is not None and message.topic() in TOPICS:
                error = message.error()
                found[message.topic()] = allowed(error.code() if error else None)
    return found


def describes(running: RunningBroker, principal: str) -> dict[str, bool]:
    """Describe each topic."""
    futures = admin_of(running, principal).describe_topics(TopicCollection(TOPICS))
    return {topic: allowed(code_of(future)) for topic, future in futures.items()}


def creates(running: RunningBroker, principal: str) -> dict[str, bool]:
    """Ask for each topic to be made, which is there already: only who may not make it is refused for that."""
    new = [NewTopic(topic, num_partitions=1, replication_factor=1) for topic in TOPICS]
    futures = admin_of(running, principal).create_topics(new, validate_only=True)
    return {topic: allowed(code_of(future, KafkaError.TOPIC_ALREADY_EXISTS)) for topic, future in futures.items()}


def alters(running: RunningBroker, principal: str) -> dict[str, bool]:
    """Ask for one more partition of each topic, and for its settings; both must get the same answer."""
    admin = admin_of(running, principal)
    more = [NewPartitions(topic, FILES[topic]["partitions"] + 1) for topic in TOPICS]
    partitions = {t: allowed(code_of(f)) for t, f in admin.create_partitions(more, validate_only=True).items()}
    entry = ConfigEntry("retention.ms", "1", incremental_operation=AlterConfigOpType.SET)
    asked = [ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry]) for topic in TOPICS]
    answers = admin.incremental_alter_configs(asked, validate_only=True)
    settings = {resource.name: allowed(code_of(future)) for resource, future in answers.items()}
    assert settings == partitions
    return partitions


def deletes(running: RunningBroker, principal: str) -> dict[str, bool]:
    """Delete each topic; for whoever may, a topic made for it instead."""
    admin = admin_of(running, principal)
    if principal != "admin":
        return {topic: allowed(code_of(future)) for topic, future in admin.delete_topics(TOPICS).items()}
    admin.create_topics([NewTopic("doomed", num_partitions=1, replication_factor=1)])["doomed"].result(_SECONDS)
    answer = allowed(code_of(admin.delete_topics(["doomed"])["doomed"]))
    return dict.fromkeys(TOPICS, answer)


def joins(running: RunningBroker, principal: str) -> dict[str, bool]:
    """Commit an offset for each group, which takes the right to read it."""
    admin, found = admin_of(running, principal), {}
    for group in GROUPS:
        asked = [ConsumerGroupTopicPartitions(group, [TopicPartition("telemetry", 0, 0)])]
        (future,) = admin.alter_consumer_group_offsets(asked).values()
        (answer,) = future.result(timeout=_SECONDS).topic_partitions
        found[group] = allowed(answer.error and answer.error.code())
    return found


def test_members_publish_and_read_by_their_own_login(secure: RunningBroker) -> None:
    """Goal: no setting of the user's, each source its own user. Method: a fabric of a worker writes as two sources."""
    with Fabric.open(secure.settings, member="tolaria-0") as fabric:
        assert fabric.cluster.principal == "tolaria"
        for source in ("tolaria", "kasmina"):
            packet = ly.TelemetryPacket()
            assert fabric.publisher(source).publish(packet, key=source).topic == "telemetry"
        began = SYSTEM_CLOCK.monotonic()
        with pytest.raises(Refused, match=r"ends of decisions cannot be read.*authorization failed"):
            fabric.reader({("decisions", 0): "begin"})
        assert SYSTEM_CLOCK.monotonic() - began < _SECONDS / 2


def test_a_wrong_password_fails_at_once(secure: RunningBroker) -> None:
    """Goal: refused in far less than the patience for a broker that is away. Method: another user's password."""
    given = {
        "kafka_security_protocol": "SASL_PLAINTEXT",
        "kafka_sasl_username": "tamiyo",
        "kafka_sasl_password": Principals(secure.home).password("urza"),
    }
    settings = load_settings(_env_file=None, home=secure.home.root, connect_seconds=60.0, **given)
    began = SYSTEM_CLOCK.monotonic()
    with pytest.raises(Refused, match=r"cannot be used: .*uthentication failed.*`esper up`") as caught:
        Cluster.open(settings)
    assert SYSTEM_CLOCK.monotonic() - began < _SECONDS / 2
    assert (caught.value.exit_code, caught.value.retriable) == (3, False)
    assert given["kafka_sasl_password"] not in str(caught.value)
    right = settings.model_copy(update={"kafka_sasl_username": "urza"})
    assert Cluster.open(right).principal is None, "the settings name a user of their own"


def listeners(running: RunningBroker) -> dict[str, str]:
    """Return name -> host:port of the broker's listeners, from its own configuration."""
    text = (running.home.broker / "server.properties").read_text()
    line = next(line for line in text.splitlines() if line.startswith("listeners="))
    return dict(re.findall(r"(\w+)://([\d.:]+)", line))


@pytest.mark.parametrize("listener", ["CLIENT", "INTERNAL", "CONTROLLER"])
@pytest.mark.parametrize("login", ["none", "scram", "plain"])
def test_no_port_answers_without_its_own_login(secure: RunningBroker, listener: str, login: str) -> None:
    """Goal: no way round the principals, the controller's port included. Method: wrong kinds of login at each."""
    client: dict[str, Any] = {"bootstrap.servers": listeners(secure)[listener], "log_level": 0}
    if login != "none":
        mechanism = {"scram": "SCRAM-SHA-512", "plain": "PLAIN"}[login]
        client |= {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": mechanism, "sasl.username": "Broker"}
        client |= {"sasl.password": Principals(secure.home).password("admin")}
    with pytest.raises(KafkaException):
        AdminClient(client).list_topics(timeout=2.0)


def secrets_of(running: RunningBroker) -> dict[str, str]:
    """Return every password of the home with its name, the broker's own too."""
    files = Principals(running.home)
    internal = yaml.safe_load((running.home.broker / "internal.json").read_text())["password"]
    return {**{name: files.password(name) for name in files.names()}, "the broker": internal}


def test_passwords_lie_in_private_files_and_nowhere_else(secure: RunningBroker) -> None:
    """Goal: no log, data file or process list tells one. Method: search every file of the home and every process."""
    secrets = secrets_of(secure)
    assert len(set(secrets.values())) == len(PRINCIPALS) + 1
    holders: set[str] = set()
    for path in secure.home.root.rglob("*"):
        if path.is_file() and any(secret.encode() in path.read_bytes() for secret in secrets.values()):
            holders.add(str(path.relative_to(secure.home.root)))
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    private = {"broker/internal.json", "broker/server.properties"}
    assert holders == private | {f"principals/{name}" for name in PRINCIPALS}
    assert stat.S_IMODE(secure.home.broker.stat().st_mode) == 0o700
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        assert not any(secret in words for secret in secrets.values()), process.pid


def acls(running: RunningBroker) -> set[tuple[str, str]]:
    """Return (principal, resource) of every grant of the broker."""
    found = admin_of(running, "admin").describe_acls(_ALL_GRANTS).result(timeout=_SECONDS)
    return {(binding.principal, binding.name) for binding in found}


def test_up_brings_a_running_broker_to_the_files(secure: RunningBroker, tmp_path: Path) -> None:
    """Goal: a new reader gets in, a former one is out, what people granted stays. Method: change the files, start."""
    folder = shutil.copytree(shipped_topics_dir(), tmp_path / "topics")
    file = folder / "telemetry.yaml"
    file.write_text(file.read_text().replace("writers: [", "writers: [analyst, "))
    by_hand = AclBinding(
        ResourceType.TOPIC, "telemetry", ResourcePatternType.LITERAL, "User:guest", "*",
        AclOperation.READ, AclPermissionType.ALLOW,
    )  # fmt: skip
    admin_of(secure, "admin").create_acls([by_hand])[by_hand].result(timeout=_SECONDS)
    before = acls(secure)
    changed = secure.settings.model_copy(update={"topics_dir": folder})
    assert LocalBroker(secure.home, changed).start() == secure.bootstrap
    login = config(secure, "analyst", log_level=0)
    assert acls(secure) - before >= {("User:analyst", "telemetry"), ("User:analyst", "esper.analyst")}
    assert describes(secure, "analyst")["telemetry"]
    assert not describes(secure, "analyst")["decisions"]
    assert secure.local.start() == secure.bootstrap
    assert acls(secure) == before
    assert ("User:guest", "telemetry") in before
    assert "analyst" not in Principals(secure.home).names()
    del login["allow.auto.create.topics"]
    with pytest.raises(KafkaException):
        AdminClient(login).list_topics(timeout=2.0)


def test_a_lost_password_is_made_anew(secure: RunningBroker) -> None:
    """Goal: `up` heals a home that lost a file, admin's too. Method: delete two, start, log in."""
    for name in ("admin", "simic"):
        Principals(secure.home).remove(name)
        with pytest.raises(NotReadyError, match=f"principal {name} has no password"):
            Cluster.open(secure.settings, home=secure.home, principal=name)
    secure.local.start()
    for name in ("admin", "simic"):
        assert Cluster.open(secure.settings, home=secure.home, principal=name).principal == name
