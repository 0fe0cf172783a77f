"""Learning curves of a report as pictures, drawn from its document alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from esper.core.pictures import drawing, save

#: Of the epochs of a run, and of what training spent.
_AXES: Final = {"epoch": "epoch", "multiply_adds": "multiply-adds of all training of the arm"}
_FORMATS: Final = ("png", "svg")
_COLUMNS: Final = 3
_INCHES: Final = (4.2, 3.2)
#: Two for colours, two for lines: ten arms stay apart in grey.
_LINES: Final = ("-", "--", "-.", ":")


def draw_curves(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the learning curves by epoch and by compute as PNG and SVG into `folder`; return the files.

    Lines are means over seeds, bands the middle half. The same document gives the same SVG, byte for byte. Nothing is
    written for a report without curves.

    Raises:
        UsageError: matplotlib is not installed.
    """
    if not document["curves"]:
        return []
    written = []
    with drawing("the learning curves", salt=document["plan"]["digest"]) as figures:
        for axis in _AXES:
            figure = _figure(figures, document, axis)
            for kind in _FORMATS:
                path = folder / f"curves_{axis}.{kind}"
                save(figure, path)
                written.append(path)
    return written


def _figure(figures: Any, document: Mapping[str, Any], axis: str) -> Any:  # noqa: ANN401 - another package's
    cells = [(cell["task"], cell["host"]) for cell in document["plan"]["cells"]]
    columns = min(_COLUMNS, len(cells))
    rows = math.ceil(len(cells) / columns)
    figure = figures.Figure(figsize=(_INCHES[0] * columns, _INCHES[1] * rows + 0.8), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    arms = list(dict.fromkeys(curve["arm"] for curve in document["curves"]))
    for place, (task, host) in zip(places, cells, strict=False):
        for curve in document["curves"]:
            if (curve["task"], curve["host"]) == (task, host):
                _line(place, curve["points"], axis, arms.index(curve["arm"]), label=curve["arm"])
        place.set_title(f"{task}, {host}", fontsize=9)
        place.set_xlabel(_AXES[axis], fontsize=8)
        place.set_ylabel("validation accuracy", fontsize=8)
        place.tick_params(labelsize=7)
        place.grid(visible=True, alpha=0.3)
        if axis == "multiply_adds":
            place.set_xscale("log")
    for place in places[len(cells) :]:
        place.set_visible(False)
    handles = {
        label: handle for place in places for handle, label in zip(*place.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=7)
    return figure


def _line(place: Any, points: Any, axis: str, number: int, *, label: str) -> None:  # noqa: ANN401 - another package's
    across = [point[axis] for point in points]
    colour = f"C{number}"
    place.plot(
        across, [point["accuracy"] for point in points], _LINES[number % len(_LINES)], color=colour, lw=1.2, label=label
    )
    lows, highs = ([point[name] for point in points] for name in ("low", "high"))
    place.fill_between(across, lows, highs, color=colour, alpha=0.12, linewidth=0)
