"""Objects with large buffers from one process to another: their bytes are copied into the socket and out, once each.

A `multiprocessing.Connection` allocates the rest of a message anew for each part that it reads, which for tens of
megabytes costs more than decoding them did. Like it, this pickles, and like there both ends are one program's own: a
pair of sockets that nobody else can reach. Nothing from the bus is ever unpickled.
"""

from __future__ import annotations

import pickle  # noqa: TID251 - between processes of our own, as multiprocessing itself does
import socket
import struct
from typing import Final

import numpy as np

#: How many buffers follow, the pickled object among them as the first; then the length of each.
_COUNT: Final = struct.Struct("!I")
_LENGTH: Final = struct.Struct("!Q")
_SOCKET_BYTES: Final = 1024 * 1024


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected ends, with room for a megabyte under way."""
    ours, theirs = socket.socketpair()
    for one in (ours, theirs):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
    return ours, theirs


def send(connection: socket.socket, item: object) -> None:
    """Send an object, buffers of Arrow and numpy as they lie in memory; raises OSError when the other end is gone."""
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps(item, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(content), *(buffer.raw() for buffer in buffers)]
    lengths = b"".join(_LENGTH.pack(part.nbytes) for part in parts)
    connection.sendall(_COUNT.pack(len(parts)) + lengths)
    for part in parts:
        connection.sendall(part)


def receive(connection: socket.socket) -> object:
    """Return the next object, whose buffers lie in one block; only for what a process of our own sends.

    Raises:
        EOFError: the other end is gone.
    """
    (count,) = _COUNT.unpack(_exactly(connection, _COUNT.size))
    lengths = [length for (length,) in _LENGTH.iter_unpack(_exactly(connection, count * _LENGTH.size))]
    block = _exactly(connection, sum(lengths))
    parts, begin = list[memoryview](), 0
    for length in lengths:
        parts.append(block[begin : begin + length])
        begin += length
    return pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301 - from our own process


def _exactly(connection: socket.socket, count: int) -> memoryview:
    block = np.empty(count, dtype=np.uint8).data
    left = block
    while left.nbytes:  # ends with the block, or with the other end
        received = connection.recv_into(left)
        if not received:
            raise EOFError("the other process is gone")
        left = left[received:]
    return block
