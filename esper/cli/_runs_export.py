"""`esper runs export`: the network of a recorded run, for use without Esper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esper.cli._console import JsonFlag, emit_json, emit_line, open_fabric
from esper.cli._runs import runs
from esper.cli._runs_verify import repeat_progress


@runs.command()
def export(
    run_id: Annotated[str, typer.Argument(help="Id of the run.")],
    to: Annotated[Path, typer.Option(help="File to write: NAME.safetensors, with NAME.py beside it, or NAME.pt2.")],
    json: JsonFlag = False,
) -> None:
    """Write the network of a run, to be used without Esper. Example: esper runs export run-92955d72d813 --to net.pt2

    The run is computed again and compared with its record first.
    """
    from esper.weatherlight import export_run

    with repeat_progress() as progress:
        document = export_run(open_fabric(), run_id, to, to.suffix.removeprefix("."), on_epoch=progress)
    if json:
        emit_json(document)
    else:
        emit_line(f"{' and '.join(document['files'])}: the network of run {run_id} after epoch {document['epochs']}")


def register(_: typer.Typer) -> None:
    """Have this command among those of `esper runs`, which are added by their own module."""
