"""Work that is done again and again beside what a member is for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Self

from esper.core.errors import EsperError

_logger = logging.getLogger("esper.oona.housekeeping")


class Every:
    """A thread that does `work` every `seconds`, first after as long, until its block is left.

    An EsperError is logged with `failure` before it, and the work is tried again at the next turn: none of it is worth
    ending the member that it is done beside.
    """

    def __init__(self, seconds: float, work: Callable[[], object], *, name: str, failure: str) -> None:
        self._seconds = seconds
        self._work = work
        self._failure = failure
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self._work()
            except EsperError as error:
                _logger.warning("%s: %s", self._failure, error)
