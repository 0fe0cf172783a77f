"""A log that was sealed is written again over a wiped broker, and is the same log."""

from __future__ import annotations

import threading

import pytest

from esper.core.settings import Settings
from esper.leyline import messages as ly
from esper.oona import Event, Fabric
from esper.oona._kafka_admin import NewTopic
from esper.oona.copying import read_groups
from esper.oona.proof import export_from_cluster, verify_bundle, verify_cluster
from esper.projection.archive import Restorer, archive_of, compare_with_live, public_key_of, verify_archive
from tests.conftest import StartBroker
from tests.projection.archive.logs import (
    everything,
    fill,
    forget_beginning,
    open_fabric,
    records_only,
    seal,
    stored_blobs,
    wipe,
    write_oddities,
)

#: Of tolaria, whose member handles some: on a secure broker nobody else may.
GROUP = "esper.tolaria"
RUNS = 5


def handle_some(settings: Settings, count: int) -> list[str]:
    """Let a member of a group handle so many requests for runs, and return their keys."""
    with Fabric.open(settings, member="tolaria-0") as fabric:
        return _handled(fabric, count)


def _handled(fabric: Fabric, count: int) -> list[str]:
    stop, seen = threading.Event(), list[str]()

    def handle(event: Event) -> None:
        seen.append(event.meta.subject)
        if len(seen) >= count:
            stop.set()

    with fabric.publisher("tolaria") as publisher:
        consumer = fabric.consumer(
            group=GROUP,
            instance="archive-test",
            topics=["run-requests"],
            handlers={ly.TrainingRunRequested: handle},
            publisher=publisher,
        )
        consumer.run(stop)
    return seen


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "secure"])
def test_a_wiped_broker_holds_the_same_log_again(start_broker: StartBroker, *, secure: bool) -> None:
    """Goal: a sealed log survives the loss of its broker. Method: seal it, wipe the broker, restore, compare all."""
    running = start_broker(secure=secure)
    layout = archive_of(running.home)
    with open_fabric(running) as fabric:
        fill(fabric, runs=RUNS)
        handled = handle_some(running.settings, 3)
        forget_beginning(fabric, "telemetry", 3)
        assert verify_cluster(fabric).ok
        sealed = seal(fabric)
        assert sealed.complete
        assert not seal(fabric).new, "nothing is new"
        before, groups = everything(running), read_groups(fabric.cluster, fabric.topics)
        blobs = stored_blobs(running.home.blobs)
    assert before[("telemetry", 0)][0][0] == 3, "the beginning is gone"
    wipe(running, secure=secure)

    restored = Restorer(running.settings, layout).restore()

    assert restored.records == sealed.records == sum(len(raws) for _, raws in before.values())
    assert restored.blobs == len(blobs) == 2
    assert stored_blobs(running.home.blobs) == blobs
    after = everything(running)
    end = before[("operations", 0)][0][1]
    tail = [raw.record for raw in after[("operations", 0)][1] if raw.record.offset >= end]
    kinds = [(record.header("type") or b"").decode().rpartition(".")[2] for record in tail]
    assert kinds == ["LogRestored", "LogCheckpoint"]
    after[("operations", 0)] = ((0, end), [raw for raw in after[("operations", 0)][1] if raw.record.offset < end])
    assert records_only(after) == records_only(before)
    with open_fabric(running) as fabric:
        verdict = verify_cluster(fabric)
        assert verdict.ok, verdict.bad
        assert verdict.restores == 1
        assert read_groups(fabric.cluster, fabric.topics) == groups
        handled += handle_some(running.settings, RUNS - 3)
        assert sorted(handled) == [f"run-{number}" for number in range(RUNS)], "none lost, none repeated"

        bundle = running.home.root / "run.bundle"
        export_from_cluster(fabric, bundle, run_id="run-0")
        with bundle.open("rb") as file:
            audit = verify_bundle(file, public_key=public_key_of(running.home))
        assert audit.ok, audit.bad

        fill(fabric, prefix="later")
        assert verify_cluster(fabric).ok, "the housekeeper's checkpoints go on"
        assert seal(fabric).records > 0, "the archive goes on"
        proof = verify_archive(layout, public_key=public_key_of(running.home))
        compare_with_live(proof, fabric.cluster, fabric.topics)
        assert proof.ok, proof.faults


def test_what_no_producer_of_ours_writes_is_restored_too(start_broker: StartBroker) -> None:
    """Goal: exactly as Kafka held it. Method: tombstones, empty parts, forgeries, gaps of markers; wipe; restore."""
    running = start_broker()
    layout = archive_of(running.home)
    with open_fabric(running) as fabric:
        fill(fabric, runs=1)
        for topic in ("runs", "field-reports", "telemetry"):
            write_oddities(running.bootstrap, topic)
        forget_beginning(fabric, "telemetry", 13)
        fabric.cluster.admin.create_topics([NewTopic("strange", num_partitions=1)])["strange"].result(10)
        assert seal(fabric, segment_bytes=600, codec="deflate").unknown_topics == ["strange"], "left out, and named"
        before, bad = everything(running), [one.document() for one in verify_cluster(fabric).bad]
    assert any(one["kind"] == "gap" for one in bad), "markers leave gaps"
    assert before[("telemetry", 0)][0] == (13, 13), "an emptied partition that did not begin at 0"
    wipe(running)

    restored = Restorer(running.settings, layout).restore()

    after = everything(running)
    for place, (span, _) in before.items():
        ours = place == ("operations", 0)
        assert after[place][0] == ((0, span[1] + 2) if ours else span)
        after[place] = (span, [raw for raw in after[place][1] if raw.record.offset < span[1]])
    assert records_only(after) == records_only(before)
    assert restored.records == sum(len(raws) for _, raws in before.values())
    with open_fabric(running) as fabric:
        found = [one.document() for one in verify_cluster(fabric).bad]
    strip = {"proven_to", "detail"}
    assert [{k: v for k, v in one.items() if k not in strip} for one in found] == [
        {k: v for k, v in one.items() if k not in strip} for one in bad
    ]
