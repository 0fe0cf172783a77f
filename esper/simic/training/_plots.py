"""The curves of a line of versions as a picture, drawn from their document alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from esper.core.errors import NotReadyError, UsageError
from esper.core.pictures import check_kind, drawing, save

_COLUMNS: Final = 3
_INCHES: Final = (4.2, 2.6)


def draw_training(document: Mapping[str, Any], path: Path) -> None:
    """Write one panel for each figure of `esper policy curves` over the rounds of the line.

    Versions are set apart by a line where each begins. The same document gives the same SVG, byte for byte.

    Raises:
        NotReadyError: the document has no rounds.
        UsageError: matplotlib is not installed, the file's ending names no kind of picture, or it cannot be written.
    """
    check_kind(path)
    if not document["line"]:
        raise NotReadyError(
            f"there is nothing to draw of {document['version']}",
            cause="the log holds no telemetry of its line's rounds",
            next_step="Telemetry stays for seven days; `esper policy train --again VERSION` computes the version again",
        )
    with drawing("the curves of a training", salt=document["version"]) as figures:
        try:
            save(_figure(figures, document), path)
        except OSError as error:
            raise UsageError(f"the curves cannot be written to {path}", cause=str(error)) from error


def _figure(figures: Any, document: Mapping[str, Any]) -> Any:  # noqa: ANN401 - matplotlib has no types of its own here
    rows = [(entry["version"], figures_of) for entry in document["line"] for figures_of in entry["rounds"]]
    names = sorted({name for _, each in rows for name in each} - {"round"})
    columns = min(_COLUMNS, max(1, len(names)))
    lines = max(1, math.ceil(len(names) / columns))
    figure = figures.Figure(figsize=(_INCHES[0] * columns, _INCHES[1] * lines + 0.4), layout="constrained")
    places = figure.subplots(lines, columns, squeeze=False).flatten()
    begins = [at for at, (version, _) in enumerate(rows) if at == 0 or rows[at - 1][0] != version]
    for place, name in zip(places, names, strict=False):
        place.plot(range(1, len(rows) + 1), [each.get(name, math.nan) for _, each in rows], lw=1.2, marker=".", ms=3)
        for at in begins:
            place.axvline(at + 0.5, color="grey", lw=0.6, alpha=0.6)
        place.set_title(name, fontsize=9)
        place.set_xlabel("rounds of the line", fontsize=8)
        place.tick_params(labelsize=7)
        place.grid(visible=True, alpha=0.3)
    for place in places[len(names) :]:
        place.set_visible(False)
    figure.suptitle(f"{document['version']}, a version of {len(begins)} in its line", fontsize=10)
    return figure
