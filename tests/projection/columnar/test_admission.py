"""Tests that whole columns are judged as single records are: the same dispositions, reasons and rows."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from esper.leyline import (
    EVENT_TYPES,
    SIGNATURE_HEADER,
    TYPE_HEADER,
    Authenticator,
    BadRecord,
    Envelope,
    KeyRing,
    KeySet,
    PrivateKey,
    Record,
    RecordColumns,
    authenticate,
    open_record,
)
from esper.leyline import messages as ly
from esper.projection.columnar import ArrowDecoder, Batch
from esper.projection.intake._admission import Admission
from esper.projection.records._decoder import ProtobufDecoder
from tests.projection.log import SECRET, TOPICS, Log, admitted, finish, one_run

#: A projection that takes everything but the compile jobs.
_WANTED = {name for name in EVENT_TYPES if "Compile" not in name}
_OLD = b"an older secret of tests, still good for reading"


def _hostile(rng: random.Random, log: Log) -> Record:
    """Return a record that lies in one of many ways, or not at all; some lies are signed."""
    good = log.sign(ly.TrainingRunFailed(run_id="run-x", reason=f"{rng.random()}"), key="run-x")
    assert good.value is not None
    message = ly.TrainingRunFailed.FromString(good.value)
    meta = message.meta
    match rng.randrange(16):
        case 0:
            return replace(good, headers=good.headers[1:])
        case 1:
            return replace(good, headers=(*good.headers, good.headers[0]))
        case 2:
            return replace(good, headers=good.headers[::-1])
        case 3:
            return replace(good, value=good.value[:-1] + bytes([good.value[-1] ^ 1]))
        case 4:
            return replace(good, value=None)
        case 5:
            return replace(good, key=rng.choice((None, b"", b"\xff", b"run-y")))
        case 6:
            return replace(good, partition=(good.partition + 1) % 8)
        case 7:
            meta.source = rng.choice(("tamiyo", "", "nobody"))
        case 8:
            meta.subject = "run-y"
        case 9:
            meta.event_id = rng.choice(("", "short", "Ω" * 32, meta.event_id + "0"))
        case 10:
            meta.time.FromSeconds(2_000_000_000)
        case 11:
            meta.time.seconds = rng.choice((2**60, -(2**60)))
        case 12:
            meta.ClearField(rng.choice(("producer_id", "sequence", "time", "type")))
        case 13:
            message.ClearField("meta")
        case 14:
            return _signed(log, good, message.SerializeToString(), kind="esper.leyline.v1.Unheard")
        case 15:
            return good
    return _signed(log, good, message.SerializeToString())


def _signed(log: Log, good: Record, value: bytes, kind: str = "esper.leyline.v1.TrainingRunFailed") -> Record:
    signature = log.keyring.sign(Envelope(good.topic, good.partition, "run-x", kind, value), source="tamiyo")
    return replace(good, value=value, headers=((SIGNATURE_HEADER, signature), (TYPE_HEADER, kind.encode())))


def _log(seed: int, keyring: KeyRing) -> list[Record]:
    """Return the records of two runs with hostile ones among them."""
    rng, log = random.Random(seed), Log(keyring=keyring)  # noqa: S311 - a seeded test
    one_run(log, "run-a")
    finish(log, "run-a")
    for _ in range(60):
        log.append_raw(_hostile(rng, log))
    log.append(ly.CompileStarted(kernel_id="k", attempt=1), key="k")
    one_run(log, "run-b")
    records = list(log.source.records)
    order = sorted(range(len(records)), key=lambda _: rng.random())
    return [records[index] for index in order]


def _reference(records: list[Record], keyring: KeyRing, wanted: set[str]) -> list[tuple[object, ...]]:
    """Judge records one by one, with no code of the columns."""
    judged: list[tuple[object, ...]] = []
    for record in records:
        try:
            meta = open_record(record, keyring=keyring, allowed=TOPICS.allowed)
        except BadRecord as bad:
            judged.append((record.topic, record.partition, record.offset, "bad", bad.reason))
            continue
        if meta.type in wanted and ProtobufDecoder().decode(meta.type, [record.value or b""]).bad:
            reason = ly.DEAD_LETTER_REASON_UNDECODABLE
            judged.append((record.topic, record.partition, record.offset, "bad", reason))
        else:
            attempt = getattr(_message(record, meta.type), "attempt", None) if meta.type in wanted else None
            judged.append(
                (
                    *(record.topic, record.partition, record.offset, meta.type, meta.event_id, attempt),
                    *(meta.producer_id, meta.sequence, meta.type in wanted),
                )
            )
    return judged


def _message(record: Record, kind: str) -> object:
    return EVENT_TYPES[kind].FromString(record.value or b"")


def _found(batch: Batch) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for index in range(len(batch)):
        one = batch.judged(index)
        place = (*one.place, one.record.offset)
        if one.bad is not None:
            found.append((*place, "bad", one.bad.reason))
        else:
            found.append(
                (*place, one.type_name, one.event_id, one.attempt, one.producer_id, one.sequence, one.row is not None)
            )
    return found


def _keyring(*, signers: bool) -> KeyRing:
    keys = [PrivateKey.generate(source=source) for source in ("tamiyo", "urza")] if signers else []
    return KeyRing(KeySet.of(SECRET, [_OLD], private_keys=keys, signers_required=signers))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), signers=st.booleans())
def test_columns_judge_as_single_records_are_judged(seed: int, signers: bool) -> None:
    """Good and hostile records in any order: dispositions, reasons and ids equal `open_record`'s; rows find theirs."""
    keyring = _keyring(signers=signers)
    records = _log(seed, keyring)
    admission = Admission(keyring=keyring, allowed=TOPICS.allowed, wanted=_WANTED, decoder=ArrowDecoder())
    batch = admitted(admission, records)
    assert _found(batch) == _reference(records, keyring, _WANTED)
    for index in range(len(batch)):
        one = batch.judged(index)
        if one.row is not None:
            row = batch.rows[one.type_name].slice(one.row, 1).to_pylist()[0]
            assert (row["topic_partition"], row["record_offset"]) == (one.record.partition, one.record.offset)
            assert row["meta"]["event_id"] == one.event_id


