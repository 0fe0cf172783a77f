"""Tests of the past: any point of the log resolves to offsets, and a query there sees what a replay up to it makes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import duckdb
import pytest

from esper.core.errors import NotReadyError, UsageError
from esper.leyline import messages as ly
from esper.oona import Position
from esper.projection import Definition
from esper.projection.points._asof import AtEvent, AtOffsets, AtTime, Now, Point, offsets_text, parse_point, point_text
from esper.projection.points._asof_views import PastState, expose_engine
from esper.projection.points._resolve import positions_of, resolve
from esper.projection.sql._reading import run_query
from tests.campaigns import WHOLE
from tests.projection.conftest import OpenWorkbench, Workbench
from tests.projection.log import TOPICS, Log, finish, one_epoch, one_run

#: Each point is a fresh replay of the log up to it: a few seconds.
_POINTS = 100 if WHOLE else 4
_ENGINE = ("progress", "records")


def _busy_log(generator: random.Random) -> Log:
    """A log of runs whose events mix, with copies that come later under their old time, and a record nobody signed."""
    log = Log()
    for number in range(4):
        one_run(log, f"run-{number}", epochs=generator.randint(1, 3), seed=number)
    for _ in range(8):
        one_epoch(log, f"run-{generator.randrange(4)}", generator.randint(4, 6), attempt=generator.randint(1, 2))
    for record in generator.sample(log.source.records, 6):
        log.append_raw(record)
    log.append_raw(replace(generator.choice(log.source.records), value=b"nonsense"))
    finish(log, "run-0")
    return log


def _folded(bench: Workbench) -> dict[Position, int]:
    """How far each partition is folded."""
    return positions_of(resolve(bench.database, bench.definitions, Now()).offsets)


def _counted(log: Log, places: Mapping[Position, int], *, until_ms: int) -> dict[Position, int]:
    """Offsets of a time, counted from the log itself: those before the first later record."""
    offsets = dict(places)
    for record in reversed(log.source.records):
        if record.append_time_ms > until_ms and (record.topic, record.partition) in places:
            offsets[record.topic, record.partition] = record.offset
    return offsets


def _past(bench: Workbench, offsets: Mapping[Position, int]) -> PastState:
    return PastState(bench.database, bench.definitions, TOPICS, offsets)


def _rows(bench: Workbench, sql: str, past: PastState | None = None) -> list[str]:
    return sorted(map(repr, run_query(bench.database, sql, seconds=60, past=past).to_pylist()))


def _sorted(cursor: duckdb.DuckDBPyConnection, sql: str) -> list[str]:
    return sorted(map(repr, cursor.sql(sql).to_arrow_table().to_pylist()))


def _shown(bench: Workbench, offsets: Mapping[Position, int], queries: Iterable[str]) -> dict[str, list[str]]:
    """Return what each query gives in the database that a query as of the offsets gets."""
    past, cursor = _past(bench, offsets), bench.database.cursor()
    past.show(cursor)
    try:
        return {sql: _sorted(cursor, sql) for sql in queries}
    finally:
        cursor.close()
        past.hide()


def _everything(one: Definition) -> list[str]:
    mine = f"where projection = '{one.name}'"
    engine = [f"select * exclude (projection) from esper.{table} {mine}" for table in _ENGINE]  # noqa: S608 - our own names
    return [f"from {name}" for name in one.relations] + engine


def _random_point(
    generator: random.Random, bench: Workbench, places: Mapping[Position, int]
) -> tuple[Point, dict[Position, int]]:
    """Return a point of one of three kinds, and its offsets as the log itself says."""
    kind = generator.choice(("offsets", "time", "event"))
    if kind == "offsets":
        offsets = {place: generator.randint(0, end) for place, end in places.items()}
        return AtOffsets(offsets), offsets
    rows = bench.rows(
        "select topic, topic_partition, record_offset, event_id, epoch_ms(append_time) from runs.esper.records"
        " where disposition = 'applied' and topic != 'decisions' order by all"
    )
    chosen = generator.choice(rows)
    if kind == "event":
        # A later attempt may tell of an epoch under the same id; of those the first counts.
        chosen = min(row for row in rows if row[3] == chosen[3])
    topic, partition, offset, event_id, time = chosen
    assert isinstance(topic, str)
    assert isinstance(partition, int)
    assert isinstance(offset, int)
    assert isinstance(time, int)
    if kind == "time":
        until_ms = time + generator.randint(-1, 1)
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=until_ms, microseconds=300)
        return AtTime(moment), _counted(bench.log, places, until_ms=until_ms)
    return AtEvent(str(event_id)), _counted(bench.log, places, until_ms=time) | {(topic, partition): offset + 1}


@pytest.mark.campaign
def test_the_past_is_what_a_replay_up_to_it_makes(
    open_workbench: OpenWorkbench, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    """Goal: as-of equals a fresh replay. Method: random offsets, times and events; compare every table and view."""
    seed = int(os.environ.get("CAMPAIGN_SEED") or request.config.getoption("randomly_seed", 0))
    record_property("seed", seed)
    record_property("points", _POINTS)
    print(f"CAMPAIGN_SEED={seed}")  # noqa: T201 - shown when the test fails
    generator = random.Random(seed)  # noqa: S311 - a seed that can be given again
    live = open_workbench(_busy_log(generator))
    live.fold()
    places = _folded(live)
    for number in range(_POINTS):
        point, expected = _random_point(generator, live, places)
        resolved = resolve(live.database, live.definitions, point)
        offsets = positions_of(resolved.offsets)
        assert offsets == expected, point_text(point)
        assert resolve(live.database, live.definitions, parse_point(resolved.offsets)).offsets == resolved.offsets
        until = {one.name: {p: offsets[p] for p in places if p[0] in one.topics} for one in live.definitions}
        fresh = open_workbench(live.log, f"fresh-{number}", until=until)
        fresh.fold()
        expose_engine(fresh.database, [one.name for one in fresh.definitions])
        queries = [sql for one in live.definitions for sql in _everything(one)]
        shown = _shown(live, offsets, queries)
        cursor = fresh.database.cursor()
        for sql in queries:
            assert shown[sql] == _sorted(cursor, sql), (sql, resolved.offsets)
        cursor.close()
        one = generator.choice(live.definitions)
        asked = f"from {generator.choice(one.relations)}"
        assert run_query(live.database, asked, seconds=60, past=_past(live, offsets)).num_rows == len(shown[asked])
        fresh.close()


def test_one_text_is_one_point() -> None:
    """Goal: what is printed can be given back. Method: all four kinds through text; several ways to say one time."""
    moment = datetime(2026, 11, 22, 12, 0, 0, 250_000, tzinfo=UTC)
    points = (AtTime(moment), AtEvent("f" * 32), AtOffsets({("runs", 0): 12, ("runs", 1): 7, ("a.b-c", 3): 0}), Now())
    assert [parse_point(point_text(point)) for point in points] == list(points)
    assert offsets_text({("runs", 1): 7, ("decisions", 0): 5, ("runs", 0): 12}) == "decisions:0=5;runs:0=12,1=7"
    for text in ("2026-11-22T12:00:00.250Z", "2026-11-22 13:00:00.25+01:00", "2026-11-22 12:00:00.25 UTC"):
        assert parse_point(text) == AtTime(moment)
    assert parse_point(moment.astimezone(timezone(timedelta(hours=9)))) == AtTime(moment)
    assert parse_point({("runs", 0): 3}) == AtOffsets({("runs", 0): 3})


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-22",
        "2026-11-22T12:00:00",
        "20261122T120000",
        "2026-13-01T00:00:00Z",
        "2026-11",
        "",
        "yesterday at noon",
        "runs:0=1,0=2",
        "runs:0=1;runs:0=2",
        "runs:0",
        "runs:0=-1",
        "runs:x=1",
        "runs:0=1;",
        5,
    ],
)
def test_what_is_no_point_is_refused(text: str | int) -> None:
    """Goal: nothing is guessed, least of all a zone. Method: each malformed or ambiguous text names the way out."""
    with pytest.raises(UsageError) as caught:
        parse_point(text)  # type: ignore[arg-type]  # a number is no point either
    assert caught.value.next_step


def test_a_time_without_its_zone_is_refused_in_python_too() -> None:
    """Goal: a naive datetime is as ambiguous as its text. Method: give one."""
    with pytest.raises(UsageError, match="ambiguous"):
        parse_point(datetime(2026, 11, 22))  # noqa: DTZ001 - that it has no zone is the point


@pytest.fixture
def live(open_workbench: OpenWorkbench) -> Workbench:
    """Two runs, folded."""
    log = Log()
    one_run(log, "run-a")
    one_run(log, "run-b")
    bench = open_workbench(log)
    bench.fold()
    expose_engine(bench.database, [one.name for one in bench.definitions])
    return bench


def test_only_what_a_query_reads_has_to_be_known(live: Workbench) -> None:
    """Goal: the offsets are those that the query depends on. Method: one projection's scope; leave out and add some."""
    reports = [one for one in live.definitions if one.name == "field_reports"]
    offsets = positions_of(resolve(live.database, reports, Now()).offsets)
    assert {topic for topic, _ in offsets} == {"field-reports"}
    assert _rows(live, "from field_report_facts", _past(live, offsets)) == _rows(live, "from field_report_facts")
    with pytest.raises(UsageError, match="do not say enough") as caught:
        _rows(live, "from runs", _past(live, offsets))
    assert "system-state" in caught.value.cause
    assert run_query(live.database, "select 1 as n", seconds=5, past=_past(live, {})).to_pylist() == [{"n": 1}]


