"""`esper evaluate`: a paired comparison of arms, run through the log, with a verdict that is recomputed from it."""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.cli._console import JsonFlag, emit_json, emit_line, emit_table, open_fabric, plain, say
from esper.cli._progress import progress
from esper.core.errors import OperationFailed, UsageError
from esper.core.files import write_atomically
from esper.weatherlight import check_evaluation, interrupt_on_sigterm, positions_of, report_evaluation
from esper.weatherlight import evaluate as run_evaluation

if TYPE_CHECKING:
    from esper.oona import Fabric
    from esper.simic.trials import Plan

_DIGEST_SHOWN = 16
_PROBLEMS_SAID = 6
_MODE = 0o644


def evaluate(
    plan: Annotated[Path, typer.Argument(help="Plan of the evaluation, a YAML file; see docs/evaluation.md.")],
    only: Annotated[list[str] | None, typer.Option(help="Run this arm alone; may be given again.")] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing: report what the log holds.")] = False,
    at: Annotated[
        Path | None, typer.Option(help="An earlier report.json: report the log as it stood for that one.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report; evaluations/ of the home.")] = None,
    stack: Annotated[int, typer.Option(min=1, max=8192, help="Runs that are computed together at most.")] = 64,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that train beside each other.")] = 1,
    json: JsonFlag = False,
) -> None:
    """Compare arms over tasks, hosts and paired seeds as a plan states it, and judge; exits 1 where that is blocked.

    Example: esper evaluate benchmarks/evaluation/plan.yaml --workers 2 --out report

    What the log holds of the plan is not run again: ended and called anew, the command goes on. The report
    (report.json, report.md, learning curves as PNG and SVG) and the verdict (GROWTH_PAYS, POLICY_PAYS, NOT_SHOWN or
    BLOCKED) are computed from the runs in the log alone, up to offsets that the report names.
    """
    from esper.simic.trials import load_plan

    stated = load_plan(plan)
    if at is not None and not report_only:
        raise UsageError("--at names a past of the log", next_step="Give --report-only with it")
    fabric = open_fabric()
    if report_only:
        document = report_evaluation(fabric, stated, at=_offsets(at, stated))
    else:
        document = _run(fabric, stated, only=only or [], stack=stack, workers=workers)
    folder = out or fabric.home.root / "evaluations" / stated.digest[:_DIGEST_SHOWN]
    files = _write(document, folder)
    if json:
        emit_json(document)
    else:
        _show(document)
    say(f"{', '.join(path.name for path in files)} written to {folder}")
    found = document["verdict"]
    if found["word"] == "BLOCKED":
        raise OperationFailed(
            "the verdict is blocked",
            cause="; ".join(found["reasons"][:_PROBLEMS_SAID]),
            next_step="The report lists all that speaks against the runs; called again, this runs what is missing",
        )


def _run(fabric: Fabric, plan: Plan, *, only: list[str], stack: int, workers: int) -> dict[str, Any]:
    absent = check_evaluation(fabric, plan, only=only)
    for arm, why in absent.items():
        say(f"arm {arm} cannot be run: {why}")
    interrupt_on_sigterm()
    with progress("reading the log", total=1.0) as show:

        def tell(words: str) -> None:
            say(words)
            show(words)

        document = run_evaluation(
            fabric,
            plan,
            only=only,
            absent=absent,
            stack=stack,
            workers=workers,
            tell=tell,
            advance=lambda done, total: show(done=done, total=total),
        )
    from esper.projection import catch_up

    # The members started here are gone: what they wrote last is folded now, for `esper sql` and `esper runs`.
    catch_up(fabric)
    return document


def _offsets(at: Path | None, plan: Plan) -> Mapping[tuple[str, int], int] | None:
    if at is None:
        return None
    try:
        earlier = json_format.loads(at.read_text(encoding="utf-8"))
        digest = earlier["plan"]["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"the report {at} cannot be read", cause=str(error), next_step="Give a report.json of `esper evaluate`"
        ) from error
    if digest != plan.digest:
        raise UsageError(
            f"the report {at} is another plan's", cause=f"its digest is {digest}, the plan's {plan.digest}"
        )
    return positions_of(earlier.get("offsets"))


def _write(document: dict[str, Any], folder: Path) -> list[Path]:
    from esper.simic.trials import draw_curves, markdown

    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = draw_curves(document, folder)
        report, page = folder / "report.json", folder / "report.md"
        text = json_format.dumps(plain(document), indent=1, sort_keys=True, allow_nan=False)
        write_atomically(report, text.encode() + b"\n", mode=_MODE)
        linked = [path.name for path in pictures if path.suffix == ".svg"]
        write_atomically(page, markdown(document, figures=linked).encode(), mode=_MODE)
    except OSError as error:
        raise UsageError(f"the report cannot be written to {folder}", cause=str(error)) from error
    return [report, page, *pictures]


def _show(document: dict[str, Any]) -> None:
    rows = [
        {
            "split": row["split"],
            "arm": row["arm"],
            "pairs": row["runs"],
            "accuracy": f"{row['accuracy']['mean']['value']:.2%}",
            "interval": f"{row['accuracy']['mean']['low']:.2%} to {row['accuracy']['mean']['high']:.2%}",
            "multiply_adds": f"{row['multiply_adds']:.3g}",
            "parameters": f"{row['parameters']:,.0f}",
            "seconds": f"{row['seconds']:.1f}",
        }
        for row in document["arms"]
    ]
    columns = ["split", "arm", "pairs", "accuracy", "interval", "multiply_adds", "parameters", "seconds"]
    emit_table(rows, columns, title="arms")
    found = document["verdict"]
    emit_line(f"verdict: {found['word']}")
    for reason in found["reasons"]:
        emit_line(f"  {reason}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(evaluate)
