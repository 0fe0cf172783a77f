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
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from esper.core.clock import Deadline
from esper.core.home import Home
from esper.oona.broker._readiness import plain_client, wait_until_ready
from esper.oona.broker._settings import cluster_id, server_properties

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

VARIABLE = "ESPER_TEST_KAFKA_IMAGE"
_CONTROLLER_PORT = 9093
_START_SECONDS = 120.0
_LOG_CHARACTERS = 2_000


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
    from docker.errors import DockerException

    try:
        return None if _has(image) else "the Docker engine does not have it"
    except DockerException as error:
        return f"the Docker engine refuses it ({type(error).__name__})"


def _has(image: str) -> bool:
    """Whether the engine has `image`, so that nothing need be pulled; raises DockerException when it says neither."""
    import docker
    from docker.errors import ImageNotFound

    with closing(docker.from_env()) as engine:
        try:
            engine.images.get(image)
        except ImageNotFound:
            return False
    return True


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
    """Return the variables that give the official image the local broker's own settings.

    It listens on the port of the machine's side, for it calls itself by the address that it tells its clients.
    """
    text = server_properties(port=port, controller_port=_CONTROLLER_PORT, data=Path("/tmp/kafka"))  # noqa: S108 - the container's
    properties = dict(line.split("=", 1) for line in text.splitlines())
    properties["listeners"] = f"PLAINTEXT://0.0.0.0:{port},CONTROLLER://127.0.0.1:{_CONTROLLER_PORT}"
    variables = {"KAFKA_" + name.upper().replace(".", "_"): value for name, value in properties.items()}
    return variables | {"CLUSTER_ID": cluster_id(home.home_id)}


@contextmanager
def container(image: str, home: Home) -> Iterator[str]:
    """Run Kafka in a container with `home`'s cluster id; yield its `host:port` when it is ready."""
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.container import DockerContainer

    # The reaper, which takes containers away after a killed test run, is an image of its own.
    testcontainers_config.ryuk_disabled = not _has(testcontainers_config.ryuk_image)
    port = free_port()
    kafka = DockerContainer(image).with_envs(**environment(home, port))
    kafka.ports[str(port)] = ("127.0.0.1", port)  # `with_bind_ports` takes no address and listens on every one.
    with kafka:
        ready = wait_until_ready(
            port,
            cluster_id(home.home_id),
            client=plain_client(port),
            deadline=Deadline(_START_SECONDS),
            check=lambda: _assert_runs(kafka),
        )
        assert ready, f"Kafka in a container of {image} was not ready within {_START_SECONDS:.0f} s"
        yield f"127.0.0.1:{port}"


def _assert_runs(kafka: DockerContainer) -> None:
    """Fail with the container's last words when it ended: waiting for it is of no use any more."""
    kafka.reload()
    if kafka.status in ("exited", "dead"):
        pytest.fail(f"the container of {kafka.image} ended:\n" + b"".join(kafka.get_logs()).decode()[-_LOG_CHARACTERS:])


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port
