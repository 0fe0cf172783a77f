"""`esper demo`: one static and one growing run through a real broker, the proof by replay, one table."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.cli._console import JsonFlag, emit_json, layout, say, settings
from esper.cli._train import training_progress
from esper.core.clock import SYSTEM_CLOCK
from esper.core.errors import IntegrityError
from esper.core.home import Home
from esper.core.settings import Settings
from esper.oona import Cluster, Fabric, TopicCatalog, apply_topics, describe_topics
from esper.oona.broker import LocalBroker
from esper.weatherlight import SUBSYSTEMS, TrainingRequest, members_for_a_while, train

if TYPE_CHECKING:
    from rich.table import Table

_LATENCY_SQL = """
select quantile_disc(latency_ms, 0.5) as p50, quantile_disc(latency_ms, 0.99) as p99, max(latency_ms) as slowest,
  count(*) as epochs
from epochs where run_id in (?, ?)
"""

#: As it can be typed here: the virtual environment of `make setup` is seldom on the path.
_PROGRAM = "esper" if shutil.which("esper") else ".venv/bin/esper"
_NEXT = (
    "esper up && esper runs show RUN",
    "esper sql \"select epoch, seed_id, to_stage, reason from seed_moves where run_id = 'RUN'\"",
    "esper train --task digits --policy heuristic --seed 7",
    "esper events cat decisions --limit 1",
)


@contextmanager
def _broker(current: Settings) -> Iterator[None]:
    """Have a broker: any that runs is used and left running; one that is started here is stopped at the end."""
    broker = LocalBroker(home := Home.create(current), current) if current.loopback else None
    started = broker is not None and broker.bootstrap() is None
    if broker is not None:
        say(f"broker {broker.start()} {'started' if started else 'was running'}")
    try:
        changes = apply_topics(Cluster.open(current), TopicCatalog.load(current)).changes
        say(f"{len(changes)} topic changes applied; everything local lives in {Home.open(current).root}")
        yield
    finally:
        if broker is not None and started:
            broker.stop()
            say(f"broker stopped; its log stays in {home.broker}")


def _run_both(fabric: Fabric, *, epochs: int, seed: int) -> dict[str, dict[str, Any]]:
    documents = {}
    with members_for_a_while(fabric.settings, wanted=tuple(SUBSYSTEMS)) as supervisor:
        for policy in ("noop", "heuristic"):
            request = TrainingRequest(task="mnist1d", policy=policy, epochs=epochs, seed=seed)
            say(f"training mnist1d, seed {seed}, {epochs} epochs, policy {policy} ...")
            with training_progress(epochs) as progress:
                documents[policy] = train(fabric, request, supervisor, progress=progress)
        say("stopping the members ...")
    return documents


def _latency(fabric: Fabric, run_ids: list[str]) -> dict[str, Any]:
    from esper.projection import fresh_query

    with fresh_query(fabric) as query:
        row: dict[str, Any] = query(_LATENCY_SQL, run_ids).to_pylist()[0]
    return row


def _events(fabric: Fabric) -> dict[str, int]:
    topics = describe_topics(fabric.cluster, fabric.topics)
    return {topic.name: sum(high - low for low, high in topic.offsets) for topic in topics}


def _prove(fabric: Fabric) -> dict[str, Any]:
    """Delete every projection, rebuild all from the log, and compare with yet another replay."""
    from esper.projection import delete_all, replay, verify

    deleted = delete_all(fabric)
    say(f"{deleted} projection files deleted; rebuilding them from the log ...")
    rows = replay(fabric)
    return {
        "deleted": deleted,
        "records": sum(row["records"] for row in rows),
        "equal": verify(fabric)["equal"],
    }


def _seed_words(document: dict[str, Any]) -> str:
    seeds = [f"{seed['blueprint_id']} in {seed['slot']}: {seed['stage']}" for seed in document["seeds"]]
    return "\n".join(seeds) or "none"


def _table(static: dict[str, Any], grown: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title="the same network and seed, static and grown", title_justify="left")
    for column in ("", "static (noop)", "grown (heuristic)"):
        table.add_column(column, overflow="fold")
    for name, form in (
        ("test accuracy", "{:.1%}"),
        ("parameters", "{:,}"),
        ("multiply_adds", "{:,}"),
        ("multiply_adds_per_sample", "{:,}"),
        ("epochs", "{}"),
    ):
        field = name.removeprefix("test ")
        table.add_row(name.replace("_", " "), form.format(static[field]), form.format(grown[field]))
    table.add_row("seeds", _seed_words(static), _seed_words(grown))
    table.add_row("run", static["run_id"], grown["run_id"])
    return table


def _show(document: dict[str, Any]) -> None:
    show = layout().print
    static, grown = document["static"], document["grown"]
    show(_table(static, grown))
    loop, proof = document["control_loop_ms"], document["rebuild"]
    counts = ", ".join(f"{topic} {count}" for topic, count in document["events"].items() if count)
    figures = f"p50 {loop['p50']:.1f} ms, p99 {loop['p99']:.1f} ms, slowest {loop['slowest']:.0f} ms"
    show(f"control loop   {figures} over these {loop['epochs']} epochs (slowest: a kernel was made and gates measured)")
    show(f"log            {counts}")
    verdict = f"projections are {'EQUAL to' if proof['equal'] else 'DIFFERENT from'} the log"
    show(f"rebuild        {proof['records']} records folded anew (operations are in no projection); {verdict}")
    show(f"took           {document['seconds']:.0f} s")
    show("\nWhat to try next")
    for command in _NEXT:
        show("  " + command.replace("RUN", grown["run_id"]).replace("esper ", f"{_PROGRAM} "))


def demo(
    epochs: Annotated[int, typer.Option(min=5, help="Epochs of each run.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Seed of both runs.")] = 7,
    json: JsonFlag = False,
) -> None:
    """Train a static and a growing network through the log and show what it was worth. Example: esper demo"""
    current, begun = settings(), SYSTEM_CLOCK.monotonic()
    with _broker(current), Fabric.open(current, member="demo") as fabric:
        runs = _run_both(fabric, epochs=epochs, seed=seed)
        loop = _latency(fabric, [run["run_id"] for run in runs.values()])
        events = _events(fabric)
        proof = _prove(fabric)
        document = {
            "static": runs["noop"],
            "grown": runs["heuristic"],
            "control_loop_ms": loop,
            "events": events,
            "rebuild": proof,
            "seconds": SYSTEM_CLOCK.monotonic() - begun,
        }
    if json:
        emit_json(document)
    else:
        _show(document)
    if not proof["equal"]:
        raise IntegrityError("the rebuilt projections differ from the log", next_step="esper projections verify")


def register(app: typer.Typer) -> None:
    """Add this command to the tree."""
    app.command()(demo)
