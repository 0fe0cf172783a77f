"""A log that was written again: only the log key may say so, and it says nothing about records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from esper.core._log_key import LogKey, open_log_key
from esper.core.ids import derive_id
from esper.leyline import SIGNATURE_HEADER, TYPE_HEADER, Envelope, Record
from esper.leyline import messages as ly
from esper.oona.proof import Bridge, Verdict, make_restored, verify_log
from esper.oona.proof._checkpoint import OPERATIONS
from esper.oona.proof._writer import CheckpointState, read_checkpoints
from tests.oona.proof.recorded import Recorded

NEW = "new-"


def renamed(recorded: Recorded) -> Recorded:
    """Return the log as another cluster's topics hold it."""
    log = recorded.log
    ids = {place[0]: NEW + bounds.topic_id for place, bounds in log.bounds().items()}
    return replace(recorded, log=replace(log, topic_ids=ids))


def with_statement(recorded: Recorded, key: LogKey, *, shorter: int = 0) -> Recorded:
    """Append a statement that every topic goes on where the old one ended, or `shorter` records before."""
    bounds = recorded.log.bounds()
    message = make_restored(
        key,
        seal=1,
        seal_digest=bytes(32),
        cluster_id=recorded.cluster_id,
        new_cluster_id="another",
        records=1,
        bridges={
            place: Bridge(one.topic_id.removeprefix(NEW), one.topic_id, one.low, max(one.low, one.high - shorter))
            for place, one in bounds.items()
        },
    )
    meta = message.meta
    meta.event_id, meta.type, meta.subject = derive_id("restored"), message.DESCRIPTOR.full_name, "log"
    meta.source, meta.producer_id, meta.sequence, meta.schema_version = "projection", "projection:1", 1, 1
    meta.time.FromMilliseconds(1)
    value = message.SerializeToString()
    signature = recorded.keyring.sign(Envelope(*OPERATIONS, "log", meta.type, value))
    headers = ((SIGNATURE_HEADER, signature), (TYPE_HEADER, meta.type.encode()))
    record = Record(*OPERATIONS, bounds[OPERATIONS].high, b"log", value, headers, 2)
    partitions = {**recorded.log.partitions, OPERATIONS: [*recorded.log.partitions[OPERATIONS], record]}
    ends = {place: span for place, span in recorded.log.ends.items() if place != OPERATIONS}
    return replace(recorded, log=replace(recorded.log, partitions=partitions, ends=ends))


def judged(recorded: Recorded) -> Verdict:
    """Return what is proved of a log."""
    return verify_log(recorded.log, public_key=recorded.public_key, judge=recorded.judge)


def kinds(verdict: Verdict) -> set[str]:
    """Return what is wrong."""
    return {one.kind.value for one in verdict.bad}


def test_a_statement_of_the_log_key_is_the_bridge(recorded: Recorded) -> None:
    """Goal: a restored log is proved by its old checkpoints. Method: rename all topics, with and without statement."""
    before = judged(recorded)
    assert before.ok
    assert kinds(judged(renamed(recorded))) == {"replaced"}
    verdict = judged(with_statement(renamed(recorded), recorded.key))
    assert verdict.ok, verdict.bad
    assert (verdict.restores, verdict.covered) == (1, before.covered)
    assert any("restores" in limit for limit in verdict.not_claimed)


def test_a_statement_of_another_key_is_none(recorded: Recorded, tmp_path: Path) -> None:
    """Goal: the holder of a signing secret cannot swap a topic. Method: sign the statement with a stranger's key."""
    verdict = judged(with_statement(renamed(recorded), open_log_key(tmp_path)))
    assert kinds(verdict) == {"checkpoint", "replaced"}
    assert verdict.restores == 0


def test_a_statement_says_nothing_of_what_lies_behind_it(recorded: Recorded) -> None:
    """Goal: a bridge is as long as it says. Method: let it end before what checkpoints signed."""
    assert "replaced" in kinds(judged(with_statement(renamed(recorded), recorded.key, shorter=30)))


@pytest.mark.parametrize("change", ["value", "time", "lost"])
def test_a_statement_says_nothing_of_records(recorded: Recorded, change: str) -> None:
    """Goal: a restore that wrote something else is found. Method: change one record behind a sound statement."""
    restored = with_statement(renamed(recorded), recorded.key)
    others = {place: records for place, records in restored.log.partitions.items() if place != OPERATIONS}
    place = max(others, key=lambda one: len(others[one]))
    records = list(restored.log.partitions[place])
    if change == "lost":
        del records[5]
    elif change == "time":
        records[5] = replace_time(records[5])
    else:
        one = records[5]
        records[5] = Record(one.topic, one.partition, one.offset, one.key, b"other", one.headers, one.append_time_ms)
    verdict = judged(restored.with_log({**restored.log.partitions, place: records}))
    assert {(one.topic, one.partition) for one in verdict.bad} == {place}


def replace_time(one: Record) -> Record:
    """Return a record with another append time."""
    return Record(one.topic, one.partition, one.offset, one.key, one.value, one.headers, one.append_time_ms + 1)


def test_the_writer_of_checkpoints_goes_on(recorded: Recorded) -> None:
    """Goal: the next checkpoint continues the digests. Method: fold a renamed log, with and without statement."""
    fold, _ = read_checkpoints(renamed(recorded).log, recorded.public_key)
    refused = CheckpointState(fold, renamed(recorded).log.bounds()).refused
    assert refused
    assert all("deleted and made again" in problem for problem in refused.values())
    restored = with_statement(renamed(recorded), recorded.key)
    fold, _ = read_checkpoints(restored.log, recorded.public_key)
    assert CheckpointState(fold, restored.log.bounds()).refused == {}


def test_the_content_is_read_strictly(recorded: Recorded) -> None:
    """Goal: no statement without a seal. Method: sign one whose digest is short, and put it into the log."""
    restored = renamed(recorded)
    content = ly.LogRestoredContent(seal=1, seal_digest=b"short").SerializeToString()
    key = recorded.key
    broken = ly.LogRestored(
        content=content, signature=key.sign(b"esper-log-restored-v1", content), public_key=key.public_key
    )
    operations = restored.log.partitions[OPERATIONS]
    record = Record(
        *OPERATIONS,
        operations[-1].offset + 1,
        b"log",
        broken.SerializeToString(),
        ((TYPE_HEADER, b"esper.leyline.v1.LogRestored"),),
        2,
    )
    partitions = {**restored.log.partitions, OPERATIONS: [*operations, record]}
    verdict = judged(replace(restored, log=replace(restored.log, partitions=partitions, ends={})))
    assert any("names no seal" in one.detail for one in verdict.bad)
