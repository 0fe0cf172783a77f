"""Which blueprints a policy can order and tell apart: registries of embeddings, folded from the log of decisions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from esper.core.policy import LAYOUT_CODES, NONE, OPERATIONS, OptionEntry, blueprint_code
from esper.simic.experience._columns import DecisionColumns, Flags, Floats, HeadColumns

_LABEL: Final = re.compile(r"(?P<name>[^()]+)\((?P<inside>[^()]*)\)")
_GERMINATE: Final = OPERATIONS.index("germinate")


@dataclass(frozen=True)
class Registry:
    """The options that a policy may germinate, in the order of its head, and the blueprints that it tells apart."""

    options: tuple[OptionEntry, ...] = ()
    blueprints: tuple[int, ...] = ()

    def place(self, label: str) -> int | None:
        """Return the place of an action in the blueprint head, 0 for none; None of one that is not registered."""
        if label == NONE:
            return 0
        return next((at for at, option in enumerate(self.options, start=1) if option.label == label), None)


def registered(registry: Registry, decisions: Sequence[DecisionColumns]) -> Registry:
    """Return the registry with what decisions could germinate besides, in the order of their names; nothing is removed.

    An option fits the layouts of the slots that it could be germinated in. One that never could be is not registered.
    """
    layouts: dict[str, set[str]] = {}
    for part in decisions:
        for label, found in _fitted(part).items():
            layouts.setdefault(label, set()).update(found)
    known = {option.label: option for option in registry.options}
    grown = [
        option.model_copy(update={"layouts": _sorted({*option.layouts, *layouts.get(option.label, ())})})
        for option in registry.options
    ]
    new = [_entry(label, found) for label, found in sorted(layouts.items()) if label not in known]
    options = (*grown, *(entry for entry in new if entry is not None))
    numbers = {blueprint_code(option.blueprint_id) for option in options} - {0, *registry.blueprints}
    return Registry(options, (*registry.blueprints, *sorted(numbers)))


def _sorted(layouts: set[str]) -> tuple[str, ...]:
    return tuple(sorted(layouts, key=lambda layout: LAYOUT_CODES[layout]))


def _fitted(part: DecisionColumns) -> dict[str, set[str]]:
    """Return the layouts of the slots that each option could be germinated in, by label."""
    heads = {head.name: head for head in part.heads}
    if not {"operation", "slot", "blueprint"} <= set(heads):
        return {}
    rows = np.flatnonzero(heads["operation"].chosen == _GERMINATE)
    codes = _layout_codes(part, heads["slot"], rows)
    found: dict[str, set[str]] = {}
    for place, label in enumerate(heads["blueprint"].actions[1:], start=1):
        possible: Flags = heads["blueprint"].mask[rows, place]
        fitting = {name for name, code in LAYOUT_CODES.items() if bool((possible & (codes == code)).any())}
        if fitting:
            found[label] = fitting
    return found


def _layout_codes(part: DecisionColumns, slot: HeadColumns, rows: np.ndarray) -> Floats:
    """Return the layout code of the slot that each of these decisions took."""
    codes = np.zeros(len(rows))
    for place, name in enumerate(slot.actions[1:], start=1):
        column = part.observations[rows, part.names.index(f"slot/{name}/layout")]
        codes = np.where(slot.chosen[rows] == place, column, codes)
    return codes


def _entry(label: str, layouts: set[str]) -> OptionEntry | None:
    """Return the option that an action's name says; None where it says none."""
    found = _LABEL.fullmatch(label)
    if found is None:
        return None
    try:
        pairs = [part.split("=", 1) for part in found["inside"].split(",") if part]
        parameters = tuple((name, float(value)) for name, value in pairs)
    except ValueError:
        return None
    return OptionEntry(blueprint_id=found["name"], parameters=parameters, layouts=_sorted(layouts))
