"""Signers of their own, and which keys are believed where: pure, no file and no broker."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline import (
    HMAC_ALGORITHM,
    KEY_OPERATOR,
    SIGNATURE_BYTES,
    SIGNER_SIGNATURE_BYTES,
    SIGNER_TYPES,
    BadRecord,
    Envelope,
    KeyRing,
    KeySet,
    PrivateKey,
    PublicKey,
    Record,
    Revocations,
    Verdict,
    fingerprint,
    fold_key_event,
    full_name,
    mac_of,
    open_record,
)
from esper.leyline import messages as ly

SECRET, OTHER = b"s" * 32, b"o" * 40
TAMIYO, CLI = PrivateKey.generate(source="tamiyo"), PrivateKey.generate(source="cli")
GUARDED = KeyRing(KeySet.of(SECRET, private_keys=[TAMIYO, CLI], signers_required=True))
TYPE = full_name("AdaptationCommand")
COMMAND = Envelope("adaptation-commands", 3, "run-1", TYPE, b"value")
SIGNATURE = GUARDED.sign(COMMAND, source="tamiyo")


def record(*, source: str = "tamiyo", offset: int = 10, ring: KeyRing = GUARDED, signer: str = "tamiyo") -> Record:
    meta = ly.EventMeta(
        event_id="e" * 32, type=TYPE, source=source, subject="run-1", producer_id=f"{source}:1", sequence=1
    )
    value = ly.AdaptationCommand(meta=meta).SerializeToString()
    signature = ring.sign(COMMAND._replace(value=value), source=signer)
    return Record(COMMAND.topic, 3, offset, b"run-1", value, (("signature", signature), ("type", TYPE.encode())))


def reason_of(one: Record, ring: KeyRing = GUARDED) -> str:
    with pytest.raises(BadRecord) as caught:
        open_record(one, keyring=ring, allowed=lambda *_: True)
    return ly.DeadLetterReason.Name(caught.value.reason).removeprefix("DEAD_LETTER_REASON_")


def revoked(key_id: str, **places: int) -> ly.KeyRevoked:
    effective = [
        ly.PartitionOffset(topic=name.replace("_", "-"), partition=3, offset=at) for name, at in places.items()
    ]
    return ly.KeyRevoked(key_id=key_id, effective_from=effective)


def rotated(key_id: str, algorithm: ly.KeyAlgorithm = ly.KEY_ALGORITHM_HMAC_SHA256) -> ly.KeyRotated:
    return ly.KeyRotated(key_id=key_id, algorithm=algorithm)


def fold(*events: tuple[object, bytes], source: str = KEY_OPERATOR) -> Revocations:
    """Fold events, each with the signature that it came with."""
    state = Revocations()
    for event, signature in events:
        state = fold_key_event(state, ly.EventMeta(source=source), event, signature=signature)
    return state


def signed_by(secret: bytes) -> bytes:
    return KeyRing.from_secrets(secret).sign(COMMAND)


def test_a_signer_s_signature_verifies_where_it_was_made() -> None:
    """Goal: the public key suffices. Method: sign with the private key, verify in rings with and without the public."""
    assert len(SIGNATURE) == SIGNER_SIGNATURE_BYTES
    assert GUARDED.verify(COMMAND, SIGNATURE) is Verdict.GOOD
    public = PublicKey(TAMIYO.public.raw, source="tamiyo")
    assert KeyRing(KeySet.of(OTHER, public_keys=[public])).verify(COMMAND, SIGNATURE) is Verdict.GOOD
    assert KeyRing.from_secrets(SECRET).verify(COMMAND, SIGNATURE) is Verdict.UNKNOWN_KEY
    assert mac_of(SIGNATURE) == SIGNATURE[8:]


@pytest.mark.parametrize(
    "moved",
    [
        COMMAND._replace(topic="runs"),
        COMMAND._replace(partition=4),
        COMMAND._replace(key="run-2"),
        COMMAND._replace(type_name=full_name("KeyRevoked")),
        COMMAND._replace(value=b"valuf"),
    ],
)
def test_a_moved_command_no_longer_verifies(moved: Envelope) -> None:
    """Goal: the signature binds place, key and type. Method: move a signed record."""
    assert GUARDED.verify(moved, SIGNATURE) is Verdict.BAD


@given(position=st.integers(0, SIGNER_SIGNATURE_BYTES * 8 - 1))
def test_no_flipped_bit_of_a_signer_s_signature_passes(position: int) -> None:
    """Goal: signatures cannot be bent. Method: flip any single bit."""
    signature = bytearray(SIGNATURE)
    signature[position // 8] ^= 1 << position % 8
    assert GUARDED.verify(COMMAND, bytes(signature)) is not Verdict.GOOD


@pytest.mark.parametrize("length", range(2 * SIGNER_SIGNATURE_BYTES + 1))
def test_the_length_tells_the_algorithm(length: int) -> None:
    """Goal: no length is confused with another. Method: cut and extend both kinds of signature to every length."""
    for genuine, right in ((SIGNATURE, SIGNER_SIGNATURE_BYTES), (GUARDED.sign(COMMAND_FREE), SIGNATURE_BYTES)):
        envelope = COMMAND if right == SIGNER_SIGNATURE_BYTES else COMMAND_FREE
        verdict = GUARDED.verify(envelope, (genuine + bytes(200))[:length])
        assert (verdict is Verdict.GOOD) is (length == right)
        assert verdict is not Verdict.UNSIGNED


COMMAND_FREE = COMMAND._replace(type_name=full_name("SystemStatePacket"))


def test_guarded_types_need_their_signer() -> None:
    """Goal: the secret's holder forges nothing guarded. Method: sign as each other key could, guard on and off."""
    plain = KeyRing.from_secrets(SECRET)
    assert open_record(record(), keyring=GUARDED, allowed=lambda *_: True).source == "tamiyo"
    assert reason_of(record(ring=plain)) == "WRONG_SIGNER"
    assert reason_of(record(signer="cli")) == "WRONG_SIGNER"
    assert reason_of(record(source="cli")) == "WRONG_SIGNER"
    assert open_record(record(ring=plain), keyring=plain, allowed=lambda *_: True)
    unguarded = KeyRing(replace(GUARDED.keys, signers_required=False))
    assert open_record(record(), keyring=unguarded, allowed=lambda *_: True)
    assert reason_of(record(signer="cli"), unguarded) == "WRONG_SIGNER"


