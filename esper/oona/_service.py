"""What a subsystem offers to the supervisor that runs it."""

from __future__ import annotations

import threading
from typing import Protocol


class Service(Protocol):
    """One member of the system: runs in a process of its own and meets the others only in topics."""

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then drain, commit and return.

        Raises:
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
            EsperError: anything else that this member cannot go on from.
        """
