"""`esper artifacts ...`: the stored bytes of kernels."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from esper.cli._console import JsonFlag, emit_json, emit_line, emit_table, open_fabric, say

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

    Each fault is appended as an event (KernelIntegrityFailed). Example: esper artifacts verify
    """
    from esper.core.errors import IntegrityError
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

    What was stored within the last hour stays. Without --yes nothing is touched. Example: esper artifacts gc --yes
    """
    from esper.core.clock import SYSTEM_CLOCK
    from esper.core.kernel import DirectoryBlobStore
    from esper.urza import find_garbage, named_by_the_log, read_inventory, remove_garbage

    with open_fabric() as fabric:
        store, now_ns = DirectoryBlobStore(fabric.home.blobs), SYSTEM_CLOCK.now_ns()
        inventory = read_inventory(fabric)
        garbage = find_garbage(
            inventory,
            store,
            named_by_the_log(fabric),
            home_id=fabric.home.home_id,
            now_ns=now_ns,
            expired_days=expired_days,
        )
        freed = 0
        if yes:
            with fabric.publisher("cli") as publisher:
                freed = remove_garbage(garbage, inventory, store, publisher, now_ns=now_ns)
    rows = [{"digest": blob.digest, "size_bytes": blob.size_bytes} for blob in garbage.blobs]
    document = {
        "removed": yes,
        "blobs": len(rows),
        "size_bytes": garbage.size_bytes,
        "freed_bytes": freed,
        "kept": garbage.kept,
        "kernels": [update.meta.subject for update in garbage.artifacts],
        "strays": [str(path) for path in garbage.strays],
        "garbage": rows,
    }
    if json:
        emit_json(document)
        return
    if rows:
        emit_table(rows[:_FREED_SHOWN_MAX], ["digest", "size_bytes"])
    if yes:
        emit_line(f"removed {len(rows)} blobs, {freed} bytes; {garbage.kept} blobs stay")
    else:
        emit_line(f"{len(rows)} blobs, {garbage.size_bytes} bytes would be removed; {garbage.kept} blobs stay")
        say("`esper artifacts gc --yes` removes them")


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.add_typer(artifacts, name="artifacts")