def test_who_has_no_key_cannot_sign_what_is_guarded() -> None:
    """Goal: never a MAC in a signer's stead. Method: sign as a source without a key, guarded and free types."""
    for source in ("", "tezzeret"):
        for name in SIGNER_TYPES:
            with pytest.raises(LookupError):
                GUARDED.sign(COMMAND._replace(type_name=name), source=source)
        assert len(GUARDED.sign(COMMAND_FREE, source=source)) == SIGNATURE_BYTES


def test_keys_travel_as_files_do() -> None:
    """Goal: a key read back is the same key. Method: PEM and raw bytes, and what is no key."""
    again = PrivateKey.from_pem(TAMIYO.to_pem(), source="tamiyo")
    assert again.public.raw == TAMIYO.public.raw
    assert again.sign(b"message") == TAMIYO.sign(b"message")
    assert TAMIYO.to_pem().decode() not in repr(TAMIYO)
    for raw in (b"", bytes(31), bytes(33)):
        with pytest.raises(ValueError, match="32 bytes"):
            PublicKey(raw, source="tamiyo")


@given(raw=st.binary(min_size=32, max_size=32), signature=st.binary(min_size=64, max_size=64))
def test_hostile_public_keys_verify_nothing(raw: bytes, signature: bytes) -> None:
    """Goal: bytes that are no point of the curve raise nothing but ValueError. Method: random keys and signatures."""
    with suppress(ValueError):  # A point of small order.
        assert not PublicKey(raw, source="x").verifies(signature, b"message")


def test_keys_that_anybody_can_sign_for_are_refused() -> None:
    """Goal: no points of small order. Method: solve the curve's equation for them, and try every encoding."""
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p
    # A point of order 8 doubles to one with y = 0, so x^2 = -y^2, and the curve says d y^4 + 2 y^2 - 1 = 0.
    squares = {(root - 1) * pow(d, -1, p) % p for root in square_roots((1 + d) % p, p)}
    eighth = {y for square in squares for y in square_roots(square, p)}
    assert len(eighth) == 2
    for y in {0, 1, p - 1, p, p + 1} | eighth:
        for sign in (0, 2**255):
            with pytest.raises(ValueError, match="small order"):
                PublicKey((y + sign).to_bytes(32, "little"), source="x")


