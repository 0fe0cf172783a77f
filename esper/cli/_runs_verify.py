"""`esper runs verify` and `esper runs restore`: a recorded run, computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from esper.cli._console import JsonFlag, emit_json, emit_line, open_fabric, say
from esper.cli._progress import progress
from esper.cli._runs import runs
from esper.core.errors import IntegrityError

RunId = Annotated[str, typer.Argument(help="Id of the run.")]


@contextmanager
def repeat_progress() -> Iterator[Callable[[int], None]]:
    """Show on stderr, where that is a terminal, which epoch was computed again last; yields what is to be told."""
    with progress("reading the log") as show:
        yield lambda epoch: show(f"epoch {epoch} computed again")


@runs.command()
def verify(
    run_id: RunId,
    anyway: Annotated[bool, typer.Option("--anyway", help="Also under other numerics, code or data.")] = False,
    json: JsonFlag = False,
) -> None:
    """Compute a run again from the log and compare every digest. Example: esper runs verify run-92955d72d813

    Exits 3 where numerics, code or data are other than recorded, and 4 where it does not come out as recorded.
    """
    from esper.weatherlight import verify_run

    with repeat_progress() as progress:
        verified = verify_run(open_fabric(), run_id, anyway=anyway, on_epoch=progress)
    document = verified.document
    for difference in verified.elsewhere:
        say(f"otherwise here: {difference}")
    if json:
        emit_json(document)
    elif verified.equal:
        emit_line(f"run {run_id}: all {document['epochs']} epochs come out as recorded")
    if not verified.equal:
        first = document["first_difference"]
        raise IntegrityError(
            f"run {run_id} does not come out as recorded",
            cause="in epoch {epoch} {field} is {repeated}, the log says {recorded}".format(**first),
            next_step="`esper verify` shows whether records were altered",
        )


@runs.command()
def restore(
    run_id: RunId,
    epoch: Annotated[int, typer.Option(min=1, help="Epoch at whose end the network is wanted.")],
    to: Annotated[Path, typer.Option(help="File to write, as safetensors.")],
    json: JsonFlag = False,
) -> None:
    """Write the network of an epoch. Example: esper runs restore run-92955d72d813 --epoch 20 --to net.safetensors"""
    from esper.weatherlight import restore_run

    with repeat_progress() as progress:
        document = restore_run(open_fabric(), run_id, epoch, to, on_epoch=progress)
    if json:
        emit_json(document)
        return
    source = f"a checkpoint of epoch {document['from_epoch']}" if document["from_epoch"] else "the run's beginning"
    emit_line(
        f"{to}: epoch {epoch} of run {run_id}, digest {document['digest']}, from {source}"
        f" and {document['repeated_epochs']} epochs computed again, {document['seconds']:.1f} s"
    )


def register(_: typer.Typer) -> None:
    """Have these commands among those of `esper runs`, which are added by their own module."""
