"""How other processes find the projector of a home and talk to it: a file with port and token, and HTTP on loopback."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import pyarrow as pa

from esper.core.errors import Busy, EsperError, IntegrityError, NotReadyError, OperationFailed, UsageError
from esper.core.home import Home, ProcessStamp
from esper.core.rng import new_secret
from esper.oona import Position
from esper.projection.files._contents import Contents
from esper.projection.points._asof import Point, point_text
from esper.projection.points._resolve import Resolved
from esper.projection.records._ledger import Progress
from esper.projection.sql._parameters import pack

HOST: Final = "127.0.0.1"
#: What a caller waits beyond the time that a query may take by itself.
_SLACK_SECONDS: Final = 15.0
#: Hashing a projection takes about 10 s for a million rows; an adoption waits for one commit.
_CONTROL_SECONDS: Final = 600.0
#: Errors that travel by name; any other becomes OperationFailed.
_KINDS: Final[dict[str, type[EsperError]]] = {
    cls.__name__: cls for cls in (Busy, IntegrityError, NotReadyError, OperationFailed, UsageError)
}


@dataclass(frozen=True)
class Announcement:
    """What projector.json holds: where a projector listens, the token it asks for, and which process it is."""

    port: int
    token: str
    pid: int
    create_time: float


def announcement_path(home: Home) -> Path:
    """Return the file in which a home's projector says where it listens."""
    return home.root / "projector.json"


@contextmanager
def announced(home: Home, *, port: int, token: str) -> Iterator[None]:
    """Let other processes of this user find the projector for the time of the block."""
    stamp = ProcessStamp.of(os.getpid(), home.root)
    path = announcement_path(home)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    # The mode holds from the first byte on: the token lets its reader query.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(Announcement(port, token, stamp.pid, stamp.create_time)), file)
    temporary.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def new_token() -> str:
    """Return a fresh bearer token of 256 bits."""
    return new_secret()


def find_projector(home: Home) -> ProjectorClient | None:
    """Return a client of the home's projector, or None when none runs.

    Raises:
        NotReadyError: it is suspended (SIGSTOP), and would keep every caller waiting.
    """
    try:
        found = Announcement(**json.loads(announcement_path(home).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    stamp = ProcessStamp(pid=found.pid, create_time=found.create_time, home=str(home.root))
    process = stamp.process(home.root)
    if process is None:
        return None
    if process.status() == psutil.STATUS_STOPPED:
        raise NotReadyError(
            "the projector does not answer",
            cause=f"its process {found.pid} is suspended",
            next_step=f"Let it go on: kill -CONT {found.pid}",
        )
    return ProjectorClient(found)


class ProjectorGone(NotReadyError):
    """The projector ended while it was asked."""


class ProjectorClient:
    """Asks a projector; raises its errors as if they were raised here, and ProjectorGone when it does not answer."""

    def __init__(self, announcement: Announcement) -> None:
        self._port = announcement.port
        self._token = announcement.token

    def query(
        self, sql: str, parameters: Sequence[object] = (), *, offsets: str | None = None, seconds: float
    ) -> pa.Table:
        """Return what one reading statement gives, as of `offsets`; `seconds` is how long it may take at most."""
        request = {"sql": sql, "parameters": pack(parameters), "offsets": offsets, "seconds": seconds}
        body = self._post("/query", request, seconds=seconds + _SLACK_SECONDS)
        with pa.ipc.open_stream(body) as reader:
            return reader.read_all()

    def resolve(self, point: Point, *, sql: str | None = None, name: str | None = None) -> Resolved:
        """Return which offsets a point of the log is, for what `sql` reads or for one projection."""
        request = {"point": point_text(point), "sql": sql, "name": name}
        return Resolved.from_dict(json.loads(self._post("/resolve", request, seconds=_CONTROL_SECONDS)))

    def export(self, name: str, offsets: str) -> str:
        """Let it write one projection's state into a file of its folder; return the file's name."""
        request = {"name": name, "offsets": offsets}
        return str(json.loads(self._post("/export", request, seconds=_CONTROL_SECONDS + _SLACK_SECONDS))["file"])

    def contents(self, names: Iterable[str] | None = None) -> list[Contents]:
        """Return offsets and table hashes of its projections."""
        wanted = None if names is None else list(names)
        document = json.loads(self._post("/contents", {"names": wanted}, seconds=_CONTROL_SECONDS))
        return [Contents.from_dict(one) for one in document]

    def digests(self, name: str, table: str) -> pa.Table:
        """Return place and digest of every row of a table, as `read_digests` does."""
        body = self._post("/digests", {"name": name, "table": table}, seconds=_CONTROL_SECONDS)
        with pa.ipc.open_stream(body) as reader:
            return reader.read_all()

    def progress(self) -> dict[str, list[Progress]]:
        """Return how far each of its projections has read, by name."""
        document = json.loads(self._post("/progress", {}, seconds=_SLACK_SECONDS))
        return {name: [Progress(**one) for one in found] for name, found in document.items()}

    def reached(self, ends: Mapping[Position, int]) -> bool:
        """Return whether it has read and committed everything before `ends` in the partitions that it reads.

        Unlike offsets, which end with a record, this also passes what is no record: the marker of a transaction.
        """
        document = {"ends": [[topic, partition, end] for (topic, partition), end in ends.items()]}
        return json.loads(self._post("/reached", document, seconds=_CONTROL_SECONDS)) is True

    def adopt(self, name: str, version: str, file: str) -> dict[str, Any]:
        """Let it go on with a file of its folder that was built for a projection; return what `Switched` holds."""
        order = {"name": name, "version": version, "file": file}
        return self._switched(self._post("/adopt", order, seconds=_CONTROL_SECONDS))

    def roll_back(self, name: str) -> dict[str, Any]:
        """Let it go on with the file that is kept of a projection; return what `Switched` holds."""
        return self._switched(self._post("/rollback", {"name": name}, seconds=_CONTROL_SECONDS))

    def _switched(self, body: bytes) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(body)
        return document

    def _post(self, path: str, document: dict[str, Any], *, seconds: float) -> bytes:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=seconds)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        try:
            connection.request("POST", path, body=json.dumps(document), headers=headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ProjectorGone(
                "the projector does not answer",
                cause=repr(error),
                next_step="Try again; `esper status` shows whether it runs",
            ) from error
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise _error_of(body)
        return body


def error_document(error: EsperError) -> dict[str, str]:
    """Return an error as it travels."""
    kind = next((cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _KINDS), "OperationFailed")
    return {"kind": kind, "what": error.what, "cause": error.cause, "next_step": error.next_step}


def _error_of(body: bytes) -> EsperError:
    try:
        found = json.loads(body)
        return _KINDS[found["kind"]](found["what"], cause=found["cause"], next_step=found["next_step"])
    except (ValueError, KeyError, TypeError):
        return OperationFailed("the projector gave an answer that cannot be read", next_step="Restart it")
