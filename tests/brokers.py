"""Which Kafka the tests run against: the local broker, or a container of an image that is at hand.

`ESPER_TEST_KAFKA_IMAGE=apache/kafka:4.1.1` names the image. It is used where testcontainers is installed, a Docker
engine answers and has the image; nothing is pulled. What is not so is said in the header of the test run, and
the local broker serves.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from esper.core.clock import Deadline
from esper.core.home import Home
from esper.oona.broker._readiness import plain_client, wait_until_ready
from esper.oona.broker._settings import cluster_id, server_properties

VARIABLE = "ESPER_TEST_KAFKA_IMAGE"
_PORT, _CONTROLLER_PORT = 9092, 9093
_START_SECONDS = 120.0


@dataclass(frozen=True)
class Choice:
    """What serves the session: a container of `image`, or, where it is None, the local broker."""

    image: str | None
    why: str

    def __str__(self) -> str:
        return f"kafka: container of {self.image}" if self.image else f"kafka: local broker ({self.why})"


def choose(image: str | None, lacking: Callable[[str], str | None]) -> Choice:
    """Return what serves; `lacking` says what a container of an image lacks here, or None when nothing."""
    if not image:
        return Choice(None, f"{VARIABLE} names no image")
    missing = lacking(image)
    return Choice(None, f"{VARIABLE} names {image}, but {missing}") if missing else Choice(image, "")


def lacking(image: str) -> str | None:
    """Return what is missing on this machine to run a container of `image`; None when all is there."""
    if importlib.util.find_spec("testcontainers") is None or importlib.util.find_spec("docker") is None:
        return "testcontainers is not installed"
    if not _engine_listens():
        return "no Docker engine answers"
    import docker
    from docker.errors import DockerException, ImageNotFound

    try:
        engine = docker.from_env()
    except DockerException:
        return "no Docker engine answers"
    try:
        engine.images.get(image)
    except ImageNotFound:
        return "the Docker engine does not have it"
    except DockerException as error:
        return f"the Docker engine refuses it ({type(error).__name__})"
    finally:
        engine.close()
    return None


def _engine_listens() -> bool:
    """Whether there is an engine to be asked: the client leaves a socket open where there is none."""
    host = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if not host.startswith("unix://"):
        return True  # Another machine's; only the client can tell.
    with socket.socket(socket.AF_UNIX) as engine:
        return engine.connect_ex(host.removeprefix("unix://")) == 0


def chosen() -> Choice:
    """Return what serves this session, by its environment."""
    return choose(os.environ.get(VARIABLE), lacking)


def environment(home: Home, port: int) -> dict[str, str]:
    """Return the variables that give the official image the local broker's own settings."""
    text = server_properties(port=_PORT, controller_port=_CONTROLLER_PORT, data=Path("/tmp/kafka"))  # noqa: S108 - the container's
    properties = dict(line.split("=", 1) for line in text.splitlines())
    properties["listeners"] = f"PLAINTEXT://0.0.0.0:{_PORT},CONTROLLER://127.0.0.1:{_CONTROLLER_PORT}"
    properties["advertised.listeners"] = f"PLAINTEXT://127.0.0.1:{port}"
    variables = {"KAFKA_" + name.upper().replace(".", "_"): value for name, value in properties.items()}
    return variables | {"CLUSTER_ID": cluster_id(home.home_id)}


@contextmanager
def container(image: str, home: Home) -> Iterator[str]:
    """Run Kafka in a container with `home`'s cluster id; yield its `host:port` when it is ready."""
    from testcontainers.core.container import DockerContainer

    port = _free_port()
    kafka = DockerContainer(image).with_bind_ports(_PORT, port)
    for name, value in environment(home, port).items():
        kafka = kafka.with_env(name, value)
    with kafka:
        ready = wait_until_ready(
            port, cluster_id(home.home_id), client=plain_client(port), deadline=Deadline(_START_SECONDS), check=_wait
        )
        assert ready, f"Kafka in a container of {image} was not ready within {_START_SECONDS:.0f} s"
        yield f"127.0.0.1:{port}"


def _wait() -> None:
    """Go on waiting: a container that ended answers no more often than one that starts."""


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port
