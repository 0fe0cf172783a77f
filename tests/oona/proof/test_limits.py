"""What proof does not claim, each limit shown; and what even a holder of the signing secret cannot do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from esper.leyline import Record
from esper.leyline import messages as ly
from esper.oona.proof import ListLog, Request, Verdict, verify_log
from tests.oona.proof.mutations import renumbered, resigned, signed_ends
from tests.oona.proof.recorded import Recorded

STATE = ("system-state", 0)
OPERATIONS = ("operations", 0)


def verified(recorded: Recorded, log: ListLog, request: Request | None = None) -> Verdict:
    """Return the verdict on a log."""
    return verify_log(log, public_key=recorded.public_key, judge=recorded.judge, request=request)


def with_records(log: ListLog, place: tuple[str, int], records: list[Record]) -> ListLog:
    """Return `log` with other records in one partition."""
    return replace(log, partitions={**log.partitions, place: records})


def without_last_checkpoints(log: ListLog, count: int) -> ListLog:
    """Return `log` as it was before its last checkpoints: the records that they cover are there, they are not."""
    return with_records(log, OPERATIONS, list(log.partitions[OPERATIONS])[:-count])


def rewritten(recorded: Recorded, index: int) -> Record:
    """Return a state packet whose loss was changed and which was signed again by a holder of the secret."""
    original = recorded.log.partitions[STATE][index]
    message = ly.SystemStatePacket.FromString(original.value or b"")
    message.validation_loss = 1e-9
    value = message.SerializeToString(deterministic=True)
    return resigned(original, recorded.keyring, partition=original.partition, value=value)


def test_recorded_log_is_proved(recorded: Recorded) -> None:
    """An honest log has no fault: verify what was recorded, and count what its checkpoints cover."""
    verdict = verified(recorded, recorded.log)
    assert verdict.ok, verdict.document()["first_bad"]
    # The last checkpoint cannot cover its own record.
    assert verdict.covered == verdict.records - 1
    assert verdict.checkpoints == verdict.last_number == len(recorded.log.partitions[OPERATIONS]) > 6


@pytest.mark.parametrize("index", [0, 17, 100])
def test_holder_of_the_secret_cannot_rewrite_what_is_covered(recorded: Recorded, index: int) -> None:
    """A checkpoint binds whoever signs records: change a packet, sign it again in its place, verify."""
    records = list(recorded.log.partitions[STATE])
    records[index] = rewritten(recorded, index)
    verdict = verified(recorded, with_records(recorded.log, STATE, records))
    first = verdict.bad[0]
    assert (first.topic, first.partition) == STATE
    assert first.proven_to <= first.offset <= index
    assert first.kind in ("foreign", "checkpoint")


def test_holder_of_the_secret_cannot_insert_into_what_is_covered(recorded: Recorded) -> None:
    """A new producer needs no link, but shifts what was signed: insert its first record, verify."""
    records = list(recorded.log.partitions[STATE])
    message = ly.SystemStatePacket.FromString(records[5].value or b"")
    message.meta.producer_id, message.meta.sequence, message.meta.previous_mac = "tolaria:0000", 1, b""
    value = message.SerializeToString(deterministic=True)
    foreign = resigned(records[5], recorded.keyring, partition=0, value=value)
    verdict = verified(recorded, with_records(recorded.log, STATE, renumbered([*records[:5], foreign, *records[5:]])))
    assert verdict.bad[0].kind == "checkpoint"
    assert verdict.bad[0].offset <= 5


def test_limit_whatever_lies_after_the_last_checkpoint(recorded: Recorded) -> None:
    """A cut at the end of a chain shows only against a checkpoint: cut, and alter append times, without one."""
    log = without_last_checkpoints(recorded.log, 2)
    end = signed_ends(log)[STATE][-1]
    records = list(log.partitions[STATE])
    assert len(records) > end, "the recording has records that only the last two checkpoints cover"
    later = replace(records[-1], append_time_ms=records[-1].append_time_ms + 86_400_000)
    for altered in (records[:end], [*records[:-1], later]):
        verdict = verified(recorded, with_records(log, STATE, altered))
        assert verdict.ok
        assert any("no checkpoint covers yet" in limit for limit in verdict.not_claimed)
    assert not verified(recorded, with_records(recorded.log, STATE, records[:end])).ok


def test_limit_a_log_cut_back_with_its_checkpoints(recorded: Recorded) -> None:
    """A whole log put back to an earlier state is an honest one of then: only the last number tells."""
    log = without_last_checkpoints(recorded.log, 3)
    ends = signed_ends(log)
    cut = {place: list(records)[: ends.get(place, [0])[-1]] for place, records in log.partitions.items()}
    cut[OPERATIONS] = list(log.partitions[OPERATIONS])
    verdict = verified(recorded, replace(log, partitions=cut))
    assert verdict.ok
    assert verdict.last_number == verified(recorded, recorded.log).last_number - 3
    assert any("number" in limit for limit in verdict.not_claimed)


def test_limit_a_false_statement_in_its_own_place(recorded: Recorded) -> None:
    """Signatures say who, not whether it is true: append a packet of a holder of the secret after the checkpoint."""
    records = list(recorded.log.partitions[STATE])
    false = rewritten(recorded, 0)
    verdict = verified(recorded, with_records(recorded.log, STATE, [*records, replace(false, offset=len(records))]))
    assert verdict.bad[0].kind in ("foreign", "duplicate"), "under a known chain it is found"
    message = ly.SystemStatePacket.FromString(records[0].value or b"")
    message.meta.producer_id = "tolaria:ffff"
    value = message.SerializeToString(deterministic=True)
    fresh = replace(resigned(records[0], recorded.keyring, partition=0, value=value), offset=len(records))
    assert verified(recorded, with_records(recorded.log, STATE, [*records, fresh])).ok


def test_limit_without_the_public_key(recorded: Recorded) -> None:
    """Who does not know the log key is told what was not looked at: verify without it."""
    verdict = verify_log(recorded.log, public_key=None, judge=recorded.judge)
    assert verdict.ok
    assert verdict.covered == 0
    assert "checkpoints were not looked at" in verdict.not_claimed[0]


def test_checkpoints_of_another_key_are_named(recorded: Recorded) -> None:
    """A checkpoint counts by the log key alone: verify with a stranger's public key."""
    verdict = verify_log(recorded.log, public_key=bytes(range(32)), judge=recorded.judge)
    assert (verdict.bad[0].topic, verdict.bad[0].offset, verdict.bad[0].kind) == ("operations", 0, "checkpoint")
    assert verdict.covered == 0


