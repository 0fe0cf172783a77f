"""`esper collect`: many runs at once, for learning from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from esper.cli._console import JsonFlag, emit_json, emit_table, open_fabric, say
from esper.cli._progress import progress
from esper.cli._train import POLICY_HELP, pairs
from esper.weatherlight import (
    KERNEL_MAKERS,
    Collection,
    TrainingRequest,
    check_collection,
    check_learned,
    interrupt_on_sigterm,
    members_for_a_while,
)
from esper.weatherlight import collect as run_collection

_EPOCHS_MAX, _SEED_MAX, _RUNS_MAX = 2**32 - 1, 2**63 - 1, 10**7


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    with progress("epochs of all runs", total=total) as show:
        yield lambda episodes: show(advance=episodes)


def collect(
    task: Annotated[str, typer.Option(help="mnist1d, digits, spirals, one of an installed package, or your own.")] = (
        "mnist1d"
    ),
    host: Annotated[str, typer.Option(help="Host network; one of linear layers, norms and activations.")] = "mlp",
    policy: Annotated[str, typer.Option(help=POLICY_HELP)] = "heuristic",
    runs: Annotated[int, typer.Option(min=1, max=_RUNS_MAX, help="Runs to train; each is one episode.")] = 256,
    stack: Annotated[int, typer.Option(min=1, max=8192, help="Runs that are computed together.")] = 64,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes, each with stacks of its own.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, max=_EPOCHS_MAX, help="Epochs of each run.")] = 40,
    seed: Annotated[int, typer.Option(min=0, max=_SEED_MAX, help="Seed of the first run; the next counts on.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    slot: Annotated[list[str] | None, typer.Option(help="Module name of a slot; may be given again.")] = None,
    hyper: Annotated[list[str] | None, typer.Option(help="NAME=NUMBER of the task; may be given again.")] = None,
    policy_parameter: Annotated[
        list[str] | None, typer.Option(help="NAME=NUMBER for the policy; may be given again.")
    ] = None,
    digest_every: Annotated[int, typer.Option(min=1, help="Epochs between two digests of the weights.")] = 1,
    experiment: Annotated[str, typer.Option(help="Name that groups runs.")] = "",
    json: JsonFlag = False,
) -> None:
    """Train many runs in stacks, each recorded and verified like any other; starts missing kernel makers.

    Example: esper collect --task mnist1d --policy heuristic --runs 256 --stack 64 --epochs 40 --seed 1 --json
    """
    first = TrainingRequest(
        task=task,
        host=host,
        policy=policy,
        epochs=epochs,
        seed=seed,
        device=device,
        experiment=experiment,
        hyperparameters=pairs(hyper or [], "--hyper"),
        policy_parameters=pairs(policy_parameter or [], "--policy-parameter"),
        slots=tuple(slot or ()),
        digest_every_epochs=digest_every,
    )
    collection = Collection(first, runs=runs, stack=stack)
    check_collection(collection)
    fabric = open_fabric()
    check_learned(fabric, policy, first.policy_parameters)
    with _progress(runs * epochs) as progress, members_for_a_while(fabric.settings, wanted=KERNEL_MAKERS) as supervisor:
        interrupt_on_sigterm()
        if supervisor.names:
            say(f"starting {', '.join(supervisor.names)} for the time of this collection")
        document = run_collection(fabric, collection, workers=workers, progress=progress)
    if json:
        emit_json(document)
        return
    emit_table(
        [{"field": k, "value": v} for k, v in document.items() if k not in ("runs", "stacks")], ["field", "value"]
    )
    say(f"`esper runs verify {document['runs'][0]}` computes its whole stack again")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(collect)
