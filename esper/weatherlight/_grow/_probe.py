"""The held-out batches that gates measure on, looked at before anything is started."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, Final

from esper.core.apart import forked_rng
from esper.core.errors import UsageError
from esper.core.inputs import Batch, samples_in

_NEXT_STEP: Final = "give batches of (inputs, targets), as in probe=[(inputs, targets)], or a DataLoader of them"
#: A probe is held in memory and measured whole at every edge; one without an end must not fill the former.
_BATCHES_MAX: Final = 100_000
_PAIR: Final = 2


def held_out(probe: Iterable[Any] | None) -> list[Batch] | None:
    """Return the batches of a probe, in a list of their own: what comes as an iterable is gone through once.

    What is drawn for it (a DataLoader draws a seed for each pass, a data set augments) leaves the CPU's streams as they
    were.

    Raises:
        UsageError: it is none, holds no batch, or one of its batches is no pair of inputs and targets with a sample.
    """
    if probe is None:
        return None
    if not isinstance(probe, Iterable):
        raise _unusable(f"it is of type {type(probe).__name__}, which holds none")
    with forked_rng():
        batches = [_batch(each, at) for at, each in enumerate(itertools.islice(probe, _BATCHES_MAX + 1))]
    if not batches:
        raise _unusable("it holds no batch", next_step=f"{_NEXT_STEP}; leave it out to do without gates G2 and G4")
    if len(batches) > _BATCHES_MAX:
        raise _unusable(f"it holds more than {_BATCHES_MAX} batches")
    return batches


def _batch(given: Any, at: int) -> Batch:  # noqa: ANN401 - whatever the caller gave
    """Return one batch, as a pair; several inputs that a DataLoader made a list of are a tuple again."""
    if not isinstance(given, list | tuple) or len(given) != _PAIR:
        raise _unusable(f"its batch {at} is {_kind(given)}, no pair of inputs and targets")
    inputs, targets = given
    inputs = tuple(inputs) if isinstance(inputs, list) else inputs
    try:
        count = samples_in(inputs)
    except UsageError as error:
        raise _unusable(f"the inputs of its batch {at} are {_kind(inputs)}: {error.cause}") from error
    if count == 0:
        raise _unusable(f"its batch {at} holds no sample")
    return inputs, targets


def _kind(value: object) -> str:
    kind = f"a {type(value).__name__}"
    return f"{kind} of {len(value)}" if isinstance(value, list | tuple) else kind


def _unusable(cause: str, *, next_step: str = _NEXT_STEP) -> UsageError:
    return UsageError("the probe cannot be used", cause=cause, next_step=next_step)