def test_replaced_topic_is_named(recorded: Recorded) -> None:
    """A topic made again under its name is another one: give it another id."""
    ids = {**recorded.log.topic_ids, "system-state": "another"}
    verdict = verified(recorded, replace(recorded.log, topic_ids=ids))
    assert next((one.topic, one.offset, one.kind) for one in verdict.bad) == ("system-state", 0, "replaced")


def test_old_telemetry_may_be_deleted(recorded: Recorded) -> None:
    """Age is no fault where the topic's file lets records expire: cut the head off, up to and between boundaries."""
    place = ("telemetry", 0)
    end = signed_ends(recorded.log)[place][0]
    for cut in (1, end, end + 1):
        log = with_records(recorded.log, place, list(recorded.log.partitions[place])[cut:])
        assert verified(recorded, log).ok
        altered = list(log.partitions[place])
        altered[-1] = replace(altered[-1], append_time_ms=altered[-1].append_time_ms + 1)
        assert verified(recorded, with_records(log, place, altered)).bad[0].kind == "checkpoint"


@pytest.mark.parametrize(("start", "end"), [(0, 10), (50, 60), (60, None), (None, 70), (10_000, None), (3, 4)])
def test_any_range_is_widened_to_what_is_signed(recorded: Recorded, start: int | None, end: int | None) -> None:
    """A range is proved with the checkpoints around it: verify ranges, then with a header changed inside."""
    request = Request("system-state", start, end)
    verdict = verified(recorded, recorded.log, request)
    assert verdict.ok, verdict.document()["first_bad"]
    assert verdict.covered == verdict.records
    records = list(recorded.log.partitions[STATE])
    inside = min(start or 0, len(records) - 1) if end is None else end - 1
    records[inside] = replace(records[inside], headers=(*records[inside].headers, ("x", b"y")))
    found = verified(recorded, with_records(recorded.log, STATE, records), request)
    assert found.ok == (start == 10_000), "only a range beyond the log's end does not hold its last record"


def test_producer_that_ended_is_held_to_its_last_link(recorded: Recorded) -> None:
    """`ProducerStarted` says where the life before ended: state a link that holds, and one that does not."""
    records = list(recorded.log.partitions[STATE])
    for offset, expected in ((9, None), (10, "foreign"), (len(records) + 5, "truncated")):
        log = with_records(
            recorded.log, OPERATIONS, [*recorded.log.partitions[OPERATIONS], _started(recorded, records[9], offset)]
        )
        verdict = verified(recorded, log)
        assert [one.kind for one in verdict.bad] == ([] if expected is None else [expected])


def test_no_source_accuses_another_of_a_lost_record(recorded: Recorded) -> None:
    """Goal: an honest record is not called foreign on a stranger's word. Method: nissa ends a life of tolaria."""
    records = list(recorded.log.partitions[STATE])
    said = _started(recorded, records[9], 10, source="nissa")
    log = with_records(recorded.log, OPERATIONS, [*recorded.log.partitions[OPERATIONS], said])
    assert verified(recorded, log).ok


def _started(recorded: Recorded, last: Record, offset: int, *, source: str = "tolaria") -> Record:
    """Return an authentic ProducerStarted that says that `last` stood at `offset`."""
    meta = ly.AnyEvent.FromString(last.value or b"").meta
    link = ly.ChainLink(
        topic=last.topic, partition=0, sequence=meta.sequence, offset=offset, mac=(last.header("signature") or b"")[8:]
    )
    message = ly.ProducerStarted(member="tolaria-0", predecessor_id=meta.producer_id, links=[link])
    message.meta.CopyFrom(meta)
    message.meta.type = "esper.leyline.v1.ProducerStarted"
    message.meta.source = source
    message.meta.producer_id, message.meta.sequence, message.meta.previous_mac = f"{source}:eeee", 1, b""
    position = len(recorded.log.partitions[OPERATIONS])
    pattern = Record("operations", 0, position, last.key, b"", (("type", message.meta.type.encode()),))
    return resigned(pattern, recorded.keyring, partition=0, value=message.SerializeToString(deterministic=True))
