"""Figures held against their bounds, as every gate records them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Final, Literal

from esper.leyline import messages as ly

Comparison = Literal["<=", ">=", "==", ">"]
_COMPARE: Final[Mapping[Comparison, Callable[[float, float], bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    ">": operator.gt,
}


def check(name: str, value: float, comparison: Comparison, bound: float) -> ly.GateCheck:
    """Return one figure held against its bound; NaN never passes."""
    passed = _COMPARE[comparison](value, bound)
    return ly.GateCheck(name=name, value=value, bound=bound, comparison=comparison, passed=passed)
