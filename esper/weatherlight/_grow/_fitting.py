"""The warning that a loop of one's own gets when its policy has nothing for its slots."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from esper.kasmina import SlotSpec
from esper.weatherlight._unfit import unfit


def warn_of_unfit(policy: str, slots: Sequence[SlotSpec], *, leads: bool) -> None:
    """Warn, on the first of several ranks, when no slot takes any blueprint of the policy."""
    sentence = unfit(policy, {}, (slot.layout for slot in slots)) if leads else ""
    if sentence:
        hint = 'policy="fixed" grafts into any layout (docs/grow.md)'
        warnings.warn(f"{sentence}; {hint}", UserWarning, stacklevel=2)
