"""`esper archive ...`: the log sealed into files, proved, listed and written again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esper.cli._console import JsonFlag, emit_json, emit_line, emit_table, open_fabric, open_home, say, settings
from esper.cli._progress import progress
from esper.core._log_key import read_public_key
from esper.core.errors import IntegrityError, UsageError
from esper.core.home import Home
from esper.oona import Cluster, TopicCatalog

if TYPE_CHECKING:
    from esper.projection.archive import Layout
    from esper.projection.archive._seal import Report

archive = typer.Typer(
    no_args_is_help=True, help="Topics sealed into Avro files with signed manifests. Example: esper archive seal"
)

FolderOption = Annotated[
    Path | None, typer.Option("--archive", help="Folder of the archive; default: archive/ in the home.")
]


def _layout(folder: Path | None, home: Home | None = None) -> Layout:
    from esper.projection.archive import Layout, archive_of

    return archive_of(home or open_home()) if folder is None else Layout(folder)


def _existing(folder: Path | None) -> Layout:
    layout = _layout(folder)
    if not layout.seals.is_dir():
        raise UsageError(
            f"there is no archive in {layout.root}",
            cause="the folder is missing or holds no seals",
            next_step="Run `esper archive seal`, or name another folder by --archive",
        )
    return layout


@contextmanager
def _reporting(what: str) -> Iterator[Report]:
    """Show on stderr how far long work is."""
    with progress(what, spins=True) as show:
        yield lambda place, records: show(f"{what} {place[0]}-{place[1]}: {records} records")


@archive.command()
def seal(
    topic: Annotated[list[str] | None, typer.Option(help="Only this topic; may be repeated. Default: all.")] = None,
    deflate: Annotated[bool, typer.Option(help="Compress; a cold replay is then slower.")] = False,
    folder: FolderOption = None,
    json: JsonFlag = False,
) -> None:
    """Seal what the log holds beyond the last seal; members may run. Example: esper archive seal"""
    from esper.projection.archive import sealing

    fabric = open_fabric()
    layout = _layout(folder, fabric.home)
    with sealing(fabric, layout, codec="deflate" if deflate else "null") as sealer, _reporting("sealing") as report:
        sealed = sealer.seal(topic or (), report=report)
    if sealed.unknown_topics:
        say(
            f"not sealed: {', '.join(sealed.unknown_topics)}; no topic file that these settings name describes them "
            "(ESPER_TOPICS_DIR, ESPER_EXTRA_TOPICS_DIRS)"
        )
    if json:
        emit_json({"archive": str(layout.root)} | vars(sealed))
    elif sealed.new:
        emit_line(f"seal {sealed.number}: {sealed.segments} segments, {sealed.records} records, {sealed.groups} groups")
    else:
        emit_line(f"nothing is new since seal {sealed.number}")


@archive.command()
def verify(
    live: Annotated[bool, typer.Option("--live", help="Also compare with what the live log still holds.")] = False,
    public_key: Annotated[
        str | None, typer.Option(help="Public log key, a file or 64 digits; default: the home's log-key.pub.")
    ] = None,
    folder: FolderOption = None,
    json: JsonFlag = False,
) -> None:
    """Prove seals, segments, records and blobs. Exit code 4 when something is wrong.

    Needs no broker without --live, and no home with --archive and --public-key.
    Example: esper archive verify --live
    """
    from esper.projection.archive import compare_with_live, public_key_of, verify_archive

    key = public_key_of(open_home()) if public_key is None else read_public_key(public_key)
    verdict = verify_archive(_existing(folder), public_key=key)
    if live:
        compare_with_live(verdict, Cluster.open(settings(), home=open_home()), TopicCatalog.load(settings()))
    document = verdict.document()
    if json:
        emit_json(document)
    else:
        if verdict.faults:
            emit_table(document["bad"], ["path", "kind", "topic", "partition", "offset", "detail"])
        state = "no fault was found" if verdict.ok else f"{len(verdict.faults)} FAULTS"
        emit_line(f"{document['records']} records in {document['segments']} segments were read: {state}")
        for claim in document["claims"] if verdict.ok else ():
            emit_line(f"checked: {claim}")
        for limit in document["not_claimed"]:
            emit_line(f"not claimed: {limit}")
    if not verdict.ok:
        sys.exit(IntegrityError.exit_code)


@archive.command("list")
def list_(folder: FolderOption = None, json: JsonFlag = False) -> None:
    """List seals, and how far each partition is sealed. Example: esper archive list"""
    from esper.projection.archive import list_archive, public_key_of, survey

    found = survey(_existing(folder), public_key=public_key_of(open_home()))
    found.check()
    document = list_archive(found)
    if json:
        emit_json(document)
        return
    emit_table(document["seals"], ["number", "sealed_ms", "complete", "segments", "groups"], title="seals")
    columns = ["topic", "partition", "first_offset", "next_offset", "segments", "records", "bytes"]
    emit_table([row for row in document["partitions"] if row["next_offset"]], columns, title="partitions")


@archive.command()
def restore(
    again: Annotated[
        bool, typer.Option("--again", help="Take away what an unfinished restore wrote, and begin anew.")
    ] = False,
    folder: FolderOption = None,
    json: JsonFlag = False,
) -> None:
    """Write the log again from its last complete seal, onto a cluster that holds nothing of it.

    Members must be stopped. A restore that was interrupted goes on when it is run again. Example: esper archive restore
    """
    from esper.projection.archive import Restorer

    layout = _existing(folder)
    with _reporting("restoring") as report:
        restored = Restorer(settings(), layout).restore(again=again, report=report)
    if json:
        emit_json({"archive": str(layout.root)} | vars(restored))
        return
    emit_line(
        f"seal {restored.seal} is restored: {restored.records} records in {restored.partitions} partitions, "
        f"{restored.groups} groups"
    )
    say("next: `esper verify` proves it; `esper replay` builds the projections anew: their topics have new ids")


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.add_typer(archive, name="archive")
