"""Writing a log again from its archive, onto a cluster that holds nothing of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from confluent_kafka import Producer

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import Busy, IntegrityError, OperationFailed, UsageError
from esper.core.home import Home, live_members
from esper.core.principals import ADMIN
from esper.core.settings import Settings
from esper.oona import Cluster, Position, TopicCatalog
from esper.oona.copying import (
    ExactWriter,
    GapMarker,
    RawReader,
    create_for_copy,
    delete_topics,
    ends_of,
    exact_producer,
    trim,
)
from esper.projection.archive._finish import Finish
from esper.projection.archive._layout import Layout
from esper.projection.archive._restorable import Work, check_possible, key_of
from esper.projection.archive._restore_state import Phase, RestoreState, forget, recall, remember
from esper.projection.archive._seal import Report
from esper.projection.archive._segments import read_segment
from esper.projection.archive._verify import compare_partition, verify_archive

_log = logging.getLogger("esper.projection.archive")

#: After a writer was killed, what it had sent may still arrive for so long.
_SETTLE_SECONDS: Final = 1.0
_SETTLE_ROUNDS_MAX: Final = 30
_REPORT_EVERY: Final = 10_000


@dataclass
class Restored:
    """What a restore wrote."""

    seal: int
    partitions: int
    records: int
    groups: int
    blobs: int
    resumed: bool


class Restorer:
    """Restores one archive; a restore that was killed is gone on with by doing it again."""

    def __init__(self, settings: Settings, layout: Layout, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._settings = settings
        self._layout = layout
        self._clock = clock

    def restore(self, *, again: bool = False, report: Report | None = None) -> Restored:
        """Write topics, records, gaps, groups and blobs as the last complete seal names them, then `LogRestored`.

        `again` takes away what an unfinished restore of this home wrote onto this cluster, and begins anew.

        Raises:
            IntegrityError: the archive is not what was sealed, or what was written is not what it holds.
            UsageError: the cluster holds records already, or the archive cannot be written again exactly.
            SecretError: the home lacks the keys of the log.
            Busy: members of this home run.
            BrokerUnavailable: no broker answered.
        """
        home = Home.open(self._settings)
        running = [one.name for one in live_members(home)]
        if running:
            raise Busy(
                "the log cannot be restored while it is in use",
                cause=f"of this home run {', '.join(running)}",
                next_step="Stop them (Ctrl-C on `esper serve`), then try again",
            )
        work = self._work(home)
        state = self._begin(work, again=again)
        resumed = state.phase is not Phase.TOPICS
        if state.phase is Phase.TOPICS:
            self._make_topics(work)
            state = remember(home, state.at(Phase.RECORDS))
        if state.phase is Phase.RECORDS:
            if resumed:
                self._let_settle(work)
            self._write(work, report)
            self._compare(work)
            state = remember(home, state.at(Phase.CLOSING))
        finish = Finish(self._settings, self._layout, work.found, work.seal, work.key)
        groups, blobs = finish.run()
        forget(home)
        records = sum(one.manifest.records for found in work.segments.values() for one in found)
        return Restored(work.seal.number, len(work.seal.partitions), records, groups, blobs, resumed)

    def _work(self, home: Home) -> Work:
        key = key_of(home)
        verdict = verify_archive(self._layout, public_key=key.public_key)
        if not verdict.ok:
            first = verdict.faults[0]
            raise IntegrityError(
                f"the archive {self._layout.root} cannot be restored",
                cause=f"{first.path}: {first.detail}",
                next_step="`esper archive verify` names everything that is wrong; put it back from a copy",
            )
        seal = verdict.found.last_complete
        if seal is None:
            raise UsageError(
                f"the archive {self._layout.root} cannot be restored",
                cause="no seal of it covers all topics at one moment",
                next_step="Run `esper archive seal` without --topic while the log is still there",
            )
        cluster = Cluster.open(self._settings, home=home, client_id="esper.restore").as_principal(ADMIN)
        catalog = TopicCatalog.load(self._settings)
        work = Work(home, cluster, catalog, verdict.found, seal, verdict.found.sealed_before(seal), key)
        check_possible(work, self._settings, clock=self._clock)
        return work

    def _begin(self, work: Work, *, again: bool) -> RestoreState:
        """Return where to go on; refuse a cluster that is in use."""
        digest = work.found.seal_digests[work.seal.number]
        cluster_id = str(work.cluster.metadata().cluster_id)
        fresh = RestoreState(work.seal.number, digest, cluster_id, Phase.TOPICS)
        state = recall(work.home)
        ours = state is not None and state.cluster_id == cluster_id
        if again and ours:
            delete_topics(work.cluster, _present(work), clock=self._clock)
            return remember(work.home, fresh)
        if state is not None and ours and state.seal_digest == digest:
            return state
        held = {place: ends for place, ends in ends_of(work.cluster, work.catalog).items() if ends[1] > 0}
        if held:
            (topic, partition), (low, high) = min(held.items())
            unfinished = " of an unfinished restore of another seal" if ours else ""
            raise UsageError(
                f"the cluster at {work.cluster.bootstrap} is not empty",
                cause=f"{len(held)} partitions hold, or held, records{unfinished}: {topic}-{partition} offsets "
                f"{low} to {high - 1}",
                next_step="Run `esper archive restore --again`, which takes them away and begins anew"
                if ours
                else "Restore onto a cluster that never held these topics, or delete them there first",
            )
        return remember(work.home, fresh)

    def _make_topics(self, work: Work) -> None:
        """Make every topic anew under CreateTime; those that are there hold nothing and are in the way."""
        ends = ends_of(work.cluster, work.catalog)
        empty = {topic for topic, _ in ends}
        filled = {topic for (topic, _), (_, high) in ends.items() if high > 0}
        if filled:
            raise Busy(
                "the cluster is being written to",
                cause=f"records came into {', '.join(sorted(filled))} meanwhile",
                next_step="Stop whoever writes there, then run `esper archive restore --again`",
            )
        delete_topics(work.cluster, empty, clock=self._clock)
        create_for_copy(work.cluster, work.catalog, clock=self._clock)

    def _let_settle(self, work: Work) -> None:
        """Wait until nothing arrives any more of what a killed writer had sent."""
        create_for_copy(work.cluster, work.catalog, clock=self._clock)
        before = ends_of(work.cluster, work.catalog)
        for _ in range(_SETTLE_ROUNDS_MAX):
            self._clock.sleep(_SETTLE_SECONDS)
            after = ends_of(work.cluster, work.catalog)
            if after == before:
                return
            before = after
        raise Busy("the cluster is being written to", next_step="Stop whoever writes there, then try again")

    def _write(self, work: Work, report: Report | None) -> None:
        with exact_producer(work.cluster) as producer:
            self._write_all(work, producer, report)

    def _write_all(self, work: Work, producer: Producer, report: Report | None) -> None:
        ends = ends_of(work.cluster, work.catalog)
        marker = GapMarker(work.cluster, clock=self._clock)
        for place, (first, end) in sorted(work.spans.items()):
            low, high = ends[place]
            if high > end:
                raise IntegrityError(
                    f"{place[0]}-{place[1]} cannot be restored",
                    cause=f"it holds offsets up to {high - 1}, the archive only up to {end - 1}: something else wrote",
                    next_step="Stop whoever writes there, then run `esper archive restore --again`",
                )
            if high < end or high < first:
                writer = ExactWriter(work.cluster, producer, place, high, clock=self._clock)
                writer.fill(first)
                self._write_records(work, writer, place, marker, report)
                writer.skip(end, marker)
            if low < first:
                trim(work.cluster, place, first, clock=self._clock)

    def _write_records(
        self, work: Work, writer: ExactWriter, place: Position, marker: GapMarker, report: Report | None
    ) -> None:
        for segment in work.segments.get(place, []):
            if segment.manifest.next_offset <= writer.next_offset:
                continue
            for record in read_segment(segment, writer.next_offset):
                if record.offset > writer.next_offset:
                    writer.skip(record.offset, marker)
                writer.write(record)
                if report is not None and record.offset % _REPORT_EVERY == 0:
                    report(place, record.offset)

    def _compare(self, work: Work) -> None:
        """Read everything back."""
        ends = ends_of(work.cluster, work.catalog)
        with RawReader(work.cluster) as reader:
            for place, (first, end) in sorted(work.spans.items()):
                low, high = ends[place]
                if (low, high) != (first, end):
                    raise _differs(place, f"it holds the offsets {low} to {high}, sealed were {first} to {end}")
                segments = work.segments.get(place, [])
                if segments:
                    _, fault = compare_partition(reader, place, segments, low, high)
                    if fault is not None:
                        raise _differs(place, fault.detail)


def _present(work: Work) -> set[str]:
    topics = work.cluster.metadata().topics
    return {spec.name for spec in work.catalog if spec.name in topics}


def _differs(place: Position, cause: str) -> OperationFailed:
    return OperationFailed(
        f"{place[0]}-{place[1]} was not restored as it was",
        cause=cause,
        next_step="Stop whoever writes there, then run `esper archive restore --again`, which begins anew",
    )
