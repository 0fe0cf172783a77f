"""Asking somebody else's code: it may raise, leave the process, or never answer, and costs itself alone.

Each question is asked in a thread of its own. What is raised there stays there, `SystemExit` and `KeyboardInterrupt`
too, while an interrupt by a person reaches the main thread, which only waits. A thread cannot be killed: one that
does not answer is left behind, and whatever it says later is heard by nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from esper.core.errors import EsperError
from esper.core.text import in_words

T = TypeVar("T")


class NoAnswer(Exception):
    """Somebody else's code raised, or was `silent` for too long; the message says it in printable words."""

    def __init__(self, cause: str, *, silent: bool = False) -> None:
        super().__init__(cause)
        self.silent = silent


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
            self.cause = in_words(error)
            self.error = error
