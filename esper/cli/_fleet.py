"""`esper fleet`: ask for many runs at once and wait for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from esper.cli._console import JsonFlag, emit_json, emit_table, open_fabric, say
from esper.cli._progress import progress
from esper.cli._train import pairs
from esper.core.errors import OperationFailed, UsageError
from esper.weatherlight import (
    TrainingRequest,
    check_learned,
    check_request,
    fleet_members,
    grid,
    interrupt_on_sigterm,
    train_fleet,
)

_COLUMNS = ["run_id", "host", "policy", "seed", "status", "epochs", "accuracy", "worker", "attempts"]


def seeds_of(text: str) -> list[int]:
    """Return the seeds that "0-4,9" names: numbers and ranges, both ends included.

    Raises:
        UsageError: it is something else.
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"--seeds {text!r} cannot be used", next_step="Write numbers and ranges: --seeds 0-4,9")
        found += range(int(first), int(last or first) + 1)
    return found


@contextmanager
def _progress(runs: int) -> Iterator[Callable[[Mapping[str, int]], None]]:
    """Show how many runs are over, on stderr where that is a terminal."""
    with progress("starting members", total=runs) as show:

        def tell(counts: Mapping[str, int]) -> None:
            over = counts["finished"] + counts["failed"]
            words = f"{counts['running']} running  {counts['requested']} waiting  {counts['failed']} failed"
            show(words, done=over)

        yield tell


def fleet(
    task: Annotated[str, typer.Option(help="Task of every run, as `esper train` takes it.")] = "mnist1d",
    host: Annotated[list[str] | None, typer.Option(help="Host network; may be given again.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="Policy; may be given again.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds: numbers and ranges, 0-4,9.")] = "0-4",
    epochs: Annotated[int, typer.Option(min=1, max=2**32 - 1, help="Epochs of every run.")] = 40,
    workers: Annotated[int, typer.Option(min=1, help="Workers to have; those that are missing are started.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda; ESPER_WORKER_DEVICES gives each worker its own.")] = "cpu",
    hyper: Annotated[list[str] | None, typer.Option(help="NAME=NUMBER of the task; may be given again.")] = None,
    experiment: Annotated[str, typer.Option(help="Name that groups the runs.")] = "",
    json: JsonFlag = False,
) -> None:
    """Train a run for every host, policy and seed over several workers; exits 1 when one of them fails.

    Example: esper fleet --task mnist1d --policy heuristic --policy noop --seeds 0-4 --epochs 40 --workers 2 --json
    """
    base = TrainingRequest(
        task=task, epochs=epochs, device=device, experiment=experiment, hyperparameters=pairs(hyper or [], "--hyper")
    )
    requests = grid(base, seeds=seeds_of(seeds), policies=policy or (), hosts=host or ())
    for request in {(one.host, one.policy): one for one in requests}.values():
        check_request(request)
    fabric = open_fabric()
    for one in {each.policy: each for each in requests}.values():
        check_learned(fabric, one.policy, one.policy_parameters)
    with _progress(len(requests)) as tell, fleet_members(fabric.settings, workers=workers) as supervisor:
        interrupt_on_sigterm()
        if supervisor.names:
            say(f"starting {', '.join(supervisor.names)} for the time of the fleet")

        def said(document: dict[str, Any] | None) -> None:
            if document is not None:
                say(f"run {document['run_id']} {document['status']} after {document['epochs']} epochs")

        documents = train_fleet(fabric, requests, supervisor, progress=tell, on_end=lambda run: said(run.document))
    from esper.projection import catch_up

    # The members started here are gone, the projector among them: what they wrote last is folded now.
    catch_up(fabric)
    if json:
        emit_json(documents)
    else:
        emit_table([{name: one.get(name, "") for name in _COLUMNS} for one in documents], _COLUMNS)
    failed = [one["run_id"] for one in documents if one["status"] != "finished"]
    if failed:
        raise OperationFailed(
            f"{len(failed)} of {len(documents)} runs failed",
            cause=", ".join(failed[:6]),
            next_step="`esper runs show RUN` says why",
        )


def register(app: typer.Typer) -> None:
    """Add this command to the tree."""
    app.command()(fleet)
