"""Signatures of many records: what stands before their values is hashed once for all that share it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from hmac import compare_digest
from typing import TYPE_CHECKING, Final, NamedTuple

from esper.leyline.record_columns import RecordColumns
from esper.leyline.records import (
    SIGNATURE_HEADER,
    TYPE_HEADER,
    VALUE_BYTES_MAX,
    Authentic,
    BadRecord,
    Headers,
    Record,
    authenticate,
)
from esper.leyline.signing import KEY_ID_BYTES, SIGNATURE_BYTES, Envelope, KeyRing

if TYPE_CHECKING:
    from hashlib import _Hash

#: Partitions times keys times types that are remembered; beyond, all are forgotten and learnt again.
_KEPT_MAX: Final = 50_000
_COMMON_HEADERS: Final = (SIGNATURE_HEADER, TYPE_HEADER)
#: Topic, partition, key, type and key id: what records share that share everything signed before their values.
_Shared = tuple[str, int, bytes | None, bytes | None, bytes]


class _Kept(NamedTuple):
    finding: Finding
    key_id: str
    #: HMAC's two hashes (RFC 2104), the inner one after everything that is signed before the value.
    inner: _Hash
    outer: _Hash


@dataclass(eq=False, slots=True)
class Finding:
    """What was found of one record, or of all that share what stands here; each is itself alone, not its content.

    Where `record` is None the headers are the signature and the type, in this order, and nothing else.
    """

    topic: str
    partition: int
    #: Empty where bad, as the type is.
    key: str
    type_name: str
    record: Record | None = None
    bad: BadRecord | None = None

    def rebuilt(self, offset: int, value: bytes, signature: bytes, append_time_ms: int) -> Record:
        """Return a record that this was found of, whose own parts are given."""
        if self.record is not None:
            return self.record
        headers = ((SIGNATURE_HEADER, signature), (TYPE_HEADER, self.type_name.encode()))
        return Record(self.topic, self.partition, offset, self.key.encode(), value, headers, append_time_ms)


class Authenticator:
    """Gives what `authenticate` gives, in half its time; one thread at a time.

    A record is spared the long way only where one with the same topic, partition, key, type and signing key went it
    and was good. Whatever then does not fit goes the long way, which alone refuses.
    """

    def __init__(self, keyring: KeyRing) -> None:
        self._keyring = keyring
        self._keys = keyring.keys
        self._kept: dict[_Shared, _Kept] = {}

    def authenticate(self, record: Record) -> tuple[str, str, bytes, bytes]:
        """Return (key, type, signature, value); raises BadRecord as `authenticate`."""
        kept = self._fitting(record.topic, record.partition, record.key, record.value, record.headers)
        if kept is not None and not self._revoked(kept, record.offset):
            signature, value = record.headers[0][1], record.value
            assert signature is not None, "a signature that fits is there"
            assert value is not None, "a value that fits is there"
            return kept.finding.key, kept.finding.type_name, signature, value
        found = self._long_way(record)
        self._keep(record, found)
        return found

    def authenticate_all(self, records: RecordColumns) -> tuple[list[Finding], list[bytes]]:
        """Return what was found of each record, and its signature; a bad one's is empty. Raises nothing."""
        findings: list[Finding] = []
        signatures: list[bytes] = []
        fitting, revocations = self._fitting, bool(self._keyring.revocations)
        fields = (records.topic, records.partition, records.key, records.value, records.headers)
        for index, (topic, partition, key, value, headers) in enumerate(zip(*fields, strict=True)):
            kept = fitting(topic, partition, key, value, headers)
            if kept is None or (revocations and self._revoked(kept, records.offset[index])):
                finding, signature = self._found(records.record(index))
                findings.append(finding)
                signatures.append(signature)
            else:
                findings.append(kept[0])
                # Asked of `_fitting`, which the checker does not see; an assertion would cost each record.
                signatures.append(headers[0][1])  # type: ignore[arg-type]  # one that fits is there
        return findings, signatures

    def _found(self, record: Record) -> tuple[Finding, bytes]:
        topic, partition = record.topic, record.partition
        try:
            key, type_name, signature, _ = found = self._long_way(record)
        except BadRecord as bad:
            return Finding(topic, partition, "", "", record, bad), b""
        self._keep(record, found)
        return Finding(topic, partition, key, type_name, record), signature

    def _fitting(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
    ) -> _Kept | None:
        """Return what is kept of records like this one if its signature holds; None where the long way must tell."""
        if (
            not value
            or len(headers) != len(_COMMON_HEADERS)
            or len(value) > VALUE_BYTES_MAX
            or self._keyring.keys is not self._keys
        ):
            return None
        (first, signature), (second, raw_type) = headers
        if first != SIGNATURE_HEADER or second != TYPE_HEADER or not signature or len(signature) != SIGNATURE_BYTES:
            return None
        kept = self._kept.get((topic, partition, key, raw_type, signature[:KEY_ID_BYTES]))
        if kept is None:
            return None
        _, _, inner, outer = kept
        inner, outer = inner.copy(), outer.copy()
        inner.update(len(value).to_bytes(4, "big") + value)
        outer.update(inner.digest())
        return kept if compare_digest(outer.digest(), signature[KEY_ID_BYTES:]) else None

    def _revoked(self, kept: _Kept, offset: int) -> bool:
        finding = kept.finding
        return self._keyring.revocations.covers(kept.key_id, finding.topic, finding.partition, offset)

    def _long_way(self, record: Record) -> tuple[str, str, bytes, bytes]:
        if self._keyring.keys is not self._keys:
            self._keys = self._keyring.keys
            self._kept.clear()
        return authenticate(record, self._keyring)

    def _keep(self, record: Record, found: Authentic) -> None:
        key, type_name, signature, _ = found
        if self._keyring.keys is not self._keys or len(signature) != SIGNATURE_BYTES:
            return  # The ring met this key only now; it is kept from the next record on. Ed25519 has no halves.
        if tuple(name for name, _ in record.headers) != _COMMON_HEADERS:
            return
        if len(self._kept) >= _KEPT_MAX:
            self._kept.clear()
        topic, partition, key_id = record.topic, record.partition, signature[:KEY_ID_BYTES]
        before = Envelope(topic, partition, key, type_name, b"").signed_bytes()[:-4]
        inner, outer = self._keys.macs[key_id].begun(before)
        shared = (topic, partition, record.key, record.headers[1][1], key_id)
        self._kept[shared] = _Kept(Finding(topic, partition, key, type_name), key_id.hex(), inner, outer)


assert hashlib.sha256().digest_size == SIGNATURE_BYTES - KEY_ID_BYTES, "a MAC is one SHA-256"
