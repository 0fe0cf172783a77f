"""How long work shows how far it is: a line on stderr where that is a terminal, and nothing elsewhere.

Rich takes a sixth of a second to import, so only who shows a line does it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Tell(Protocol):
    """Takes what there is to say; whatever is left out stays as it was."""

    def __call__(
        self,
        words: str | None = None,
        *,
        done: float | None = None,
        total: float | None = None,
        advance: float | None = None,
    ) -> None: ...


@contextmanager
def progress(words: str, *, total: float | None = None, spins: bool = False) -> Iterator[Tell]:
    """Show `words` with a bar, or a spinner where there is no end to see; yields what changes them.

    With a `total` the bar counts, too. What is shown goes away at the end.
    """
    if not sys.stderr.isatty():
        yield lambda *_, **__: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    text, clock = TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    counts = (MofNCompleteColumn(),) if total is not None else ()
    columns = (SpinnerColumn(), text, clock) if spins else (text, BarColumn(), *counts, clock)
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as shown:
        line = shown.add_task(words, total=total)
        yield lambda words=None, *, done=None, total=None, advance=None: shown.update(
            line, description=words, completed=done, total=total, advance=advance
        )
