"""`--enforce-latency`: what the members that a command starts do about overrun latency budgets."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Annotated

import typer

from esper.core.errors import UsageError

EnforceLatency = Annotated[
    bool,
    typer.Option(
        "--enforce-latency",
        help="Let overrun latency budgets end fetches and germinations; without it they are evidence.",
    ),
]
_VARIABLE = "ESPER_ENFORCE_LATENCY"


def enforce_latency(*, wanted: bool) -> None:
    """Let this process and those that it starts enforce latency budgets if `wanted`; before settings are read."""
    if wanted:
        os.environ[_VARIABLE] = "true"


def check_enforced(started: Iterable[str], *, wanted: bool) -> None:
    """Raise where budgets are to be enforced, but none of the members `started` trains.

    Raises:
        UsageError: a worker that runs already keeps the setting that it was started with.
    """
    if wanted and not any(name.startswith("tolaria-") for name in started):
        raise UsageError(
            "latency budgets cannot be enforced",
            cause="no worker was started here, and one that runs already keeps its own setting",
            next_step=f"start the workers with `esper serve --enforce-latency` or {_VARIABLE}=true",
        )
