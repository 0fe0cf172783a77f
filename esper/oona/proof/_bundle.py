"""The format of an audit bundle: one JSON object a line, sealed by the last one.

```
{"format": "esper-audit-bundle-v1", "cluster_id", "public_key", "subject": {"run_id"} or {"range"}}
{"checkpoint": content, "signature"}               the checkpoints between which the bundle's records lie
{"restored": content, "signature"}                 between them: from here on topics have the ids that it names
{"partition": {"topic", "partition", "topic_id", "start", "end"}}
{"record": {"offset", "key", "value", "headers", "append_time_ms"}}    a record that is shown, in full
{"hashes": [...]}                                  records in between that are not shown: their 32-byte hashes
{"searched": {"topic", "partition", "partitions", "topic_id", "end", "shown"}}    about a run: where it was looked for
{"not_searched": [topics]}
{"blob": sha256, "content"} or {"omitted": sha256, "bytes"}
{"seal": sha256 of every line before, "signature"}
```

Bytes are base64, digests hexadecimal. A record that is not shown is represented by its hash, which is all that the
rolling digest needs: a run can be shown to a stranger without the runs beside it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import IO, Any, Final

from esper.core._log_key import LogKey, signature_holds
from esper.leyline import Record

FORMAT: Final = "esper-audit-bundle-v1"
SEAL_DOMAIN: Final = b"esper-audit-bundle-v1"
#: Hashes of records that are not shown, on one line.
HASHES_PER_LINE: Final = 500
#: Larger blobs are named and left out: a line must fit into a reader's memory.
BLOB_BYTES_MAX: Final = 32 * 1024 * 1024
_LINE_BYTES_MAX: Final = 64 * 1024 * 1024


class BadBundle(Exception):
    """A line that is not of this format; the text says why."""


def encode(content: bytes | None) -> str | None:
    """Return bytes as a bundle holds them."""
    return None if content is None else base64.b64encode(content).decode()


def decode(text: object) -> bytes:
    """Return the bytes of a field that holds some; raises BadBundle."""
    if not isinstance(text, str):
        raise BadBundle("a field that holds bytes is no text")
    try:
        return base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadBundle("a field that holds bytes is not base64") from error


def record_object(record: Record) -> dict[str, Any]:
    """Return a record as a bundle holds it; its topic and partition stand in the section's first line."""
    return {
        "offset": record.offset,
        "key": encode(record.key),
        "value": encode(record.value),
        "headers": [[name, encode(content)] for name, content in record.headers],
        "append_time_ms": record.append_time_ms,
    }


def record_of(found: object, *, topic: str, partition: int) -> Record:
    """Return the record of a line; raises BadBundle."""
    try:
        assert isinstance(found, dict)
        return Record(
            topic=topic,
            partition=partition,
            offset=number(found["offset"]),
            key=_optional(found["key"]),
            value=_optional(found["value"]),
            headers=tuple((_text(name), _optional(content)) for name, content in found["headers"]),
            append_time_ms=number(found["append_time_ms"]),
        )
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise BadBundle("a record's line lacks a field, or one is malformed") from error


def number(found: object) -> int:
    """Return a number that fits into 63 bits; raises BadBundle."""
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < 2**63:
        raise BadBundle("a number is malformed")
    return found


def digest_of(found: object) -> bytes:
    """Return a SHA-256 given as 64 hexadecimal digits; raises BadBundle."""
    if not isinstance(found, str) or len(found) != 2 * hashlib.sha256().digest_size:
        raise BadBundle("a digest is malformed")
    try:
        return bytes.fromhex(found)
    except ValueError as error:
        raise BadBundle("a digest is malformed") from error


class BundleWriter:
    """Writes the lines of a bundle and seals them."""

    def __init__(self, file: IO[bytes], key: LogKey) -> None:
        self._file = file
        self._key = key
        self._hash = hashlib.sha256()
        self._hidden: list[str] = []

    def line(self, document: Mapping[str, object]) -> None:
        """Write one object."""
        self._flush_hidden()
        self._write(document)

    def hidden(self, hashed: bytes) -> None:
        """Write a record that is not shown, by its hash."""
        self._hidden.append(hashed.hex())
        if len(self._hidden) >= HASHES_PER_LINE:
            self._flush_hidden()

    def seal(self) -> None:
        """Write the last line, which makes whoever holds the log key answer for every byte before it."""
        self._flush_hidden()
        digest = self._hash.digest()
        seal = {"seal": digest.hex(), "signature": encode(self._key.sign(SEAL_DOMAIN, digest))}
        self._file.write(_dump(seal))

    def _flush_hidden(self) -> None:
        if self._hidden:
            self._write({"hashes": self._hidden})
            self._hidden = []

    def _write(self, document: Mapping[str, object]) -> None:
        content = _dump(document)
        self._hash.update(content)
        self._file.write(content)


class BundleReader:
    """Yields the objects of a bundle with their line numbers, one line in memory at a time, the seal left out."""

    def __init__(self, file: IO[bytes], public_key: bytes) -> None:
        self._file = file
        self._public_key = public_key
        #: What is wrong with the seal; known when all lines were read.
        self.seal_problem = "the bundle has no seal: its end is missing"
        #: Number of the last line.
        self.lines = 0

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any] | BadBundle]]:
        hashed = hashlib.sha256()
        sealed = False
        while content := self._file.readline(_LINE_BYTES_MAX):
            self.lines += 1
            if sealed:
                self.seal_problem = "something stands after the seal"
                return
            document = _parse(content)
            if isinstance(document, dict) and "seal" in document:
                self.seal_problem, sealed = self._judge_seal(content, document, hashed.digest()), True
                continue
            hashed.update(content)
            yield self.lines, document

    def _judge_seal(self, content: bytes, document: dict[str, Any], digest: bytes) -> str:
        try:
            stated, signature = digest_of(document["seal"]), decode(document["signature"])
        except (BadBundle, KeyError):
            return "the seal is malformed"
        if _dump(document) != content or set(document) != {"seal", "signature"}:
            return "the seal is not written as its exporter writes it"
        if stated != digest:
            return "what stands before the seal is not what was sealed"
        if not signature_holds(self._public_key, domain=SEAL_DOMAIN, content=digest, signature=signature):
            return "the seal was not made with the log key"
        return ""


def _dump(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def _parse(content: bytes) -> dict[str, Any] | BadBundle:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return BadBundle("the line is no JSON")
    return document if isinstance(document, dict) else BadBundle("the line is no JSON object")


def _optional(found: object) -> bytes | None:
    return None if found is None else decode(found)


def _text(found: object) -> str:
    if not isinstance(found, str):
        raise BadBundle("a name is no text")
    return found
