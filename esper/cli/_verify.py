"""`esper verify`: proves the log, or names what is wrong with it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from esper.cli._console import JsonFlag, emit_json, emit_line, emit_table, open_fabric
from esper.core._log_key import read_public_key
from esper.core.errors import IntegrityError
from esper.oona.proof import Request, Verdict, verify_cluster


def verify(
    topic: Annotated[str | None, typer.Option(help="Only this topic; default: all.")] = None,
    start: Annotated[int | None, typer.Option("--from", min=0, help="First offset of every partition.")] = None,
    end: Annotated[int | None, typer.Option("--to", min=1, help="Offset to stop before.")] = None,
    public_key: Annotated[
        str | None, typer.Option(help="Public log key, a file or 64 digits; default: the home's log-key.pub.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Prove signatures, writers, chains, offsets and checkpoints of the log. Exit code 4 when something is wrong.

    A range is widened to the signed places around it. Example: esper verify --topic runs --from 0 --to 500
    """
    given = None if public_key is None else read_public_key(public_key)
    verdict = verify_cluster(open_fabric(), Request(topic, start, end), public_key=given)
    if json:
        emit_json(verdict.document())
    else:
        _show(verdict)
    if not verdict.ok:
        sys.exit(IntegrityError.exit_code)


def _show(verdict: Verdict) -> None:
    if verdict.bad:
        emit_table([one.document() for one in verdict.bad], ["topic", "partition", "offset", "kind", "detail"])
    state = "no fault was found" if verdict.ok else f"{verdict.bad_total} FAULTS, the first ones are listed"
    emit_line(f"{verdict.records} records were read: {state}")
    if verdict.checkpoints:
        emit_line(f"last checkpoint: number {verdict.last_number}, digest {verdict.last_digest.hex()}")
    for claim in verdict.claims:
        emit_line(f"checked: {claim}")
    for limit in verdict.not_claimed:
        emit_line(f"not claimed: {limit}")


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(verify)
