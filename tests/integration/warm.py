"""Commands without the second and a half that imports take: each is forked from a process that has imported them.

A suite runs a command some thousand times. What is forked goes on as `python -m esper.cli` would from its first line:
with its own arguments, environment, folder and streams, and to the interpreter's own end. Members, servers, programs
of the documentation and commands under another interpreter's settings are started afresh (`Esper.spawn`).
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, TypedDict

from esper.core.clock import Deadline

REPOSITORY = Path(__file__).parents[2]
#: What commands import, and what they import when they come to it.
_MODULES = ("esper.cli._app", "esper.tolaria", "esper.kasmina", "esper.weatherlight", "esper.projection")
_MESSAGE_BYTES_MAX = 1 << 20


class _Message(TypedDict):
    arguments: list[str]
    environment: dict[str, str]


class WarmCommand:
    """A running command, with those of `subprocess.Popen`'s ways that ending it takes."""

    def __init__(self, connection: socket.socket, streams: Sequence[IO[str]]) -> None:
        self._connection = connection
        self._said = ["", ""]
        self._readers = [threading.Thread(target=self._read, args=each, daemon=True) for each in enumerate(streams)]
        for reader in self._readers:
            reader.start()
        self.pid = int(connection.recv(32))

    def _read(self, place: int, stream: IO[str]) -> None:
        with stream:
            self._said[place] = stream.read()

    def communicate(self, timeout: float) -> tuple[int, str, str]:
        """Return its exit code, negative for a signal, and what it wrote on stdout and stderr.

        Raises:
            TimeoutError: it takes longer; it was sent SIGTERM.
        """
        deadline = Deadline(timeout)
        with self._connection as connection:
            for reader in self._readers:
                reader.join(deadline.remaining_seconds)
                if reader.is_alive():
                    os.kill(self.pid, signal.SIGTERM)
                    raise TimeoutError
            return int(connection.recv(32)), self._said[0], self._said[1]


def start(arguments: Sequence[str], environment: Mapping[str, str]) -> WarmCommand:
    """Run `esper` with these arguments in exactly this environment, in the repository, with nothing on stdin."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(_server(os.getpid()))
    pipes = [os.pipe(), os.pipe()]
    message = json.dumps({"arguments": list(arguments), "environment": dict(environment)}).encode()
    assert len(message) < _MESSAGE_BYTES_MAX
    socket.send_fds(connection, [message], [write for _, write in pipes])
    for _, write in pipes:
        os.close(write)
    return WarmCommand(connection, [os.fdopen(read, encoding="utf-8") for read, _ in pipes])


@cache
def _server(_of: int) -> str:
    """Return the address of this process's server; it ends with this process."""
    address = str(Path(tempfile.mkdtemp(prefix="esper-warm-")) / "socket")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ESPER_")}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.warm", address],
        cwd=REPOSITORY,
        env=environment | {"NO_COLOR": "1", "COLUMNS": "200"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    atexit.register(_end, server)
    return address


def _end(server: subprocess.Popen[str]) -> None:
    """End a server by the end of its stdin, as the death of this process would."""
    server.communicate()


def _serve(address: str) -> None:
    """Fork a command for every connection; returns in the forked processes alone, ready to be that command."""
    for name in _MODULES:
        import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    _end_with_stdin(os.getpid(), Path(address))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return _attend(connection)
        connection.close()


def _end_with_stdin(server: int, address: Path) -> None:
    """Leave a process behind that ends the server when whoever started it is gone."""
    if os.fork() == 0:
        while os.read(0, 1):
            pass
        os.kill(server, signal.SIGKILL)
        shutil.rmtree(address.parent)
        os._exit(0)


def _attend(connection: socket.socket) -> None:
    """Fork the command, tell how it ended; returns in the command."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, streams, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES_MAX, 2)
    pid = os.fork()
    if pid == 0:
        connection.close()
        return _become(json.loads(message), *streams)
    for stream in streams:
        os.close(stream)
    connection.send(f"{pid:<32}".encode())
    _, status = os.waitpid(pid, 0)
    connection.send(f"{os.waitstatus_to_exitcode(status):<32}".encode())
    os._exit(0)


def _become(command: _Message, stdout: int, stderr: int) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, place in ((nothing, 0), (stdout, 1), (stderr, 2)):
        os.dup2(descriptor, place)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(command["environment"])
    sys.modules["__main__"].__package__ = "esper.cli"  # By which a command line finds its own name.
    sys.argv = [str(REPOSITORY / "esper" / "cli" / "__main__.py"), *command["arguments"]]


if __name__ == "__main__":
    _serve(sys.argv[1])
    import_module("esper.cli").main()
