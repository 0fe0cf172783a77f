"""`esper train`: ask for a run and wait for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from esper.cli._console import JsonFlag, emit_json, emit_table, open_fabric, say
from esper.cli._latency import EnforceLatency, check_enforced, enforce_latency
from esper.cli._progress import progress
from esper.core.errors import UsageError
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.weatherlight import (
    SUBSYSTEMS,
    TrainingRequest,
    absent,
    check_learned,
    check_request,
    interrupt_on_sigterm,
    members_for_a_while,
    unfit,
)
from esper.weatherlight import train as run_training

#: What the request's fields hold.
_EPOCHS_MAX, _SEED_MAX = 2**32 - 1, 2**64 - 1
_TASK_HELP = "mnist1d, digits, spirals, charlm, one of an installed package, or package.module:factory of your own."
POLICY_HELP = "noop, random, fixed, heuristic, learned, learned@VERSION, or a package's own."
_POLICY_PARAMETER_HELP = "NAME=NUMBER for the policy; may be given again."


def pairs(values: list[str], option: str) -> dict[str, float]:
    """Return {name: number} of "name=number" words.

    Raises:
        UsageError: a word is none, or two of them give one name.
    """
    result: dict[str, float] = {}
    for value in values:
        name, _, number = value.partition("=")
        if name in result:
            raise UsageError(
                f"{option} gives {name!r} twice",
                cause="only one number can be meant",
                next_step="leave one of them out",
            )
        try:
            result[name] = float(number)
        except ValueError as error:
            raise UsageError(
                f"{option} {value!r} cannot be used", cause="it is not NAME=NUMBER", next_step=f"Write {option} NAME=2"
            ) from error
    return result


def show_result(document: dict[str, Any]) -> None:
    """Print the document of a finished run."""
    rows = [{"field": k, "value": v} for k, v in document.items() if k != "seeds"]
    emit_table(rows, ["field", "value"])
    if document["seeds"]:
        emit_table(document["seeds"], ["seed_id", "slot", "blueprint_id", "stage"], title="seeds")


@contextmanager
def training_progress(epochs: int) -> Iterator[Callable[[ly.SystemStatePacket], None]]:
    """Show a bar on stderr where that is a terminal; yields what is to be told each epoch's packet."""
    with progress("starting members", total=epochs) as show:

        def tell(packet: ly.SystemStatePacket) -> None:
            words = f"val loss {packet.validation_loss:.3f}  accuracy {packet.validation_accuracy:.1%}"
            show(words, done=packet.current_epoch)

        yield tell


def telling_of_unfit(
    request: TrainingRequest, tell: Callable[[ly.SystemStatePacket], None]
) -> Callable[[ly.SystemStatePacket], None]:
    """Return `tell`, which at the first packet says also when no slot suits the policy: the worker knows the slots."""

    def told(packet: ly.SystemStatePacket) -> None:
        layouts = [slot.layout for slot in packet.slots] if packet.current_epoch == 1 else []
        if sentence := unfit(request.policy, request.policy_parameters, layouts):
            say(f"{sentence}; `--policy fixed --policy-parameter blueprint=N` grafts what fits (docs/tasks.md)")
        tell(packet)

    return told


def say_who_trains(fabric: Fabric, started: Sequence[str]) -> None:
    """Say which members train: those started for it, or those that are waited for."""
    if started:
        say(f"starting {', '.join(started)} for the time of this run")
    elif missing := absent(fabric):
        say(f"waiting for {', '.join(missing)}, which nobody is yet; `esper serve` starts them")


def say_asked(run_id: str) -> None:
    """Say which run is asked for."""
    say(f"run {run_id} is asked for")


def train(
    task: Annotated[str, typer.Option(help=_TASK_HELP)] = "mnist1d",
    host: Annotated[
        str,
        typer.Option(
            help="Host network: mlp, cnn, cnn_bn or transformer, as the task has it, or one of an installed package."
        ),
    ] = "mlp",
    policy: Annotated[str, typer.Option(help=POLICY_HELP)] = "heuristic",
    epochs: Annotated[int, typer.Option(min=1, max=_EPOCHS_MAX, help="Epochs to train.")] = 40,
    seed: Annotated[int, typer.Option(min=0, max=_SEED_MAX, help="Seed of all randomness.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    slot: Annotated[list[str] | None, typer.Option(help="Module name of a slot; may be given again.")] = None,
    hyper: Annotated[list[str] | None, typer.Option(help="NAME=NUMBER of the task; may be given again.")] = None,
    policy_parameter: Annotated[list[str] | None, typer.Option(help=_POLICY_PARAMETER_HELP)] = None,
    experiment: Annotated[str, typer.Option(help="Name that groups runs.")] = "",
    members: Annotated[bool, typer.Option(help="Start members that are missing.")] = True,
    enforce: EnforceLatency = False,
    json: JsonFlag = False,
) -> None:
    """Train a network that grows; starts missing members for its own duration.

    Example: esper train --task mnist1d --host mlp --policy heuristic --epochs 40 --seed 7 --json
    """
    request = TrainingRequest(
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
    )
    check_request(request)
    enforce_latency(wanted=enforce)
    fabric = open_fabric()
    check_learned(fabric, policy, request.policy_parameters)
    with (
        training_progress(epochs) as progress,
        members_for_a_while(fabric.settings, wanted=tuple(SUBSYSTEMS) if members else ()) as supervisor,
    ):
        check_enforced(supervisor.names, wanted=enforce)
        interrupt_on_sigterm()
        say_who_trains(fabric, supervisor.names)
        try:
            told = telling_of_unfit(request, progress)
            document = run_training(fabric, request, supervisor, progress=told, on_request=say_asked)
        except KeyboardInterrupt:
            say("interrupted: the run ends as cancelled; `esper runs list` shows it")
            raise
    from esper.projection import catch_up

    # The members started here are gone, the projector among them: what they wrote last is folded now.
    catch_up(fabric)
    if json:
        emit_json(document)
    else:
        show_result(document)
        say(f"`esper runs show {document['run_id']}` lists every epoch")


def register(app: typer.Typer) -> None:
    """Add this command to the tree."""
    app.command()(train)
