"""The kinds of hostile records, made at random, each with the few reasons that it may be set aside for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from google.protobuf.timestamp_pb2 import Timestamp

from esper.core.ids import new_event_id
from esper.leyline import (
    CLOCK_SKEW_MS_MAX,
    EVENT_TYPES,
    SIGNATURE_BYTES,
    SIGNATURE_HEADER,
    SIGNER_SIGNATURE_BYTES,
    TYPE_HEADER,
    VALUE_BYTES_MAX,
    Record,
)
from esper.leyline.v1.meta_pb2 import AnyEvent, EventMeta
from tests.faults._hostile import Hostile, Scene
from tests.oona.hostile import HOSTILE, ahead, flipped, with_headers

#: Stands beside the contract's reasons: a record that was there before has no dead letter.
DEDUPLICATED = "DEDUPLICATED"
_KEY_ID_BYTES = 8
_YEAR_9999_SECONDS = 253_402_300_799
#: Between the largest value that is parsed and what the broker takes.
_HUGE_EXTRA_BYTES = 512 * 1024

Made = tuple[Record, str] | tuple[Record, frozenset[str]]
Maker = Callable[[Scene], Made | None]


def make(scene: Scene) -> Hostile:
    """Return a hostile record of a random kind."""
    while True:  # ends: most kinds fit every target
        kind = scene.rng.choice(list(_KINDS))
        made = _KINDS[kind](scene)
        if made is not None:
            record, reasons = made
            allowed = frozenset({reasons}) if isinstance(reasons, str) else reasons
            return Hostile(kind, replace(record, offset=-1, append_time_ms=0), allowed)


def make_huge(scene: Scene) -> Hostile:
    """Return a record that is larger than what is parsed, signed or not."""
    value = bytes(VALUE_BYTES_MAX + scene.rng.randint(1, _HUGE_EXTRA_BYTES))
    record = scene.target.signed(value=value)
    if scene.chance(0.5):
        record = with_headers(record, signature=None)
    return Hostile("huge", record, frozenset({"TOO_LARGE"}))


def make_raw(scene: Scene) -> Hostile:
    """Return a genuine record that is to get a header whose name is no text."""
    return Hostile("header name that is no text", scene.genuine, frozenset({"UNSIGNED"}), raw_header=True)


# Bits and bytes of a genuine record ---------------------------------------------------------------------------


def _turn(scene: Scene, content: bytes, times: int = 1) -> bytes:
    for place in scene.rng.sample(range(8 * len(content)), times):
        content = flipped(content, place // 8, place % 8)
    return content


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _bit_of_value(scene: Scene) -> Made:
    return replace(scene.genuine, value=_turn(scene, scene.value)), "BAD_SIGNATURE"


def _bits_of_value(scene: Scene) -> Made:
    return replace(scene.genuine, value=_turn(scene, scene.value, scene.rng.randint(2, 64))), "BAD_SIGNATURE"


def _bit_of_signature(scene: Scene) -> Made:
    genuine = scene.genuine.header(SIGNATURE_HEADER) or b""
    altered = _turn(scene, genuine)
    key_hit = altered[:_KEY_ID_BYTES] != genuine[:_KEY_ID_BYTES]
    return with_headers(scene.genuine, signature=altered), "UNKNOWN_KEY" if key_hit else "BAD_SIGNATURE"


def _bit_of_type(scene: Scene) -> Made:
    altered = _turn(scene, scene.genuine.header(TYPE_HEADER) or b"")
    return with_headers(scene.genuine, type=altered), "BAD_SIGNATURE" if _is_text(altered) else "INCONSISTENT"


def _bit_of_key(scene: Scene) -> Made:
    altered = _turn(scene, scene.genuine.key or b"")
    return replace(scene.genuine, key=altered), "BAD_SIGNATURE" if _is_text(altered) else "INCONSISTENT"


def _cut(scene: Scene, content: bytes) -> bytes:
    return content[: scene.rng.randrange(1, len(content))]


def _truncated(scene: Scene) -> Made:
    genuine = scene.genuine
    what = scene.rng.choice(["value", "value", "value", "signature", "type", "key"])
    if what == "value":
        return replace(genuine, value=_cut(scene, scene.value)), "BAD_SIGNATURE"
    if what == "key":
        return replace(genuine, key=_cut(scene, genuine.key or b"")), "BAD_SIGNATURE"
    return with_headers(genuine, **{what: _cut(scene, genuine.header(what) or b"")}), "BAD_SIGNATURE"


def _headers(scene: Scene) -> Made:
    genuine = scene.genuine
    signature, kind = genuine.headers
    choices: list[tuple[Sequence[tuple[str, bytes | None]], str]] = [
        ((), "UNSIGNED"),
        ((kind,), "UNSIGNED"),
        ((("Signature", signature[1]), kind), "UNSIGNED"),
        (((SIGNATURE_HEADER, None), kind), "UNSIGNED"),
        ((signature, kind, signature), "UNSIGNED"),
        (((SIGNATURE_HEADER, b""), kind), "BAD_SIGNATURE"),
        ((signature,), "INCONSISTENT"),
        ((signature, (TYPE_HEADER, None)), "INCONSISTENT"),
        ((signature, kind, kind), "INCONSISTENT"),
        ((signature, (TYPE_HEADER, b"")), "BAD_SIGNATURE"),
    ]
    headers, reason = scene.rng.choice(choices)
    return replace(genuine, headers=tuple(headers)), reason


def _random_bytes(scene: Scene) -> Made:
    rng, genuine = scene.rng, scene.genuine
    length = rng.choice([None, 0, rng.randrange(200), SIGNATURE_BYTES, SIGNER_SIGNATURE_BYTES])
    key = genuine.key or b""
    headers: tuple[tuple[str, bytes | None], ...] = ((TYPE_HEADER, genuine.header(TYPE_HEADER)),)
    if scene.chance(0.3):
        key = rng.randbytes(rng.randrange(1, 40))
    if length is not None:
        headers = (*headers, (SIGNATURE_HEADER, rng.randbytes(length)))
    record = replace(genuine, key=key, value=rng.randbytes(rng.randrange(1, 4_000)), headers=headers)
    if length is None:
        return record, "UNSIGNED"
    if not _is_text(key):
        return record, "INCONSISTENT"
    return record, "UNKNOWN_KEY" if length in (SIGNATURE_BYTES, SIGNER_SIGNATURE_BYTES) else "BAD_SIGNATURE"


# Genuine records in another place -----------------------------------------------------------------------------


def _other_topic(scene: Scene) -> Made:
    other = scene.rng.choice([one for one in scene.others if one.topic != scene.genuine.topic])
    return replace(other, topic=scene.genuine.topic, partition=scene.genuine.partition), "BAD_SIGNATURE"


def _other_partition(scene: Scene) -> Made | None:
    places = [place for place in range(scene.target.spec.partitions) if place != scene.genuine.partition]
    if not places:
        return None
    return replace(scene.genuine, partition=scene.rng.choice(places)), "BAD_SIGNATURE"


def _other_key(scene: Scene) -> Made:
    mine = scene.genuine
    other = scene.rng.choice([one for one in scene.others if one.topic == mine.topic and one.key != mine.key])
    return replace(mine, key=other.key), "BAD_SIGNATURE"


def _other_type(scene: Scene) -> Made:
    mine = (scene.genuine.header(TYPE_HEADER) or b"").decode()
    other = scene.rng.choice([name for name in sorted(EVENT_TYPES) if name != mine])
    return with_headers(scene.genuine, type=other.encode()), "BAD_SIGNATURE"


# Signed with a key that must not be believed -------------------------------------------------------------------


def _revoked_key(scene: Scene) -> Made:
    return scene.target.signed(keyring=scene.revoked), "REVOKED_KEY"


def _revoked_key_replayed(scene: Scene) -> Made:
    return scene.old, "REVOKED_KEY"


# Signed with the home's own key, by somebody who lies -------------------------------------------------------------


def _wrong_source(scene: Scene) -> Made:
    writers = scene.target.spec.writers
    everybody = {writer for spec in scene.target.fabric.topics for writer in spec.writers}
    source = scene.rng.choice([*sorted(everybody - set(writers)), "stranger", "", writers[0].upper()])
    return scene.target.signed(source=source), "NOT_ALLOWED"


def _contradiction(scene: Scene) -> Made:
    choices: list[dict[str, object]] = [
        {"subject": f"{scene.target.key}x"},
        {"subject": ""},
        {"type": scene.rng.choice([name for name in sorted(EVENT_TYPES) if name not in scene.target.spec.types])},
        {"type": ""},
        {"event_id": scene.rng.randbytes(8).hex()},
        {"event_id": ""},
        {"producer_id": ""},
        {"sequence": 0},
    ]
    return scene.target.signed(**scene.rng.choice(choices)), "INCONSISTENT"


def _future_time(scene: Scene) -> Made:
    seconds = scene.rng.choice([CLOCK_SKEW_MS_MAX / 1_000 + 120, 3_600, 86_400 * 365])
    time = Timestamp(seconds=_YEAR_9999_SECONDS) if scene.chance(0.2) else ahead(seconds * (1 + scene.rng.random()))
    return scene.target.signed(time=time), "FUTURE_TIME"


def _no_time(scene: Scene) -> Made:
    seconds = scene.rng.choice([_YEAR_9999_SECONDS + 1, 2**63 - 1, -(2**63), -62_135_596_801])
    times = [Timestamp(seconds=seconds), Timestamp(nanos=scene.rng.choice([-1, 1_000_000_000, 2**31 - 1]))]
    return scene.target.signed(time=scene.rng.choice(times)), "INCONSISTENT"


def _random_signed(scene: Scene) -> Made:
    value = scene.rng.randbytes(scene.rng.randrange(1, 2_000))
    return scene.target.signed(value=value), frozenset({"UNDECODABLE", "INCONSISTENT"})


def _same_id_other_payload(scene: Scene) -> Made:
    meta = scene.meta
    # Field 2,047, which no message has: another payload of the same event.
    value = AnyEvent(meta=meta).SerializeToString() + b"\xfa\x7f\x01x"
    return _signed_as(scene, meta, value), "CONFLICTING_DUPLICATE"


def _sequence_rolled_back(scene: Scene) -> Made:
    meta = scene.meta
    meta.event_id = new_event_id()
    meta.sequence = scene.rng.randint(1, meta.sequence)
    reasons = {"CONFLICTING_DUPLICATE", DEDUPLICATED}  # By whether the record of that sequence is remembered.
    return _signed_as(scene, meta, AnyEvent(meta=meta).SerializeToString()), frozenset(reasons)


def _cut_and_signed(scene: Scene) -> Made:
    # Cut between two fields it still is a message, but not the one that its event is.
    reasons = {"UNDECODABLE", "INCONSISTENT", "CONFLICTING_DUPLICATE"}
    return _signed_as(scene, scene.meta, _cut(scene, scene.value)), frozenset(reasons)


def _signed_as(scene: Scene, meta: EventMeta, value: bytes) -> Record:
    return scene.target.signed(type_name=meta.type, value=value)


# What was there before ------------------------------------------------------------------------------------------


def _copy(scene: Scene) -> Made:
    headers = scene.genuine.headers
    if scene.chance(0.3):  # Other headers lie outside the signature.
        headers = (*headers, ("traceparent", scene.rng.randbytes(30)), ("x", None))
    return replace(scene.genuine, headers=headers), DEDUPLICATED


def _copy_with_other_meta(scene: Scene) -> Made:
    meta, value = scene.meta, scene.value
    rest = value[len(AnyEvent(meta=meta).SerializeToString()) :]
    meta.correlation_id, meta.sequence = "another", meta.sequence + scene.rng.randint(0, 5)
    return _signed_as(scene, meta, AnyEvent(meta=meta).SerializeToString() + rest), DEDUPLICATED


_KINDS: dict[str, Maker] = {
    **{
        f"fixed: {name}": (lambda scene, make=make, reason=reason: (make(scene.target), reason))
        for name, (make, reason) in HOSTILE.items()
    },
    "bit of the value": _bit_of_value,
    "bits of the value": _bits_of_value,
    "bit of the signature": _bit_of_signature,
    "bit of the type": _bit_of_type,
    "bit of the key": _bit_of_key,
    "truncated": _truncated,
    "headers": _headers,
    "random bytes": _random_bytes,
    "other topic": _other_topic,
    "other partition": _other_partition,
    "other key": _other_key,
    "other type": _other_type,
    "revoked key": _revoked_key,
    "record of a revoked key again": _revoked_key_replayed,
    "wrong source": _wrong_source,
    "meta that contradicts": _contradiction,
    "future time": _future_time,
    "time that is none": _no_time,
    "random bytes, signed": _random_signed,
    "same event with another payload": _same_id_other_payload,
    "sequence rolled back": _sequence_rolled_back,
    "cut and signed": _cut_and_signed,
    "exact copy": _copy,
    "copy with another meta": _copy_with_other_meta,
}
