"""Writes the table of docs/blueprints.md from the catalogue: `python -m tests.karn.catalogue_page`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from esper.karn import Blueprint
from esper.karn._shipped import SHIPPED_BLUEPRINTS

PAGE = Path(__file__).parents[2] / "docs" / "blueprints.md"
BEGIN, END = "<!-- catalogue -->\n", "<!-- end of catalogue -->\n"
_HEAD = "| Id | Name | Tier | Risk | Stage | Flags | Parameters | Layouts | What it is |\n" + "|---" * 9 + "|\n"


def _row(blueprint: Blueprint) -> str:
    flags = ("Q" if blueprint.quarantine_only else "") + ("A" if blueprint.approval_required else "")
    bounds = ", ".join(f"`{name}` {low:g} to {high:g}" for name, (low, high) in blueprint.parameters.items())
    cells: Iterator[str] = iter(
        (
            blueprint.blueprint_id,
            f"`{blueprint.name}`",
            blueprint.tier,
            f"{blueprint.risk:g}",
            str(blueprint.stage),
            flags,
            bounds,
            " ".join(blueprint.layouts),
            blueprint.description.replace("|", "\\|"),
        )
    )
    return f"| {' | '.join(cells)} |\n"


def written(page: str) -> str:
    """Return the page with the table as the catalogue is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = _HEAD + "".join(_row(blueprint) for blueprint in SHIPPED_BLUEPRINTS)
    return before + BEGIN + "\n" + table + "\n" + END + after


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
