"""A relay before a real broker that refuses chosen requests to produce, as a partition does whose leader settles."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Collection, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

_PRODUCE: Final = 0
_NOT_LEADER: Final = 6
#: From this version on lengths are compact and structures end in tagged fields (KIP-482).
_FLEXIBLE: Final = 9
_NEXT_SECONDS: Final = 0.3


class Refusing:
    """Listens on loopback; the broker's own address in its answers becomes the relay's.

    The n-th requests to produce, counted from 1, never reach the broker and are answered NOT_LEADER_OR_FOLLOWER. The
    answer waits until the next request has come: a broker answers in order, a client sends on meanwhile.
    """

    def __init__(self, bootstrap: str, *, topic: str, partition: int, refused: Collection[int]) -> None:
        self._broker_port = int(bootstrap.rpartition(":")[2])
        self._topic, self._partition, self._refused = topic.encode(), partition, refused
        self._seen = 0
        self._closing = False
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def bootstrap(self) -> str:
        """Where clients connect."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def refusals(self) -> int:
        """How many requests were refused."""
        return sum(number <= self._seen for number in self._refused)

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _t: TracebackType | None
    ) -> None:
        self._closing = True
        for one in (self._listener, *self._sockets):
            # Only this wakes a thread that waits for it.
            _shut(one)
            one.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
                broker = socket.create_connection(("127.0.0.1", self._broker_port))
            except OSError:
                return
            self._sockets += [client, broker]
            line = _Line(client)
            for work in (self._up, self._down):
                thread = threading.Thread(target=work, args=(line, broker), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _up(self, line: _Line, broker: socket.socket) -> None:
        for request in _frames(line.client):
            key, version, correlation = struct.unpack(">hhi", request[:8])
            if key == _PRODUCE:
                self._seen += 1
                if self._seen in self._refused:
                    line.hold(self._refusal(version, correlation))
                    continue
                line.release()
            _send(broker, request)
        _shut(broker)

    def _down(self, line: _Line, broker: socket.socket) -> None:
        mine = int(self.bootstrap.rpartition(":")[2])
        for answer in _frames(broker):
            line.send(answer.replace(_address(self._broker_port), _address(mine)))
        _shut(line.client)

    def _refusal(self, version: int, correlation: int) -> bytes:
        # index, error, base offset, append time, log start
        place = struct.pack(">ihqqq", self._partition, _NOT_LEADER, -1, -1, -1)
        header = struct.pack(">i", correlation)
        if version < _FLEXIBLE:
            errors = struct.pack(">ih", 0, -1) if version == _FLEXIBLE - 1 else b""
            topic = struct.pack(">ih", 1, len(self._topic)) + self._topic + struct.pack(">i", 1)
            return header + topic + place + errors + struct.pack(">i", 0)
        # An array of one counts as 2, an empty one as 1, no string as 0; 0 tagged fields end each structure.
        topic = b"\x02" + bytes([len(self._topic) + 1]) + self._topic
        return header + b"\0" + topic + b"\x02" + place + b"\x01\0" + b"\0" + b"\0" + struct.pack(">i", 0) + b"\0"


class _Line:
    """The side of one connection that faces the client."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self._lock = threading.Lock()
        self._held: list[bytes] = []

    def hold(self, answer: bytes) -> None:
        """Keep an answer until `release`, or until a client that sends nothing more has waited for it."""
        self._held.append(answer)
        timer = threading.Timer(_NEXT_SECONDS, self.release)
        timer.daemon = True
        timer.start()

    def release(self) -> None:
        """Send what is held."""
        with self._lock:
            held, self._held = self._held, []
            for answer in held:
                _send(self.client, answer)

    def send(self, answer: bytes) -> None:
        """Pass on what the broker says."""
        with self._lock:
            _send(self.client, answer)


def _address(port: int) -> bytes:
    return b"127.0.0.1" + struct.pack(">i", port)


def _frames(source: socket.socket) -> Iterator[bytes]:
    """Yield what comes, each without its length, until the connection ends."""
    try:
        with source.makefile("rb") as stream:
            while len(length := stream.read(4)) == 4:
                yield stream.read(struct.unpack(">i", length)[0])
    except (OSError, ValueError):
        return


def _send(target: socket.socket, frame: bytes) -> None:
    try:
        target.sendall(struct.pack(">i", len(frame)) + frame)
    except OSError:
        _shut(target)


def _shut(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
