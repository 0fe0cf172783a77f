"""Keeps a member in its group while one of its events takes long."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from esper.core.clock import Deadline
from esper.oona.consuming._membership import Membership

_logger = logging.getLogger("esper.oona.membership")

_EVERY_SECONDS_MAX: Final = 1.0
#: Looks within the time that a member may ask for no records.
_LOOKS: Final = 6


class KeepAlive:
    """A thread that looks, once a second, whether its member is still at work with the same event.

    It then does what the member cannot: it asks the group for nothing, records held back, so that partitions are
    not lost and those that are taken away are given up in time. It stops doing so after `seconds_max`, because a
    handler that never returns must not keep its partitions for ever. Fast handlers never notice it.
    """

    def __init__(
        self, membership: Membership, progress: Callable[[], int], *, poll_seconds: float, seconds_max: float
    ) -> None:
        self._membership = membership
        self._progress = progress
        self._every_seconds = min(_EVERY_SECONDS_MAX, poll_seconds / _LOOKS)
        self._seconds_max = seconds_max
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="consumer-keep-alive", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; closing twice does nothing."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        seen, deadline, said = -1, Deadline(0.0), False
        while not self._closing.wait(self._every_seconds):
            progress = self._progress() if self._membership.working else -1
            if progress != seen:
                seen, deadline, said = progress, Deadline(self._seconds_max), False
            elif progress >= 0 and not deadline.expired:
                self._membership.keep_alive()
            elif progress >= 0 and not said:
                said = self._membership.stood_still = True
                _logger.error("an event is at work for over %g seconds; its place is given up", self._seconds_max)
