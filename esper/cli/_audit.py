"""`esper audit ...`: bundles of the log that a stranger can check."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from esper.cli._console import JsonFlag, emit_json, emit_line, emit_table, open_fabric, say
from esper.core._log_key import read_public_key
from esper.core.errors import IntegrityError, UsageError
from esper.oona.proof import export_from_cluster, verify_bundle

audit = typer.Typer(no_args_is_help=True, help="Show a part of the log to a stranger, who can check it.")


@audit.command()
def export(
    words: Annotated[list[str], typer.Argument(metavar="[RUN] OUT", help="Run to export, and the file to write.")],
    range_: Annotated[
        str | None, typer.Option("--range", help="TOPIC-PARTITION:FROM-TO instead of a run, TO not included.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Write a run, or a range of a partition, with checkpoints, blobs and public key into one file.

    Example: esper audit export run-12ab34cd56ef audit.jsonl
    """
    if len(words) != (2 if range_ is None else 1):
        raise UsageError(
            "a bundle needs a subject and a file",
            cause=f"{len(words)} names were given" + ("" if range_ is None else " beside --range"),
            next_step="Run `esper audit export RUN OUT` or `esper audit export --range runs-3:0-120 OUT`",
        )
    exported = export_from_cluster(
        open_fabric(), Path(words[-1]), run_id=words[0] if range_ is None else None, range_=range_
    )
    if json:
        emit_json({"path": words[-1], **asdict(exported)})
    else:
        say(
            f"{words[-1]}: {exported.records} records, {exported.hidden} more by their hash, {exported.blobs} blobs, "
            f"{exported.checkpoints} checkpoints; give it away with the home's log-key.pub"
        )


@audit.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="File that `esper audit export` wrote.")],
    public_key: Annotated[str, typer.Option(help="Public log key: a file, or 64 hexadecimal digits.")],
    json: JsonFlag = False,
) -> None:
    """Check a bundle with the public key alone: no Kafka, no home, no secret. Exit code 4 when something is wrong.

    Example: esper audit verify audit.jsonl --public-key log-key.pub
    """
    key = read_public_key(public_key)
    try:
        with bundle.open("rb") as file:
            verdict = verify_bundle(file, public_key=key)
    except OSError as error:
        raise UsageError(f"{bundle} cannot be read", cause=error.strerror or str(error)) from error
    document = verdict.document()
    if json:
        emit_json(document)
    else:
        _show(document)
    if not verdict.ok:
        sys.exit(IntegrityError.exit_code)


def _show(document: dict[str, Any]) -> None:
    if document["bad"]:
        emit_table(document["bad"], ["topic", "partition", "offset", "kind"])
        emit_line(f"{document['bad_total']} FAULTS; the first: {document['first_bad']['detail']}")
    by_hash = f"{document['records_by_hash']} more by their hash"
    emit_line(f"{document['records']} records, {by_hash}, {document['blobs']} blobs")
    for claim in document["claims"] if document["ok"] else ():
        emit_line(f"checked: {claim}")
    for limit in document["not_claimed"]:
        emit_line(f"not claimed: {limit}")


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.add_typer(audit, name="audit")
