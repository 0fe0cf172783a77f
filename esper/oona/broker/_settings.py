"""What the local broker is told: its properties, its logging, and the Java command line."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from esper.core.principals import ADMIN, MECHANISM
from esper.leyline import VALUE_BYTES_MAX

#: Room for keys, headers and the batch's own header around the largest value that Esper reads.
MESSAGE_BYTES_MAX = VALUE_BYTES_MAX + 1024 * 1024

#: As whom the broker talks to itself, and the starter to a broker that knows no principals yet. Not a name that
#: a principal may have, so that no topic file can ask for it.
INTERNAL_USER: Final = "Broker"
_INTERNAL_MECHANISM: Final = "PLAIN"
_LISTENERS: Final = ("CLIENT", "INTERNAL", "CONTROLLER")

#: Variables that Java needs. Everything else stays out: secrets above all, and options such as
#: JAVA_TOOL_OPTIONS that would make two machines differ.
_ENVIRONMENT = ("PATH", "HOME", "TZ", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class InternalLogin:
    """Where and by what a secure broker is told its principals; the password is made anew at each start."""

    port: int
    password: str = field(repr=False)

    def client(self) -> dict[str, str | int | float | bool]:
        """Return the librdkafka settings of a client on this listener."""
        return {
            "bootstrap.servers": f"127.0.0.1:{self.port}",
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": _INTERNAL_MECHANISM,
            "sasl.username": INTERNAL_USER,
            "sasl.password": self.password,
        }


def cluster_id(home_id: str) -> str:
    """Return the home's id as Kafka writes UUIDs: 16 bytes in URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(bytes.fromhex(home_id)).decode().rstrip("=")


def server_properties(*, port: int, controller_port: int, data: Path, internal: InternalLogin | None = None) -> str:
    """Return server.properties of a single KRaft node that is broker and controller, on loopback only.

    With an internal login the broker is secure: every listener asks for a login, and nothing is allowed to
    anybody but by a grant. The text then holds a password: write it to a file that others cannot read.
    """
    listeners = (
        _plain_listeners(port, controller_port)
        if internal is None
        else _secure_listeners(port, controller_port, internal)
    )
    properties = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        **listeners,
        "log.dirs": _escaped(data),
        # A killed broker's session must end before its successor may serve: 4.6 s instead of 13.4 s.
        "broker.session.timeout.ms": "1500",
        "broker.heartbeat.interval.ms": "500",
        # One node needs no records that only say that its controller lives: they took a third of an idle broker's time.
        "metadata.max.idle.interval.ms": "0",
        # One member never waits for others that might join: the first join takes 0.07 s instead of 3 s.
        "group.initial.rebalance.delay.ms": "0",
        "auto.create.topics.enable": "false",
        "log.message.timestamp.type": "LogAppendTime",
        "message.max.bytes": str(MESSAGE_BYTES_MAX),
        "replica.fetch.max.bytes": str(MESSAGE_BYTES_MAX),
        "log.retention.ms": "-1",
        "default.replication.factor": "1",
        "min.insync.replicas": "1",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "offsets.retention.minutes": "525600",  # A home that rests for months still knows how far its groups came.
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "1",
        "num.network.threads": "2",
        "num.io.threads": "4",
        "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),  # The default of 128 MiB is a quarter of the heap.
    }
    return "".join(f"{name}={value}\n" for name, value in properties.items())


def _plain_listeners(port: int, controller_port: int) -> dict[str, str]:
    return {
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    }


