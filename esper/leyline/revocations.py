"""Which keys are believed no more, and from which offsets on: a fold of the topic `operations`.

A revocation holds by offset, never by time: what stands before it stays believed for ever, so that a log
judged twice is judged alike. Whoever holds an older key must not be able to take the newest one away: under
HMAC only the newest key speaks about keys (as a DNSKEY set is rolled, RFC 6781), under Ed25519 only the
operator's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, TypeGuard

from esper.leyline.ed25519 import ED25519_SIGNATURE_BYTES
from esper.leyline.v1 import operations_pb2 as ops
from esper.leyline.v1.meta_pb2 import EventMeta

#: The source that may speak about keys.
KEY_OPERATOR: Final = "cli"
#: Stands for every HMAC key at once, over the types that need a signer of their own.
HMAC_ALGORITHM: Final = "hmac-sha256"
_KEY_ID_BYTES: Final = 8

#: (topic, partition) -> first offset that is believed no more; a partition that is missing: from its first.
Boundary = Mapping[tuple[str, int], int]


def _no_boundaries() -> Mapping[str, Boundary]:
    return MappingProxyType({})


@dataclass(frozen=True)
class Revocations:
    """What the events about keys add up to. Immutable."""

    #: Key id, 16 hexadecimal digits, or `HMAC_ALGORITHM` -> where it ends.
    boundaries: Mapping[str, Boundary] = field(default_factory=_no_boundaries)
    #: The HMAC key that the last believed rotation named; empty before any.
    newest_key_id: str = ""

    def __bool__(self) -> bool:
        return bool(self.boundaries)

    def covers(self, key_id: str, topic: str, partition: int, offset: int) -> bool:
        """Return whether what `key_id` signed at this place is believed no more."""
        boundary = self.boundaries.get(key_id)
        return boundary is not None and offset >= boundary.get((topic, partition), 0)

    def hmac_suffices(self, topic: str, partition: int, offset: int) -> bool:
        """Return whether a record that needs a signer stands before signers were asked for."""
        boundary = self.boundaries.get(HMAC_ALGORITHM)
        return boundary is not None and offset < boundary.get((topic, partition), 0)


def fold_key_event(state: Revocations, meta: EventMeta, event: object, *, signature: bytes) -> Revocations:
    """Return `state` after an authentic event of `operations`; events that may not speak about keys change nothing.

    A key that was revoked stays revoked from where it was first.
    """
    if not speaks_about_keys(event, meta=meta, state=state, signature=signature):
        return state
    if isinstance(event, ops.KeyRotated):
        return _rotated(state, event)
    if event.key_id in state.boundaries:
        return state
    boundary = {(place.topic, place.partition): place.offset for place in event.effective_from}
    boundaries = {**state.boundaries, event.key_id: MappingProxyType(boundary)}
    return replace(state, boundaries=MappingProxyType(boundaries))


def speaks_about_keys(
    event: object, *, meta: EventMeta, state: Revocations, signature: bytes
) -> TypeGuard[ops.KeyRotated | ops.KeyRevoked]:
    """Return whether an authentic event says something about keys that counts after `state`."""
    if meta.source != KEY_OPERATOR or not isinstance(event, ops.KeyRotated | ops.KeyRevoked):
        return False
    return _has_authority(state, signature)


def _has_authority(state: Revocations, signature: bytes) -> bool:
    if len(signature) == _KEY_ID_BYTES + ED25519_SIGNATURE_BYTES:
        return True  # The operator's own key, or the record would not have been opened.
    return state.newest_key_id in ("", signature[:_KEY_ID_BYTES].hex())


def _rotated(state: Revocations, event: ops.KeyRotated) -> Revocations:
    if event.algorithm != ops.KEY_ALGORITHM_HMAC_SHA256:
        return state
    return replace(state, newest_key_id=event.key_id)
