"""A share of the learning rate that lasts: everything that a schedule computes its rates from is scaled at once.

All rates of torch's schedulers are linear in these figures, so that every later rate is the share of what it would be.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from torch import Tensor
from torch.optim import lr_scheduler, swa_utils

#: Entries of an optimiser's group that a schedule computes rates from.
RATES: Final = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
#: What schedulers keep themselves; `eps` is the least change of a rate that a plateau's scheduler makes.
_KEPT: Final = ("base_lrs", "max_lrs", "min_lrs", "default_min_lr", "eta_min", "_last_lr", "eps")
#: What torch gives every scheduler, whoever wrote it.
_KEPT_BY_ALL: Final = ("base_lrs", "_last_lr")
_KNOWN: Final = frozenset(
    {getattr(lr_scheduler, name) for name in lr_scheduler.__all__} - {lr_scheduler.LRScheduler} | {swa_utils.SWALR}
)


def rates_of(group: dict[str, Any]) -> dict[str, Any]:
    """Return what of an optimiser's group a schedule computes rates from."""
    return {name: group[name] for name in RATES if name in group}


def scaled(value: Any, ratio: float) -> Any:  # noqa: ANN401 - a rate, rates, or None
    """Return a rate, a list of them or None, times `ratio`; numbers of other kinds are left alone."""
    if isinstance(value, list | tuple):
        return type(value)(scaled(each, ratio) for each in value)
    is_rate = isinstance(value, int | float | Tensor) and not isinstance(value, bool)
    return value * ratio if is_rate else value


def scale_schedule(scheduler: object, ratio: float) -> list[str]:
    """Scale what a scheduler, and those within it, compute rates from; the optimiser's groups are the caller's.

    Returns the names of those whose kind is not torch's own: they may keep figures that nobody here knows of.
    """
    strangers = []
    for one in _all_of(scheduler, set()):
        known = isinstance(one, tuple(_KNOWN))
        for name in _KEPT if known else _KEPT_BY_ALL:
            if name in getattr(one, "__dict__", ()):
                setattr(one, name, scaled(getattr(one, name), ratio))
        if type(one) not in _KNOWN:
            strangers.append(type(one).__name__)
    return strangers


def _all_of(scheduler: Any, seen: set[int]) -> Iterator[Any]:  # noqa: ANN401 - schedulers have no common base
    """Give a scheduler and those that it is made of, each once."""
    if scheduler is None or id(scheduler) in seen:
        return
    seen.add(id(scheduler))
    yield scheduler
    for inner in getattr(scheduler, "_schedulers", ()):
        yield from _all_of(inner, seen)
