"""Signatures of many records: what stands before their values is hashed once for all that share it."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final, NamedTuple

from esper.leyline.records import SIGNATURE_HEADER, TYPE_HEADER, VALUE_BYTES_MAX, Record, authenticate
from esper.leyline.signing import KEY_ID_BYTES, SIGNATURE_BYTES, Envelope, KeyRing

if TYPE_CHECKING:
    from hashlib import _Hash

#: Partitions times keys times types that are remembered; beyond, all are forgotten and learnt again.
_KEPT_MAX: Final = 50_000
_COMMON_HEADERS: Final = (SIGNATURE_HEADER, TYPE_HEADER)


class _Kept(NamedTuple):
    key: str
    type_name: str
    key_id: str
    #: HMAC's two hashes (RFC 2104), the inner one after everything that is signed before the value.
    inner: _Hash
    outer: _Hash


class Authenticator:
    """Gives what `authenticate` gives, in half its time; one thread at a time.

    A record is spared the long way only where one with the same topic, partition, key, type and signing key went it
    and was good. Whatever then does not fit goes the long way, which alone refuses.
    """

    def __init__(self, keyring: KeyRing) -> None:
        self._keyring = keyring
        self._keys = keyring.keys
        self._kept: dict[tuple[str, int, bytes | None, bytes | None, bytes], _Kept] = {}

    def authenticate(self, record: Record) -> tuple[str, str, bytes, bytes]:
        """Return (key, type, signature, value); raises BadRecord as `authenticate`."""
        keyring, value, headers = self._keyring, record.value, record.headers
        if (
            not value
            or len(headers) != len(_COMMON_HEADERS)
            or len(value) > VALUE_BYTES_MAX
            or keyring.keys is not self._keys
        ):
            return self._long_way(record)
        (first, signature), (second, raw_type) = headers
        if first != SIGNATURE_HEADER or second != TYPE_HEADER or not signature or len(signature) != SIGNATURE_BYTES:
            return self._long_way(record)
        place = (record.topic, record.partition, record.key, raw_type, signature[:KEY_ID_BYTES])
        kept = self._kept.get(place)
        if kept is None:
            found = self._long_way(record)
            self._keep(place, found)
            return found
        inner, outer = kept.inner.copy(), kept.outer.copy()
        inner.update(len(value).to_bytes(4, "big") + value)
        outer.update(inner.digest())
        if not hmac.compare_digest(outer.digest(), signature[KEY_ID_BYTES:]):
            return self._long_way(record)
        if keyring.revocations and keyring.revocations.covers(kept.key_id, place[0], place[1], record.offset):
            return self._long_way(record)
        return kept.key, kept.type_name, signature, value

    def _long_way(self, record: Record) -> tuple[str, str, bytes, bytes]:
        if self._keyring.keys is not self._keys:
            self._keys = self._keyring.keys
            self._kept.clear()
        return authenticate(record, self._keyring)

    def _keep(
        self, place: tuple[str, int, bytes | None, bytes | None, bytes], found: tuple[str, str, bytes, bytes]
    ) -> None:
        if self._keyring.keys is not self._keys:
            return  # The ring met this key only now; it is kept from the next record on.
        if len(self._kept) >= _KEPT_MAX:
            self._kept.clear()
        topic, partition, _, _, key_id = place
        key, type_name, _, _ = found
        before = Envelope(topic, partition, key, type_name, b"").signed_bytes()[:-4]
        inner, outer = self._keys.macs[key_id].begun(before)
        self._kept[place] = _Kept(key, type_name, key_id.hex(), inner, outer)


assert hashlib.sha256().digest_size == SIGNATURE_BYTES - KEY_ID_BYTES, "a MAC is one SHA-256"
