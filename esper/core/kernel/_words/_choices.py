"""Words that weigh their children against each other, or run one child again and again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from esper.core.kernel._word import CHILDREN_MAX, Attributes, Shape, TensorPlan, Word, agreed, counted, kept, within

STEPS_MAX: Final = 64


def _routed(attributes: Attributes, shape: Shape, children: Sequence[Shape]) -> Shape | None:
    """Take what the experts, all children but the first, agree on; the first yields a number for each of them."""
    router, experts = children[0], children[1:]
    single = (*(1 for _ in shape[:-1]), len(experts))
    out = agreed(attributes, shape, experts)
    if out is None or out[:-1] != shape[:-1] or len(experts) != attributes["experts"]:
        return None
    return out if router in ((*shape[:-1], len(experts)), single) else None


def _switched(attributes: Attributes, shape: Shape, children: Sequence[Shape]) -> Shape | None:
    return _routed(attributes, shape, children) if children[0][:-1] == shape[:-1] else None


def _mixed(attributes: Attributes, shape: Shape, children: Sequence[Shape]) -> Shape | None:
    return agreed(attributes, shape, children) if len(children) == attributes["choices"] else None


def _expert_products(attributes: Attributes, _shape: Shape, out: Shape) -> int:
    return int(attributes["experts"]) * math.prod(out)


def _mixed_products(attributes: Attributes, _shape: Shape, out: Shape) -> int:
    return int(attributes["choices"]) * math.prod(out)


def _mixed_tensors(attributes: Attributes, _shape: Shape) -> dict[str, TensorPlan]:
    return {"alpha": TensorPlan((int(attributes["choices"]),))}


CHOICE_WORDS: Final[Mapping[str, Word]] = {
    # Of a router and experts: the experts' outputs, weighed by the softmax of what the router yields.
    "routed": Word(
        _routed,
        {"experts": counted(2, CHILDREN_MAX - 1)},
        children=(3, CHILDREN_MAX),
        products_of=_expert_products,
    ),
    # The same where the first choice alone answers, and no expert more than capacity * positions / experts of them.
    "switched": Word(
        _switched,
        {"experts": counted(2, CHILDREN_MAX - 1), "capacity": within(0.01, 100.0)},
        children=(3, CHILDREN_MAX),
        products_of=_expert_products,
    ),
    # The children's outputs, weighed by the softmax of one trained number each over the temperature.
    "mixed": Word(
        _mixed,
        {"choices": counted(2, CHILDREN_MAX), "temperature": within(0.01, 100.0)},
        children=(2, CHILDREN_MAX),
        tensors_of=_mixed_tensors,
        products_of=_mixed_products,
    ),
    # The flow of dx/dt = child(x) over one unit of time, in `steps` steps of the midpoint rule.
    "integrate": Word(
        kept,
        {"steps": counted(1, STEPS_MAX)},
        children=(1, 1),
        products_of=lambda attributes, _shape, out: 2 * int(attributes["steps"]) * math.prod(out),
        repeats_of=lambda attributes: 2 * int(attributes["steps"]),
    ),
    # z = child(z + x), `steps` times from z = 0.
    "recur": Word(
        kept, {"steps": counted(1, STEPS_MAX)}, children=(1, 1), repeats_of=lambda attributes: int(attributes["steps"])
    ),
}
