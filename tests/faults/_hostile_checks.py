"""What must be true of everybody who read a log under attack."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import duckdb

from esper.oona import Fabric, build_housekeeper, list_dead_letters
from esper.oona.proof import verify_cluster
from esper.projection import catch_up
from esper.projection.definitions._folder import ProjectionFolder
from tests.faults._hostile_kinds import DEDUPLICATED
from tests.faults._hostile_log import Census, Handled, Judge, Place, await_that


def check_letters(census: Census, letters: Mapping[Place, Sequence[str]], seed: int) -> Counter[str]:
    """Each hostile record has exactly one letter with a reason of its kind, or is a copy; nothing else has one."""
    strangers = letters.keys() - census.hostile.keys()
    assert not strangers, f"seed {seed}: letters about genuine records: {sorted(strangers)[:5]}"
    wrong = []
    reasons: Counter[str] = Counter()
    for place, hostile in census.hostile.items():
        found = letters.get(place, [DEDUPLICATED])
        reasons[found[0]] += 1
        if len(found) != 1 or found[0] not in hostile.reasons:
            wrong.append((place, hostile.kind, found, sorted(hostile.reasons)))
    assert not wrong, f"seed {seed}: {len(wrong)} with another reason: {wrong[:5]}"
    return reasons


def check_judge(census: Census, judge: Judge, letters: Mapping[Place, Sequence[str]], seed: int) -> None:
    """It handled everything but the hostile, once, in order and without waiting; its counts add up."""
    places = [one.place for one in judge.handled]
    accepted = census.hostile.keys() & set(places)
    assert not accepted, f"seed {seed}: accepted {[(place, census.hostile[place].kind) for place in accepted][:5]}"
    assert len(set(places)) == len(places), f"seed {seed}: handled twice"
    assert set(places) == census.digests.keys() - census.hostile.keys(), f"seed {seed}: not all genuine were handled"
    assert all(one.passed == 0 for one in judge.handled), f"seed {seed}: something was made to wait"
    _check_order(census, judge.handled, seed)
    metrics = judge.consumer.metrics()
    assert metrics.read == len(census.digests), f"seed {seed}: {metrics}"
    assert metrics.read == metrics.handled + metrics.filtered + metrics.deduplicated + metrics.rejected
    assert metrics.rejected == len(letters) == sum(metrics.dead_lettered.values()), f"seed {seed}: {metrics}"
    assert metrics.deduplicated == len(census.hostile) - len(letters), f"seed {seed}: {metrics}"
    assert (metrics.parked_keys, metrics.parked_records, metrics.retried, metrics.breaker) == (0, 0, 0, "CLOSED")


def _check_order(census: Census, handled: Sequence[Handled], seed: int) -> None:
    """The genuine events of each key were handled in their order, and every partition in order of its offsets."""
    number = {one.event_id: index for index, one in enumerate(handled)}
    for (topic, key), event_ids in census.order.items():
        found = [number[event_id] for event_id in event_ids]
        assert found == sorted(found), f"seed {seed}: events of {topic} {key} were handled out of order"
    offsets: dict[tuple[str, int], list[int]] = defaultdict(list)
    for one in handled:
        offsets[one.place[:2]].append(one.place[2])
    assert all(found == sorted(found) for found in offsets.values()), f"seed {seed}"


def check_keys(fabric: Fabric, other: Fabric, revoked: str) -> None:
    """Nobody's word about keys was taken but the operator's, by those who followed live and by who reads it all."""
    with Fabric.open(fabric.settings, member="late") as late:
        for one in (fabric, other, late):
            assert one.keyring.revocations.boundaries.keys() == {revoked}
            assert one.keyring.revocations.newest_key_id == one.keyring.signing_key_id
        assert fabric.key_follower.next_offset == other.key_follower.next_offset == late.key_follower.next_offset


def check_others(fabric: Fabric, census: Census, letters: Mapping[Place, Sequence[str]], seed: int) -> None:
    with Judge(fabric.settings, "judge-1") as again:
        again.to_the_end()
        check_judge(census, again, letters, seed)
    _check_reader(fabric, census, letters, seed)
    rows = {(row.topic, row.partition, row.offset): row for row in list_dead_letters(fabric)}
    assert {place: [row.reason] for place, row in rows.items()} == letters, f"seed {seed}"
    _check_projections(fabric, census, letters, seed)
    _check_housekeeper(fabric, census, letters)
    _check_proof(fabric, census, seed)


def _check_reader(fabric: Fabric, census: Census, letters: Mapping[Place, Sequence[str]], seed: int) -> None:
    rejected: dict[Place, list[str]] = {}
    places = {place: 0 for spec in fabric.topics for place in fabric.topics.partitions(spec.name)}
    with fabric.reader(dict.fromkeys(places, "begin")) as reader:
        events = reader.read_to_end(
            600.0,
            on_reject=lambda record, bad: rejected.update(
                {(record.topic, record.partition, record.offset): [str(bad).partition(":")[0]]}
            ),
        )
        metrics = reader.metrics()
    named = {place: [reason[0].removeprefix("DEAD_LETTER_REASON_")] for place, reason in rejected.items()}
    assert named == letters, f"seed {seed}"
    believed = {(event.topic, event.partition, event.offset) for event in events}
    assert not believed & census.hostile.keys(), f"seed {seed}"
    assert metrics.read == metrics.handled + metrics.deduplicated + metrics.rejected


def _check_projections(fabric: Fabric, census: Census, letters: Mapping[Place, Sequence[str]], seed: int) -> None:
    """Nothing hostile became a row, everything genuine did that is asked for, and each record has one disposition."""
    catch_up(fabric)
    for stored in ProjectionFolder(fabric.home.projections).files():
        with duckdb.connect(str(stored.path), read_only=True) as database:
            lines = database.execute(
                "select topic, topic_partition, record_offset, disposition, reason from esper.records"
            ).fetchall()
        dispositions = {(topic, partition, offset): (word, reason) for topic, partition, offset, word, reason in lines}
        topics = {topic for topic, _, _ in dispositions}
        assert dispositions.keys() == {place for place in census.digests if place[0] in topics}, f"seed {seed}"
        applied = {place for place, (word, _) in dispositions.items() if word == "applied"}
        assert not applied & census.hostile.keys(), f"seed {seed}: {stored.name} applied what is hostile"
        believed = {place for place, (word, _) in dispositions.items() if word in ("applied", "filtered")}
        assert {place for place in census.genuine if place[0] in topics} <= believed, f"seed {seed}: {stored.name}"
        discarded = {place: [reason] for place, (word, reason) in dispositions.items() if word == "discarded"}
        contradicting = {place for place, found in letters.items() if found == ["CONFLICTING_DUPLICATE"]}
        named = {place: found for place, found in letters.items() if place[0] in topics and place not in contradicting}
        undecodable = {place for place in named.keys() - discarded.keys() if named[place] == ["UNDECODABLE"]}
        assert all(dispositions[place][0] == "filtered" for place in undecodable), f"seed {seed}: {stored.name}"
        assert discarded == {place: named[place] for place in named.keys() - undecodable}, f"seed {seed}: {stored.name}"


def _check_housekeeper(fabric: Fabric, census: Census, letters: Mapping[Place, Sequence[str]]) -> None:
    stop, failures = threading.Event(), list[BaseException]()

    def keep() -> None:
        try:
            build_housekeeper(fabric).run(stop)
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)

    thread = threading.Thread(target=keep, name="housekeeper")
    thread.start()

    def done() -> bool:
        assert not failures, repr(failures)
        group = fabric.metrics().groups.get("esper.housekeeping")
        return group is not None and group.counters.read >= len(census.digests)

    try:
        await_that(done, "the housekeeper has read everything", seconds=600.0)
    finally:
        counters = fabric.metrics().groups["esper.housekeeping"].counters
        stop.set()
        thread.join()
    assert not failures, repr(failures)
    assert counters.rejected == len(letters)


def _check_proof(fabric: Fabric, census: Census, seed: int) -> None:
    """`esper verify` names the first hostile record of every partition, and finds no partition bad without one."""
    verdict = verify_cluster(fabric)
    first: dict[tuple[str, int], int] = {}
    for finding in verdict.bad:
        place = (finding.topic, finding.partition)
        first[place] = min(finding.offset, first.get(place, finding.offset))
    assert first == census.first_hostile(), f"seed {seed}"
    assert verdict.bad_total >= len(census.hostile), f"seed {seed}"
