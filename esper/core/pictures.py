"""Pictures by matplotlib, an extra: had where one is drawn, and written so that equal input gives equal bytes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from esper.core.errors import UsageError

KINDS: Final = ("png", "svg", "pdf")
_DOTS_PER_INCH: Final = 120


@contextmanager
def drawing(what: str, *, salt: str) -> Iterator[Any]:
    """Lend `matplotlib.figure`, with ids of SVG elements that follow from `salt`.

    Raises:
        UsageError: matplotlib is not installed; the message names `what` cannot be drawn.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
        figures = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise UsageError(
            f"{what} cannot be drawn",
            cause=str(error),
            next_step="Install the extra: pip install 'esper-grow[evaluate]'",
        ) from error
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        yield figures


def check_kind(path: Path) -> str:
    """Return the kind of picture that a file's ending names.

    Raises:
        UsageError: it names none of KINDS.
    """
    kind = path.suffix.lstrip(".")
    if kind not in KINDS:
        raise UsageError(
            f"no picture can be drawn into {path}",
            cause=f"its ending is {path.suffix or 'missing'}",
            next_step=f"End it with one of: {', '.join(KINDS)}",
        )
    return kind


def save(figure: Any, path: Path) -> None:  # noqa: ANN401 - matplotlib has no types of its own here
    """Write a figure; no time goes into the file. To be called while `drawing`.

    Raises:
        UsageError: as `check_kind`.
        OSError: the file cannot be written.
    """
    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(path, dpi=_DOTS_PER_INCH, metadata=dated.get(check_kind(path)))
