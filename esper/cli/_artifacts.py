"""`esper artifacts ...`: the stored bytes of kernels."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.cli._console import JsonFlag, emit_json, emit_line, emit_table, open_fabric, say
from esper.core.errors import IntegrityError, OperationFailed, UsageError

if TYPE_CHECKING:
    from esper.urza import Garbage, Removed

artifacts = typer.Typer(no_args_is_help=True, help="Stored kernels and their bytes. Example: esper artifacts list")

_COLUMNS = [
    "kernel_id",
    "blueprint_id",
    "layout",
    "in_shape",
    "parameters",
    "size_bytes",
    "strategy",
    "prewarm_p50_ms",
    "compiled_parts",
    "state",
]
_FREED_SHOWN_MAX = 20
#: A century: older than any log, and well within what a time can be.
_DAYS_MAX = 36_500


@artifacts.command("list")
def list_(json: JsonFlag = False) -> None:
    """List the kernels of the catalogue and whether their bytes are stored. Example: esper artifacts list --json"""
    from esper.core.kernel import DirectoryBlobStore
    from esper.urza import list_artifacts, read_inventory

    with open_fabric() as fabric:
        rows = list_artifacts(read_inventory(fabric), DirectoryBlobStore(fabric.home.blobs))
    if json:
        emit_json(rows)
    else:
        emit_table(rows, _COLUMNS, title="stored kernels")


@artifacts.command()
def verify(json: JsonFlag = False) -> None:
    """Read every stored byte and compare it with what the log says. Exit code 4 when something is missing or wrong.

    So is what lies in the store's folder and is no blob.

    Each fault is appended as an event (KernelIntegrityFailed). Example: esper artifacts verify
    """
    from esper.core.kernel import DirectoryBlobStore, RefusalTeller
    from esper.urza import read_inventory, verify_artifacts

    with open_fabric() as fabric, fabric.publisher("cli") as publisher:
        store, teller = (
            DirectoryBlobStore(fabric.home.blobs),
            RefusalTeller(lambda event, key: publisher.publish(event, key=key)),
        )
        verdict = verify_artifacts(read_inventory(fabric), store, home_id=fabric.home.home_id, teller=teller)
    document = verdict.document()
    if json:
        emit_json(document)
    else:
        bad: Any = document["bad"]
        if bad:
            emit_table(bad, ["part", "kernel_id", "digest", "reason"])
        state = "nothing is missing or wrong" if verdict.ok else f"{len(bad)} FAULTS"
        emit_line(f"{verdict.artifacts} artifacts, {verdict.blobs} blobs, {verdict.bytes} bytes were read: {state}")
    if not verdict.ok:
        sys.exit(IntegrityError.exit_code)


@artifacts.command()
def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without it only say what would go.")] = False,
    expired_days: Annotated[
        float | None, typer.Option(min=0, help="Let kernels go, too, that are so old and that no run names.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Remove stored bytes that nobody names: no run, checkpoint, policy, other event, or kernel of the catalogue.

    What was stored or fetched within the last hour stays. Without --yes nothing is touched.
    Example: esper artifacts gc --yes
    """
    from esper.core.clock import SYSTEM_CLOCK
    from esper.core.kernel import DirectoryBlobStore
    from esper.urza import LogNames, Removed, Terms, find_garbage, remove_garbage

    _check_age(expired_days)
    with open_fabric() as fabric:
        store = DirectoryBlobStore(fabric.home.blobs)
        store.check_root()
        with LogNames(fabric) as names:
            terms = Terms(fabric.home.home_id, SYSTEM_CLOCK.now_ns(), expired_days)
            names.read()
            garbage, removed = find_garbage(names, store, terms), Removed()
            if yes:
                with fabric.publisher("cli") as publisher:
                    removed = remove_garbage(garbage, names, store, publisher, terms)
    document = _collected(garbage, removed if yes else None)
    if json:
        emit_json(document)
    else:
        _show_collected(document)
    if removed.failed:
        sys.exit(OperationFailed.exit_code)


def _collected(garbage: Garbage, removed: Removed | None) -> dict[str, Any]:
    """Return what a collection did, or without `removed` would do, as JSON has it."""
    plan = {blob.digest: blob.size_bytes for blob in garbage.blobs}
    rows = plan if removed is None else removed.blobs
    planned = [update.meta.subject for update in (*garbage.artifacts, *garbage.lost)]
    return {
        "removed": removed is not None,
        "blobs": len(rows),
        "size_bytes": sum(rows.values()),
        "freed_bytes": removed.freed_bytes if removed else 0,
        "kept": garbage.kept + len(plan) - len(rows),
        "kernels": planned if removed is None else removed.artifacts,
        "strays": [str(stray.path) for stray in garbage.strays],
        "foreign": [str(stray.path) for stray in garbage.strays if not stray.leftover],
        "failed": removed.failed if removed else {},
        "garbage": [{"digest": digest, "size_bytes": size} for digest, size in rows.items()],
    }


def _show_collected(document: dict[str, Any]) -> None:
    if rows := document["garbage"]:
        emit_table(rows[:_FREED_SHOWN_MAX], ["digest", "size_bytes"])
    count, size, kept = document["blobs"], document["size_bytes"], document["kept"]
    for path in document["foreign"]:
        say(f"{path} is no blob and is left alone; `esper artifacts verify` says why, remove it by hand")
    for name, reason in document["failed"].items():
        say(f"{name} could not be removed: {reason}")
    if document["removed"]:
        emit_line(f"removed {count} blobs, {size} bytes; {kept} blobs stay")
    else:
        emit_line(f"{count} blobs, {size} bytes would be removed; {kept} blobs stay")
        say("`esper artifacts gc --yes` removes them")


def _check_age(days: float | None) -> None:
    # NaN is not below 0 either, so that typer's bounds would take it.
    if days is not None and not 0 <= days <= _DAYS_MAX:
        raise UsageError(
            f"--expired-days {days:g} cannot be used",
            cause=f"an age is 0 to {_DAYS_MAX} days",
            next_step="Write --expired-days 30",
        )


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.add_typer(artifacts, name="artifacts")
