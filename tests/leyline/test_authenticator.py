"""The quick way to check signatures while the ring's keys change under it."""

from __future__ import annotations

from esper.leyline import Authenticator, Envelope, KeyRing, KeySet, Record, authenticate
from esper.leyline.records import SIGNATURE_HEADER, TYPE_HEADER
from esper.leyline.signing import Verdict

_OLD, _NEW = b"o" * 32, b"n" * 32
_TYPE = "esper.leyline.v1.TrainingRunFailed"


class _Following(KeyRing):
    """A ring that learns the new key when it first meets a record signed with it, as a home's ring does."""

    def verify(self, envelope: Envelope, signature: bytes | None) -> Verdict:
        verdict = super().verify(envelope, signature)
        if verdict is Verdict.UNKNOWN_KEY:
            self.keys = KeySet.of(_NEW, [_OLD])
            verdict = super().verify(envelope, signature)
        return verdict


def _signed(secret: bytes, offset: int) -> Record:
    value = f"value {offset}".encode()
    signature = KeyRing.from_secrets(secret).sign(Envelope("runs", 0, "run-x", _TYPE, value))
    headers = ((SIGNATURE_HEADER, signature), (TYPE_HEADER, _TYPE.encode()))
    return Record("runs", 0, offset, b"run-x", value, headers)


def test_a_key_that_the_ring_meets_first_in_a_record_is_believed_at_once() -> None:
    """Goal: a rotation stops nobody. Method: records of the old key, then of one that the ring learns by them."""
    keyring = _Following.from_secrets(_OLD)
    authenticator = Authenticator(keyring)
    records = [_signed(_OLD, 0), _signed(_OLD, 1), _signed(_NEW, 2), _signed(_NEW, 3), _signed(_OLD, 4)]
    found = [authenticator.authenticate(record) for record in records]
    assert found == [authenticate(record, keyring) for record in records]
    assert [value for _, _, _, value in found] == [record.value for record in records]
