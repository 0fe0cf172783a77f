"""One record in Kafka's own bytes, for what no client library would write: a header whose name is no text.

Record batch v2 and Produce v3, as https://kafka.apache.org/protocol and the message format's page state them.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from esper.core.clock import SYSTEM_CLOCK
from esper.leyline import Record

RawHeaders = Sequence[tuple[bytes, bytes | None]]
_PRODUCE, _VERSION, _CORRELATION = 0, 3, 1
_TIMEOUT_SECONDS = 30.0


def append_raw(bootstrap: str, record: Record, headers: RawHeaders) -> Record:
    """Append `record` with `headers` in place of its own; return it with its offset and append time."""
    answer = _exchange(bootstrap, _request(record, _batch(_record(record, headers))))
    name_end = 4 + 4 + 2 + len(record.topic.encode())  # correlation id, topics, name
    _, _, error, offset, append_time_ms = struct.unpack_from(">iihqq", answer, name_end)
    assert error == 0, f"the broker refused it: error {error}"
    return replace(record, offset=offset, append_time_ms=append_time_ms)


def _record(record: Record, headers: RawHeaders) -> bytes:
    content = b"\0" + _varint(0) + _varint(0) + _field(record.key) + _field(record.value) + _varint(len(headers))
    content += b"".join(_field(name) + _field(value) for name, value in headers)
    return _varint(len(content)) + content


def _batch(content: bytes) -> bytes:
    now_ms = SYSTEM_CLOCK.now_ns() // 1_000_000
    body = struct.pack(">hiqqqhii", 0, 0, now_ms, now_ms, -1, -1, -1, 1) + content
    return struct.pack(">qiibI", 0, len(body) + 9, -1, 2, crc32c(body)) + body


def _request(record: Record, batch: bytes) -> bytes:
    header = struct.pack(">hhi", _PRODUCE, _VERSION, _CORRELATION) + _string("hostile")
    return (
        header
        + struct.pack(">hhii", -1, -1, 10_000, 1)  # no transaction, all replicas, 10 s, one topic
        + _string(record.topic)
        + struct.pack(">iii", 1, record.partition, len(batch))
        + batch
    )


def _exchange(bootstrap: str, request: bytes) -> bytes:
    host, port = bootstrap.split(",")[0].rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=_TIMEOUT_SECONDS) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        (length,) = struct.unpack(">i", _receive(connection, 4))
        return _receive(connection, length)


def _receive(connection: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        piece = connection.recv(length - len(received))
        assert piece, "the broker closed the connection: the request was malformed"
        received += piece
    return received


def _string(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


def _field(content: bytes | None) -> bytes:
    return _varint(-1) if content is None else _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Return a zigzag-encoded variable-length integer."""
    left = (number << 1) ^ (number >> 63)
    encoded = bytearray()
    while left > 0x7F:
        encoded.append(left & 0x7F | 0x80)
        left >>= 7
    encoded.append(left)
    return bytes(encoded)


def crc32c(content: bytes) -> int:
    """Return the CRC-32C (Castagnoli, RFC 3720, appendix B.4) of `content`."""
    value, table = 0xFFFFFFFF, _crc_table()
    for byte in content:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


@cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for number in range(256):
        value = number
        for _ in range(8):
            value = (value >> 1) ^ 0x82F63B78 if value & 1 else value >> 1
        table.append(value)
    return tuple(table)
