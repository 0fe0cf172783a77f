"""SQL over all projections, whoever holds their files at the moment."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import pyarrow as pa

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import Busy, NotReadyError, UsageError
from esper.core.home import Home
from esper.core.rng import jitter
from esper.core.settings import Settings, load_settings
from esper.oona import Fabric, TopicCatalog
from esper.projection._rebuild import catch_up
from esper.projection.definitions._folder import ProjectionFolder
from esper.projection.definitions._versions import readable_definitions
from esper.projection.points._asof import AsOf, AtTime, parse_point, point_text
from esper.projection.points._asof_views import behind
from esper.projection.points._resolve import Resolved, positions_of
from esper.projection.serving._control import ProjectorClient, ProjectorGone, find_projector
from esper.projection.serving._export import check_target, finish_export
from esper.projection.serving._projections import ReadableProjections

_log = logging.getLogger("esper.projection.query")
_T = TypeVar("_T")

#: Keys of a result's schema metadata.
AS_OF: Final = "esper.as_of"
AS_OF_NOTE: Final = "esper.as_of.note"
#: A projector that starts or ends holds the files for about a second without answering.
_HANDOVER_SECONDS: Final = 20.0
_RETRY_SECONDS: Final = 0.1


class Query(Protocol):
    """Answers one reading statement."""

    def __call__(self, sql: str, parameters: Sequence[object] = ()) -> pa.Table:
        """Return what `sql` gives; `parameters` fill its `?` in their order."""


def query(
    sql: str,
    parameters: Sequence[object] = (),
    *,
    as_of: AsOf | None = None,
    timeout: float | None = None,
    settings: Settings | None = None,
) -> pa.Table:
    """Return what one SELECT over all projections gives, now or as of a point in the past.

    Tables and views of every projection are named without it: `select * from field_reports limit 5`. The
    projector answers when one runs; otherwise the files are opened here, read-only, as they were left.
    `parameters` fill `?` or `$1`, `$2`, ... in their order. `timeout` is in seconds, at most
    `settings.sql_timeout_seconds`, which is what a query may take without it.

    `as_of` is a time with its zone, an event id, offsets (`runs:0=12,1=7;decisions:0=5`, or a mapping of topic and
    partition), or "now". What it came to is in the schema's metadata as `esper.as_of`: the offsets as text, which give
    the same rows whenever they are given back. Where the files cannot vouch for a time, they are folded on from the
    log first; where no broker answers, `esper.as_of.note` in the metadata and a warning say what is not sure.

    Raises:
        UsageError: the statement is no single SELECT (or EXPLAIN of one), DuckDB finds an error in it, or the point is
            none, or one from before what the log held when a projection was built.
        OperationFailed: it ran too long, or needed more memory or gave more than is allowed.
        NotReadyError: there is no home, no projection was built yet, or none of them reaches that point.
        Busy: another process held the files for long.
        IntegrityError: a projection file is damaged.
    """
    chosen = settings or load_settings()
    home = Home.open(chosen)
    seconds = _allowed_seconds(timeout, chosen)
    if as_of is None:
        return _answer(home, chosen, sql, parameters, None, seconds=seconds)
    point = resolve_as_of(as_of, sql=sql, settings=chosen)
    table = _answer(home, chosen, sql, parameters, point.offsets, seconds=seconds)
    marks = {AS_OF: point.offsets} | ({AS_OF_NOTE: point.note} if point.note else {})
    return table.replace_schema_metadata({**(table.schema.metadata or {}), **marks})


def _answer(
    home: Home, settings: Settings, sql: str, parameters: Sequence[object], offsets: str | None, *, seconds: float
) -> pa.Table:
    def ask(client: ProjectorClient) -> pa.Table:
        return client.query(sql, parameters, offsets=offsets, seconds=seconds)

    def read(projections: ReadableProjections) -> pa.Table:
        past = None if offsets is None else positions_of(offsets)
        return projections.query(sql, parameters, offsets=past, seconds=seconds)

    return through_projector_or_files(home, settings, ask=ask, read=read)


def _allowed_seconds(timeout: float | None, settings: Settings) -> float:
    allowed = settings.sql_timeout_seconds
    if timeout is None:
        return allowed
    if not 0 < timeout <= allowed:
        raise UsageError(
            f"a query cannot have {timeout:g} seconds",
            cause=f"ESPER_SQL_TIMEOUT_SECONDS allows more than 0 and at most {allowed:g}",
            next_step="Ask for less, or set it higher, also for the projector",
        )
    return timeout


@dataclass(frozen=True)
class AsOfOffsets:
    """The offsets that a point of the log came to, as text; `note` says what is not sure, or is empty."""

    offsets: str
    note: str = ""


def resolve_as_of(
    as_of: AsOf, *, sql: str | None = None, name: str | None = None, settings: Settings | None = None
) -> AsOfOffsets:
    """Return the offsets of a point of the log, for what `sql` reads or for the projection `name`.

    Where the projections are behind, or hold nothing later than the time that is asked for, they are folded up to the
    end of the log first, if a broker answers.

    Raises:
        UsageError: it is no point of the log, lies in the future, or before what was retained.
        NotReadyError: the projections do not reach it.
    """
    chosen = settings or load_settings()
    home = Home.open(chosen)
    point = parse_point(as_of)
    if isinstance(point, AtTime) and point.microseconds * 1_000 > SYSTEM_CLOCK.now_ns():
        raise UsageError(
            f"the time {point_text(point)} lies in the future",
            cause="what will count by then is not known",
            next_step="Ask for a time that has passed, or for now",
        )

    def found() -> Resolved:
        return through_projector_or_files(
            home,
            chosen,
            ask=lambda client: client.resolve(point, sql=sql, name=name),
            read=lambda projections: projections.resolve(point, sql=sql, name=name),
        )

    resolved = found()
    if not (resolved.open or resolved.behind):
        return AsOfOffsets(resolved.offsets)
    away = _catch_up_if_possible(chosen)
    resolved = found()
    if resolved.behind:
        raise behind(resolved.behind)
    if not (away and resolved.open):
        return AsOfOffsets(resolved.offsets)
    note = f"what the log holds beyond what is folded of {', '.join(resolved.open)} is not counted: {away}"
    _log.warning("%s", note)
    return AsOfOffsets(resolved.offsets, note)


def export(name: str, target: Path, *, as_of: AsOf | None = None, settings: Settings | None = None) -> dict[str, Any]:
    """Copy one projection, as of a point in the past or as it is folded now, for other tools; return the manifest.

    `{projection, version, offsets, tables: [{name, kind, rows, hash, file, sha256}]}`. A target that ends in .duckdb or
    .db becomes one DuckDB file with tables and views, any other a folder with one Parquet file for each of them and
    manifest.json. The projector makes the copy while it goes on, when one runs.

    Raises:
        UsageError: there is no such projection, something is at `target`, or `as_of` cannot be used.
        NotReadyError: there is no home, or the projection was not built or does not reach that point.
        OperationFailed: it took too long, or cannot be written.
    """
    chosen = settings or load_settings()
    home = Home.open(chosen)
    check_target(target)
    offsets = resolve_as_of("now" if as_of is None else as_of, name=name, settings=chosen).offsets
    folder = home.projections
    file = through_projector_or_files(
        home,
        chosen,
        ask=lambda client: client.export(name, offsets),
        read=lambda projections: projections.export(folder, name, positions_of(offsets)).name,
    )
    return finish_export(folder / file, target)


def _catch_up_if_possible(settings: Settings) -> str:
    """Fold all that the log holds now; return why that could not be done, or nothing."""
    try:
        with Fabric.open(settings, member="cli") as fabric:
            catch_up(fabric)
    except NotReadyError as error:
        return error.what
    return ""


def through_projector_or_files(
    home: Home,
    settings: Settings,
    *,
    ask: Callable[[ProjectorClient], _T],
    read: Callable[[ReadableProjections], _T],
) -> _T:
    """Ask the projector, or read the files when none runs; try again while one takes over from the other."""
    deadline = Deadline(_HANDOVER_SECONDS)
    while True:  # ends with an answer, or at the deadline
        client = find_projector(home)
        try:
            return ask(client) if client is not None else _read_files(home, settings, read)
        except (ProjectorGone, Busy):
            if deadline.expired:
                raise
        SYSTEM_CLOCK.sleep(jitter(_RETRY_SECONDS))


def _read_files(home: Home, settings: Settings, read: Callable[[ReadableProjections], _T]) -> _T:
    folder = ProjectionFolder(home.projections)
    definitions = readable_definitions(settings, TopicCatalog.load(settings), folder)
    projections = ReadableProjections(folder, definitions, settings)
    try:
        return read(projections)
    finally:
        projections.close()


def is_folding(settings: Settings) -> bool:
    """Return whether a projector of this home runs, so that queries of the present are of what the log holds.

    Raises:
        NotReadyError: there is no home, or the projector is suspended.
    """
    return find_projector(Home.open(settings)) is not None


@contextmanager
def fresh_query(fabric: Fabric) -> Iterator[Query]:
    """Fold everything that the log holds now, then give a `query` over it; raises as `catch_up`."""
    catch_up(fabric)
    yield functools.partial(query, settings=fabric.settings)
