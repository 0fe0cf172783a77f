"""A body of somebody else's, asked in bounded time, and its answer, taken for nothing but data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from esper.core.asking import NoAnswer, answer_within
from esper.karn._blueprint import Body, BodyOf
from esper.karn._errors import BlueprintError

#: A body is a pure function that writes a page of JSON.
BODY_SECONDS_MAX: Final = 5.0
#: Far more than a kernel may have nodes, attributes included.
_VALUES_MAX: Final = 10_000


class BrokenBody(BlueprintError):
    """A body raised, did not answer, or returned what is no body."""


class GuardedBody:
    """A body of somebody else's, asked in bounded time; one that was silent once is not asked again."""

    def __init__(self, body: BodyOf, *, blueprint_id: str, layout: str, seconds: float = BODY_SECONDS_MAX) -> None:
        self._body = body
        self._name = f"the body of blueprint {blueprint_id} for layout {layout!r}"
        self._seconds = seconds
        self._silent = False

    def __call__(self, features: int, parameters: Mapping[str, float]) -> Body:
        """Return the body as plain data.

        Raises:
            BrokenBody: it raised, did not answer in time now or before, or returned what is no body.
            EsperError: what it raises of these.
        """
        if self._silent:
            raise self._broken(features, "it did not answer before")
        try:
            return answer_within(self._seconds, lambda: _plain(self._body(features, parameters)))
        except NoAnswer as error:
            self._silent = error.silent
            raise self._broken(features, str(error)) from error

    def _broken(self, features: int, cause: str) -> BrokenBody:
        return BrokenBody(
            f"{self._name} gave no tree for {features} features",
            cause=cause,
            next_step="correct or remove the package that brings it",
        )


def _plain(body: object) -> Body:
    """Return the body, made of what JSON has; raises TypeError, ValueError, RecursionError."""
    if type(body) is not Body:
        raise TypeError(f"{type(body).__name__} is no esper.karn.Body")
    if type(body.features) is not int or type(body.mixed) is not bool or type(body.plain) is not bool:
        raise TypeError("a Body's features are a whole number, mixed and plain are True or False")
    _check_plain(body.tree, [_VALUES_MAX])
    return body


def _check_plain(value: object, left: list[int]) -> None:
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"its tree holds more than {_VALUES_MAX} values")
    if isinstance(value, dict):
        for name, entry in value.items():
            if not isinstance(name, str):
                raise TypeError(f"its tree has a key that is no text: {type(name).__name__}")
            _check_plain(entry, left)
    elif isinstance(value, list):
        for entry in value:
            _check_plain(entry, left)
    elif not isinstance(value, str | int | float):
        raise TypeError(f"its tree holds a {type(value).__name__}, which JSON does not have")
