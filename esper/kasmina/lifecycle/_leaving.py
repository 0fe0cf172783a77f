"""How a seed that is culled goes: at once, in a fall of its alpha, or in a shorter fall than the one it is in; pure."""

from __future__ import annotations

from typing import Final

from esper.kasmina.lifecycle._decide import Findings
from esper.kasmina.lifecycle._lifecycle import FALL_STEPS, FALLING_STAGES
from esper.kasmina.lifecycle._orders import Order
from esper.leyline import messages as ly

#: Why a CULL of a falling seed is refused: its alpha is at 0 as soon without it.
FALL_NOT_SHORTER: Final = "fall_not_shorter"


def leaving(order: Order, recorded: ly.CommandOutcome | None, *, alpha: float, wished: int, left: int = 0) -> Findings:
    """Return how the seed of a CULL or CANCEL goes: off at once, or by a fall of `wished` steps from `alpha`.

    `left`: how many steps the fall still takes that the seed is in. What was recorded binds a re-execution, and an
    outcome that names no fall is of a time when there was none.
    """
    if recorded is not None and recorded.reason == FALL_NOT_SHORTER:
        return Findings(problem=FALL_NOT_SHORTER, alpha=alpha)
    steps = wished if recorded is None else round(recorded.choices.get(FALL_STEPS, 0.0))
    if order.from_stage in FALLING_STAGES and steps >= left:
        return Findings(problem=FALL_NOT_SHORTER, alpha=alpha)
    choices = {FALL_STEPS: float(steps)}
    if not steps:
        return Findings(alpha=alpha, choices=choices)
    return Findings(alpha=alpha, path=(ly.SEED_STAGE_CULLED,), metrics=choices, choices=choices)
