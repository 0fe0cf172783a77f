"""The figures that a loop gives with an edge, judged before the edge is counted: what cannot be recorded costs none."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from esper.core.errors import UsageError

_NEXT_STEP = "pass end_epoch({'loss': loss.item()}), and one number for every other name"


def judged(metrics: object, *, measured: bool) -> dict[str, float]:
    """Return the figures as floats; tensors and arrays of one number, and numpy's scalars, are taken as that number.

    `measured`: the held-out loss is measured by the run itself. NaN and infinities are figures: a loss may be one.

    Raises:
        UsageError: it is no mapping of names to numbers, or one that is needed is missing.
    """
    if not isinstance(metrics, Mapping):
        raise UsageError(
            "the epoch cannot end", cause=f"its metrics are {_kind(metrics)}, no mapping", next_step=_NEXT_STEP
        )
    figures = {_name(name): _number(name, value) for name, value in metrics.items()}
    if "loss" not in figures:
        raise UsageError("end_epoch needs the training loss", cause="metrics has no 'loss'", next_step=_NEXT_STEP)
    if "val_loss" not in figures and not measured:
        raise UsageError(
            "end_epoch needs a validation loss",
            cause="metrics has no 'val_loss', and grow() was given no probe and loss_fn to measure it with",
            next_step="pass end_epoch({'loss': ..., 'val_loss': ...}) or grow(..., probe=batches, loss_fn=loss)",
        )
    return figures


def _name(name: object) -> str:
    """Return a metric's name if it is text that a message can carry."""
    try:
        if isinstance(name, str) and name.encode():
            return name
    except UnicodeEncodeError:  # Half of a surrogate pair, say.
        pass
    raise UsageError("the epoch cannot end", cause=f"{name!r} is no name of a metric", next_step=_NEXT_STEP)


def _number(name: object, value: Any) -> float:  # noqa: ANN401 - whatever the caller gave
    one = value
    try:
        if not isinstance(value, Real) and hasattr(value, "item"):  # Of torch, numpy and others like them.
            one = value.item()
        if isinstance(one, Real):
            return float(one)
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise _no_number(name, value) from error
    raise _no_number(name, value)


def _no_number(name: object, value: object) -> UsageError:
    return UsageError("the epoch cannot end", cause=f"metric {name!r} is {_kind(value)}", next_step=_NEXT_STEP)


def _kind(value: object) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"a {type(value).__name__} of shape {tuple(shape)}"
    return repr(value) if len(repr(value)) <= 40 else f"of type {type(value).__name__}"
