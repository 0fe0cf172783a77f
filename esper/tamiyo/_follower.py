"""A thread that follows the topic `policy`, so that no packet waits while a new version is read and unpacked."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from esper.core.errors import BrokerUnavailable, EsperError, NotReadyError
from esper.core.policy import Term
from esper.tamiyo._policies import LearnedPolicies

_logger = logging.getLogger("esper.tamiyo")

#: How long closing may wait for the thread; an event wakes it at once.
_POLL_SECONDS: Final = 0.1
#: What could not be read for now is tried again after so long.
_RETRY_SECONDS: Final = 1.0


class PolicyFollower:
    """Keeps `policies` up to the log from `start` to `close`.

    `on_term` is called in the thread with each new term, after it is in force here, and `after_look` after every look.
    An error that ends the thread is raised by `check`, for the member to end with it.
    """

    def __init__(
        self, policies: LearnedPolicies, *, on_term: Callable[[Term], None], after_look: Callable[[], None]
    ) -> None:
        self._policies = policies
        self._on_term = on_term
        self._after_look = after_look
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: EsperError | None = None

    def start(self) -> None:
        """Read to the topic's end, then follow.

        Raises:
            NotReadyError, BrokerUnavailable: the topic could not be read.
        """
        term = self._policies.read()
        self._thread = threading.Thread(target=self._run, args=(term,), name="policies", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise the error that ended the thread, if one did."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop following; closing twice does nothing."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, known: Term) -> None:
        try:
            while not self._stop.is_set():
                known = self._look(known)
        except EsperError as error:
            _logger.warning("the topic policy is not followed any more: %s", error)
            self._error = error

    def _look(self, known: Term) -> Term:
        try:
            term = self._policies.latest(_POLL_SECONDS)
            if term != known:
                self._on_term(term)
                known = term
            self._after_look()
        except BrokerUnavailable:
            raise
        except NotReadyError as error:
            _logger.warning("policies are not followed for now: %s", error)
            self._stop.wait(_RETRY_SECONDS)
            return known
        return known
