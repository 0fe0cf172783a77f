"""Asking somebody else's code: it may raise, leave the process, or never answer, and costs itself alone.

Each question is asked in a thread of its own. What is raised there stays there, `SystemExit` and `KeyboardInterrupt`
too, while an interrupt by a person reaches the main thread, which only waits. A thread cannot be killed: one that
does not answer is left behind, and whatever it says later is heard by nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Final, Generic, TypeVar

from esper.core.errors import EsperError
from esper.core.text import printable
from esper.karn._blueprint import Body, BodyOf
from esper.karn._errors import BlueprintError

T = TypeVar("T")

#: A body is a pure function that writes a page of JSON.
BODY_SECONDS_MAX: Final = 5.0
#: Far more than a kernel may have nodes, attributes included.
_VALUES_MAX: Final = 10_000


class NoAnswer(Exception):
    """Somebody else's code raised, or was `silent` for too long; the message says it in printable words."""

    def __init__(self, cause: str, *, silent: bool = False) -> None:
        super().__init__(cause)
        self.silent = silent


class BrokenBody(BlueprintError):
    """A body raised, did not answer, or returned what is no body."""


def answer_within(seconds: float, question: Callable[[], T]) -> T:
    """Return what `question` returns, asked in a thread of its own.

    Raises:
        EsperError: what it raises.
        NoAnswer: it raised anything else, or had not returned after `seconds`.
    """
    asking = _Asking(question)
    asking.start()
    asking.join(seconds)
    if asking.is_alive():
        raise NoAnswer(f"it did not answer within {seconds:g} s", silent=True)
    if isinstance(asking.error, EsperError):
        raise asking.error
    if asking.error is not None:
        raise NoAnswer(asking.cause) from asking.error
    return asking.answers[0]


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


class _Asking(threading.Thread, Generic[T]):
    """One question."""

    def __init__(self, question: Callable[[], T]) -> None:
        super().__init__(name="plugin", daemon=True)
        self._question = question
        self.answers: list[T] = []
        self.error: BaseException | None = None
        self.cause = ""

    def run(self) -> None:
        try:
            self.answers.append(self._question())
        # Not even SystemExit of somebody else's code ends this process; it is an answer to this question.
        except BaseException as error:  # noqa: BLE001 - see above
            self.cause = _words(error)
            self.error = error


def _words(error: BaseException) -> str:
    name = printable(type(error).__name__, limit=80)
    try:
        return printable(f"{name}: {error}") if str(error) else name
    except BaseException:  # noqa: BLE001 - an error of somebody else's may fail to say what it is
        return name


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