def _secure_listeners(port: int, controller_port: int, internal: InternalLogin) -> dict[str, str]:
    """Return the listeners that ask for a login: clients by SCRAM, the broker's own connections by PLAIN.

    The controller's port obeys whoever may change the cluster, so that it must ask, too. It cannot ask by SCRAM:
    the credentials lie in the metadata that the broker only gets from it.
    """
    clients, inside = f"CLIENT://127.0.0.1:{port}", f"INTERNAL://127.0.0.1:{internal.port}"
    plain = (
        "org.apache.kafka.common.security.plain.PlainLoginModule required "
        f'username="{INTERNAL_USER}" password="{internal.password}" user_{INTERNAL_USER}="{internal.password}";'
    )
    return {
        "listeners": f"{clients},{inside},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"{clients},{inside}",
        "listener.security.protocol.map": ",".join(f"{name}:SASL_PLAINTEXT" for name in _LISTENERS),
        "inter.broker.listener.name": "INTERNAL",
        "sasl.enabled.mechanisms": f"{MECHANISM},{_INTERNAL_MECHANISM}",
        "sasl.mechanism.inter.broker.protocol": _INTERNAL_MECHANISM,
        "sasl.mechanism.controller.protocol": _INTERNAL_MECHANISM,
        "listener.name.client.sasl.enabled.mechanisms": MECHANISM,
        "listener.name.client.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
        "listener.name.internal.sasl.enabled.mechanisms": _INTERNAL_MECHANISM,
        "listener.name.internal.plain.sasl.jaas.config": plain,
        "listener.name.controller.sasl.enabled.mechanisms": _INTERNAL_MECHANISM,
        "listener.name.controller.plain.sasl.jaas.config": plain,
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "false",
        "super.users": f"User:{ADMIN};User:{INTERNAL_USER}",
    }


def log4j_properties(*, log_file: Path) -> str:
    """Return a Log4j 2 configuration that writes one rolling file of at most 3 x 5 MB."""
    return "\n".join(
        (
            "status=error",
            "appender.file.type=RollingFile",
            "appender.file.name=file",
            f"appender.file.fileName={_escaped(log_file)}",
            f"appender.file.filePattern={_escaped(log_file)}.%i",
            "appender.file.layout.type=PatternLayout",
            "appender.file.layout.pattern=%d{yyyy-MM-dd HH:mm:ss.SSS} %-5p %m (%c{1})%n",
            "appender.file.policies.type=Policies",
            "appender.file.policies.size.type=SizeBasedTriggeringPolicy",
            "appender.file.policies.size.size=5MB",
            "appender.file.strategy.type=DefaultRolloverStrategy",
            "appender.file.strategy.max=2",
            "rootLogger.level=info",
            "rootLogger.appenderRef.file.ref=file",
            "",
        )
    )


def java_command(
    *, java: Path, jars: Sequence[Path], temporary: Path, log4j: Path, marker: str, main: Sequence[str]
) -> list[str]:
    """Return the command line of one JVM; `marker` names the home in it, `main` is the class and its arguments."""
    return [
        str(java),
        marker,
        "-Xmx512m",
        "-XX:+UseSerialGC",  # Two cores and half a gigabyte: the parallel collectors' own threads cost more.
        # The quick compiler alone starts the broker with 2.8 instead of 4.4 CPU seconds and 30 MB less; records
        # per second are the same, for a local broker copies bytes, and p99 of an ack falls from 3 ms to 0.6 ms.
        "-XX:TieredStopAtLevel=1",
        "-XX:+ExitOnOutOfMemoryError",
        "-XX:-UsePerfData",
        f"-XX:ErrorFile={temporary / 'java-crash-%p.log'}",
        f"-Djava.io.tmpdir={temporary}",
        "-Djava.awt.headless=true",
        "-Djava.net.preferIPv4Stack=true",
        "--enable-native-access=ALL-UNNAMED",
        "--sun-misc-unsafe-memory-access=allow",  # Kafka 4.1 still calls it, and Java 25 warns of each class.
        f"-Dlog4j2.configurationFile={log4j}",
        "-cp",
        os.pathsep.join(map(str, jars)),
        *main,
    ]


def java_environment() -> dict[str, str]:
    """Return the few variables of this process that Java is given, and an encoding in which it can open any path."""
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return kept | {"LC_ALL": "C.UTF-8"}


def _escaped(path: Path) -> str:
    """Return a path as a Java property file spells it: ASCII, with UTF-16 escapes for the rest."""
    units = str(path).encode("utf-16-be")
    codes = [int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2)]
    return "".join(chr(code) if 0x20 <= code < 0x7F and chr(code) != "\\" else f"\\u{code:04x}" for code in codes)