@pytest.mark.parametrize(
    "sql", ["from runs.run_states", "from runs.main.run_states", "from memory.main.run_states", "from main.runs"]
)
def test_the_present_is_out_of_reach(live: Workbench, sql: str) -> None:
    """Goal: no silently wrong answer. Method: name what is there now, past the filter, in every way."""
    assert _rows(live, sql.replace("from main.", "from memory.main."))
    with pytest.raises(UsageError, match="as of a point in the past"):
        _rows(live, sql, _past(live, _folded(live)))


def test_nothing_of_the_past_is_left_behind(live: Workbench) -> None:
    """Goal: a query's own database goes with it, also after an error. Method: list databases before and after."""
    before = _rows(live, "select distinct database_name from duckdb_views()")
    _rows(live, "from runs", _past(live, _folded(live)))
    with pytest.raises(UsageError):
        _rows(live, "select no_such_column from runs", _past(live, _folded(live)))
    assert live.rows("select 1 from duckdb_databases() where database_name like 'as-of-%'") == []
    assert _rows(live, "select distinct database_name from duckdb_views()") == before


def test_what_is_not_folded_or_not_kept_is_said_so(open_workbench: OpenWorkbench) -> None:
    """Goal: beyond the fold and before the retained log there is no answer. Method: a log that lost its beginning."""
    log = Log()
    for number in range(3):
        log.append(ly.TelemetryPacket(packet_id=f"packet-{number}"), key="tamiyo")
    first = log.source.records.pop(0)
    place = (first.topic, first.partition)
    log.source.low[place] = 1
    bench = open_workbench(log)
    bench.fold()
    ends = _folded(bench)
    assert ends[place] == 3
    with pytest.raises(NotReadyError, match="do not reach that point"):
        _rows(bench, "from telemetry_packets", _past(bench, ends | {place: 4}))
    found = resolve(bench.database, bench.definitions, AtOffsets(ends | {place: 4}))
    assert found.behind == (f"telemetry has telemetry:{place[1]} below 3, not 4",)
    with pytest.raises(UsageError, match="does not reach back"):
        resolve(bench.database, bench.definitions, AtOffsets(ends | {place: 0}))
    with pytest.raises(UsageError, match="does not reach back"):
        resolve(bench.database, bench.definitions, AtTime(datetime.fromtimestamp(first.append_time_ms / 1000, UTC)))
    # What another topic lost does not matter to a query that does not read it.
    assert _rows(bench, "from runs", _past(bench, ends | {place: 0})) == []
    with pytest.raises(UsageError, match="no event 'nobody'"):
        resolve(bench.database, bench.definitions, AtEvent("nobody"))


def test_partitions_that_say_nothing_of_a_time_are_named(live: Workbench) -> None:
    """Goal: the files vouch for a time only by something later. Method: ask for the time of the last record."""
    last = max(one.append_time_ms for one in live.log.source.records)
    found = resolve(live.database, live.definitions, AtTime(datetime.fromtimestamp(last / 1000, UTC)))
    assert positions_of(found.offsets) == _folded(live)
    assert set(found.open) == {f"{topic}:{partition}" for topic, partition in _folded(live)}
    early = resolve(live.database, live.definitions, AtTime(datetime(2023, 1, 1, tzinfo=UTC)))
    busy = {f"{one.topic}:{one.partition}" for one in live.log.source.records}
    assert not busy & set(early.open)
    assert not any(positions_of(early.offsets).values())
