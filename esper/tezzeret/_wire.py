"""What the forge and its compiler subprocess say to each other: a JSON header and parts of bytes, lengths first.

```
4 bytes   length of the header, big-endian
header    JSON object; "parts" lists the lengths of what follows
parts     bytes, one after the other
```

Nothing here can name code: the forge reads what a compiler sent as it reads a stranger's bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

HEADER_BYTES_MAX: Final = 1 << 20
#: Weights of the largest kernel in float64, and room for a compiled part.
PARTS_BYTES_MAX: Final = 1 << 28
_PARTS_MAX: Final = 16
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class Frame:
    """One message: its header without "parts", and the parts."""

    header: Mapping[str, object]
    parts: Sequence[bytes] = ()


class BadFrame(ValueError):
    """The bytes are no frame."""


def pack(frame: Frame) -> bytes:
    """Return the bytes of a frame."""
    header = json.dumps({**frame.header, "parts": [len(part) for part in frame.parts]}).encode()
    assert len(header) <= HEADER_BYTES_MAX, "a header holds figures and words, no data"
    return b"".join([_LENGTH.pack(len(header)), header, *frame.parts])


def unpack(content: bytes | bytearray) -> Frame | None:
    """Return the frame that `content` holds, None while some of it is missing.

    Raises:
        BadFrame: it can never become one, or more follows than belongs to it.
    """
    if len(content) < _LENGTH.size:
        return None
    start = _LENGTH.size + _header_length(bytes(content[: _LENGTH.size]))
    if len(content) < start:
        return None
    header, lengths = _parse_header(bytes(content[_LENGTH.size : start]))
    missing = start + sum(lengths) - len(content)
    if missing > 0:
        return None
    if missing < 0:
        raise BadFrame(f"{-missing} bytes too many")
    parts = []
    for length in lengths:
        parts.append(bytes(content[start : start + length]))
        start += length
    return Frame(header, parts)


def read_frame(file: BinaryIO) -> Frame | None:
    """Return the next frame of a blocking file, None at its end between two frames.

    Raises:
        BadFrame: what comes is no frame, or ends within one.
    """
    prefix = file.read(_LENGTH.size)
    if not prefix:
        return None
    header, lengths = _parse_header(_exactly(file, _header_length(prefix)))
    return Frame(header, [_exactly(file, length) for length in lengths])


def _exactly(file: BinaryIO, length: int) -> bytes:
    content = file.read(length)
    if len(content) != length:
        raise BadFrame(f"{len(content)} bytes where {length} were announced")
    return content


def _header_length(prefix: bytes) -> int:
    if len(prefix) != _LENGTH.size:
        raise BadFrame("an end within a length")
    length: int = _LENGTH.unpack(prefix)[0]
    if length > HEADER_BYTES_MAX:
        raise BadFrame(f"a header of {length} bytes")
    return length


def _parse_header(content: bytes) -> tuple[dict[str, object], list[int]]:
    try:
        header = json.loads(content)
    except ValueError as error:
        raise BadFrame(f"the header is no JSON: {error}") from error
    lengths = header.pop("parts", None) if isinstance(header, dict) else None
    if not isinstance(lengths, list) or len(lengths) > _PARTS_MAX:
        raise BadFrame("the header lists no parts")
    if not all(type(length) is int and length >= 0 for length in lengths) or sum(lengths) > PARTS_BYTES_MAX:
        raise BadFrame(f"parts of {str(lengths)[:200]} bytes")
    return header, lengths