def square_roots(square: int, p: int) -> set[int]:
    """Return the roots of a number modulo a prime that is 5 modulo 8."""
    root = pow(square, (p + 3) // 8, p)
    found = {r for r in (root, root * pow(2, (p - 1) // 4, p) % p) if r * r % p == square}
    return found | {p - r for r in found}


def test_a_revocation_holds_from_its_offsets() -> None:
    """Goal: before stays, from there on not, elsewhere from the first. Method: offsets around the boundary."""
    one = fingerprint(SECRET)
    ring = KeyRing.from_secrets(SECRET)
    ring.revocations = fold((revoked(one, adaptation_commands=10), signed_by(OTHER)))
    assert open_record(record(offset=9, ring=ring), keyring=ring, allowed=lambda *_: True)
    assert reason_of(record(offset=10, ring=ring), ring) == "REVOKED_KEY"
    assert reason_of(record(offset=11, ring=ring), ring) == "REVOKED_KEY"
    assert ring.revocations.covers(one, "a-later-topic", 0, 0)
    assert not ring.revocations.covers(fingerprint(OTHER), "adaptation-commands", 3, 11)
    forged = replace(record(offset=11, ring=ring), value=b"x")
    assert reason_of(forged, ring) == "BAD_SIGNATURE"


def test_the_first_revocation_counts() -> None:
    """Goal: nobody extends a revoked key. Method: revoke twice, later and earlier."""
    state = fold((revoked("k", runs=10), b""), (revoked("k", runs=20), b""), (revoked("k"), b""))
    assert state == fold((revoked("k", runs=10), b""))


def test_only_the_newest_key_speaks_about_keys() -> None:
    """Goal: a leaked older key takes nothing away. Method: fold its events after a rotation, and the newest key's."""
    old, new, third = (bytes([n]) * 32 for n in (1, 2, 3))
    first = (rotated(fingerprint(new)), signed_by(old))
    assert fold(first).newest_key_id == fingerprint(new)
    for attack in (revoked(fingerprint(new)), rotated(fingerprint(old)), rotated(fingerprint(third))):
        assert fold(first, (attack, signed_by(old))) == fold(first)
    second = (rotated(fingerprint(third)), signed_by(new))
    state = fold(first, second, (revoked(fingerprint(old), runs=5), signed_by(third)))
    assert state.newest_key_id == fingerprint(third)
    assert state.covers(fingerprint(old), "runs", 3, 5)
    assert fold(first, second, (revoked(fingerprint(old)), SIGNATURE)).boundaries  # the operator's own Ed25519 key


def test_only_the_operator_speaks_about_keys() -> None:
    """Goal: no member takes a key away. Method: events of other sources, other events, an Ed25519 rotation."""
    assert fold((revoked("k"), b""), (rotated("n"), b""), source="tolaria") == Revocations()
    assert fold((ly.LogCheckpoint(), b"")) == Revocations()
    assert fold((rotated("n", ly.KEY_ALGORITHM_ED25519), b"")) == Revocations()


def test_a_log_may_be_older_than_its_signers() -> None:
    """Goal: MACs suffice before a stated place and not after it. Method: offsets around it, guarded and free types."""
    plain = KeyRing.from_secrets(SECRET)
    ring = KeyRing(GUARDED.keys)
    assert reason_of(record(offset=0, ring=plain), ring) == "WRONG_SIGNER"
    ring.revocations = fold((revoked(HMAC_ALGORITHM, adaptation_commands=10), SIGNATURE))
    assert open_record(record(offset=9, ring=plain), keyring=ring, allowed=lambda *_: True)
    assert reason_of(record(offset=10, ring=plain), ring) == "WRONG_SIGNER"
    assert open_record(record(offset=10), keyring=ring, allowed=lambda *_: True)
    free = Record("system-state", 0, 99, b"k", b"v", (("signature", b""), ("type", b"t")))
    assert not ring.revocations.hmac_suffices(free.topic, free.partition, free.offset)


@given(
    events=st.lists(
        st.tuples(
            st.sampled_from([revoked("a", runs=3), revoked("b"), rotated("a"), rotated("b")]),
            st.sampled_from([signed_by(SECRET), signed_by(OTHER), SIGNATURE, b""]),
        ),
        max_size=8,
    )
)
def test_what_was_revoked_stays_so(events: list[tuple[object, bytes]]) -> None:
    """Goal: revocations only grow, and no order of events raises. Method: fold any history and each beginning of it."""
    before: set[str] = set()
    for length in range(len(events) + 1):
        now = set(fold(*events[:length]).boundaries)
        assert before <= now
        before = now


def test_rings_without_signers_load_no_cryptography() -> None:
    """Goal: who meets no signer stays light. Method: sign and verify in a fresh process, look at its modules."""
    script = (
        "import sys; from esper.leyline import *; ring = KeyRing.from_secrets(b's' * 32);"
        "e = Envelope('t', 0, 'k', 'n', b'v'); assert ring.verify(e, ring.sign(e)) is Verdict.GOOD;"
        "sys.exit('cryptography' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
