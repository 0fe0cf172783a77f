"""What the broker keeps in the home: its configuration files and its formatted storage."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from esper.core.errors import BrokerUnavailable, IntegrityError, SettingsError
from esper.core.home import Home
from esper.oona.broker._process import MAIN_CLASS
from esper.oona.broker._settings import (
    InternalLogin,
    cluster_id,
    java_command,
    java_environment,
    log4j_properties,
    server_properties,
)

#: Characters that the syntax of Kafka's, Log4j's or Java's configuration would read as something else in a path.
_UNUSABLE = frozenset(",:;$%#\\\n\r")
_LOG_LINES = 12


class Storage:
    """Prepares the folder `broker` of one home; methods raise OSError where it cannot be written."""

    def __init__(self, home: Home, *, java: Path, jars: Sequence[Path], marker: str) -> None:
        _check_path(home.root)
        self._home = home
        self._java, self._jars, self._marker = java, jars, marker

    def prepare(
        self, *, port: int, controller_port: int, seconds: float, internal: InternalLogin | None = None
    ) -> list[str]:
        """Write the configuration, format the storage where there is none, and return the broker's command line.

        With an internal login the broker will be a secure one, and no other user may look into its folder.

        Raises:
            BrokerUnavailable: the storage could not be formatted within `seconds`.
            IntegrityError: the storage is another home's.
        """
        folder = self._home.broker
        if internal is not None:
            folder.chmod(0o700)  # The log itself lies there: who can read the files needs to ask no broker.
        shutil.rmtree(folder / "tmp", ignore_errors=True)  # Holds native libraries that a killed broker unpacked.
        (folder / "tmp").mkdir()
        (folder / "log4j2.properties").write_text(log4j_properties(log_file=self._home.logs / "broker.log"))
        data = folder / "data"
        if not data.exists():
            self._format(data, port=port, controller_port=controller_port, seconds=seconds)
        self._check_owner(data)
        properties = folder / "server.properties"
        text = server_properties(port=port, controller_port=controller_port, data=data, internal=internal)
        _write_privately(properties, text)
        return self._command(MAIN_CLASS, str(properties))

    def _format(self, data: Path, *, port: int, controller_port: int, seconds: float) -> None:
        """Format a folder and rename it when whole, so that a crash leaves no half-made storage."""
        unfinished = data.with_name("data.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        properties = data.with_name("format.properties")
        properties.write_text(server_properties(port=port, controller_port=controller_port, data=unfinished))
        identity = f"--cluster-id={cluster_id(self._home.home_id)}"
        command = self._command("kafka.tools.StorageTool", "format", identity, "--config", str(properties))
        try:
            done = subprocess.run(  # noqa: S603 - every word of the command is ours
                command,
                env=java_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise start_failed(self._home, f"its storage was not formatted within {seconds:.0f} s", []) from error
        if done.returncode != 0:
            lines = done.stdout.decode(errors="replace").splitlines()
            raise start_failed(self._home, "its storage could not be formatted", lines)
        unfinished.rename(data)

    def _check_owner(self, data: Path) -> None:
        """Refuse storage that was made for another home: its log is signed with another key."""
        expected = cluster_id(self._home.home_id)
        found = _property(data / "meta.properties", "cluster.id")
        if found != expected:
            raise IntegrityError(
                f"the broker's storage {data} is not this home's",
                cause=f"it is of cluster {found or 'unknown'}, the home's is {expected}",
                next_step="Put home.json and key back from a copy, or move that folder away to begin an empty log",
            )

    def _command(self, *main: str) -> list[str]:
        folder = self._home.broker
        return java_command(
            java=self._java,
            jars=self._jars,
            temporary=folder / "tmp",
            log4j=folder / "log4j2.properties",
            marker=self._marker,
            main=main,
        )


def _write_privately(path: Path, text: str) -> None:
    """Write a file that nobody else may read, not even while it is written."""
    path.unlink(missing_ok=True)  # One that is there keeps its mode.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def start_failed(home: Home, why: str, lines: Sequence[str]) -> BrokerUnavailable:
    """Return the error of a start that failed, with the last of the log's lines as part of its cause."""
    shown = "".join(f"\n  {line}" for line in lines[-_LOG_LINES:])
    return BrokerUnavailable(
        f"the local broker of {home.root} did not start",
        cause=f"{why}; its last words:{shown}" if shown else why,
        next_step=f"The logs are in {home.logs}; `esper down` ends what may still run",
    )


def _property(path: Path, name: str) -> str | None:
    """Return one value of a Java property file; None where file or name is absent."""
    if not path.is_file():
        return None
    lines = (line.partition("=") for line in path.read_text(errors="replace").splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), None)


def _check_path(root: Path) -> None:
    found = sorted(_UNUSABLE.intersection(str(root)))
    if found:
        raise SettingsError(
            f"home {str(root)!r} cannot hold a local broker",
            cause=f"in a path, {' '.join(map(repr, found))} has a meaning of its own for Kafka",
            next_step="Set ESPER_HOME to a path of letters, digits, spaces, '.', '-' and '_'",
        )