def _verdict(record: Record, check: object) -> object:
    try:
        return check(record)  # type: ignore[operator]
    except BadRecord as bad:
        return (bad.reason, bad.detail)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_remembered_signatures_refuse_what_the_long_way_refuses(seed: int) -> None:
    """Every record twice, keys exchanged and revoked between: the short way gives and refuses exactly the same."""
    keyring = KeyRing.from_secrets(SECRET, [_OLD])
    records = _log(seed, keyring)
    authenticator = Authenticator(keyring)
    for _ in range(2):
        for record in records:
            assert _verdict(record, authenticator.authenticate) == _verdict(
                record, lambda one: authenticate(one, keyring)
            )
    keyring.keys = KeySet.of(_OLD)
    for record in records:
        found = _verdict(record, authenticator.authenticate)
        assert found == _verdict(record, lambda one: authenticate(one, keyring))
        assert isinstance(found[0], int), "nothing signed with a key that is gone is believed"  # type: ignore[index]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_many_at_once_are_judged_as_one_by_one(seed: int) -> None:
    """Every record twice in columns: keys, types, signatures, reasons and records equal the long way's."""
    keyring = KeyRing.from_secrets(SECRET, [_OLD])
    records = _log(seed, keyring)
    authenticator = Authenticator(keyring)
    for _ in range(2):
        findings, signatures = authenticator.authenticate_all(RecordColumns.of(records))
        for record, finding, signature in zip(records, findings, signatures, strict=True):
            assert finding.rebuilt(record.offset, record.value or b"", signature, record.append_time_ms) == record
            found = (finding.key, finding.type_name, signature, record.value)
            bad = finding.bad and (finding.bad.reason, finding.bad.detail)
            assert (bad or found) == _verdict(record, lambda one: authenticate(one, keyring))


def test_a_revoked_key_is_refused_from_its_offset_on() -> None:
    """Revocations count for what is remembered too: believe before the offset, refuse from it on."""
    log = Log()
    for number in range(4):
        log.append(ly.TrainingRunFailed(run_id="run-x", reason=str(number)), key="run-x")
    records = log.source.records
    authenticator = Authenticator(log.keyring)
    for record in records:
        authenticator.authenticate(record)

    class Revoked:
        def __bool__(self) -> bool:
            return True

        def covers(self, key_id: str, topic: str, partition: int, offset: int) -> bool:
            return key_id == log.keyring.signing_key_id and offset >= 2

    log.keyring.revocations = Revoked()  # type: ignore[assignment]
    findings, _ = authenticator.authenticate_all(RecordColumns.of(records))
    assert [finding.bad is not None for finding in findings] == [False, False, True, True]
    verdicts = [_verdict(record, authenticator.authenticate) for record in records]
    assert [isinstance(one[0], str) for one in verdicts] == [True, True, False, False]  # type: ignore[index]
    assert verdicts[2][0] == ly.DEAD_LETTER_REASON_REVOKED_KEY  # type: ignore[index]


def test_a_batch_of_nothing_is_empty() -> None:
    """No records make an empty batch, not an error."""
    admission = Admission(
        keyring=KeyRing.from_secrets(SECRET), allowed=TOPICS.allowed, wanted=(), decoder=ArrowDecoder()
    )
    assert len(admitted(admission, [])) == 0
