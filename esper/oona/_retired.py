"""Where administrative clients go when nobody needs them any more: never into the hands of the garbage collector.

librdkafka ends the whole process when a client is destroyed in the thread that serves its own answers. That thread
makes Python objects of them, so it may be the one that collects garbage while another answer is on its way.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from confluent_kafka.admin import AdminClient

from esper.core.clock import SYSTEM_CLOCK

#: Longer than any request is waited for: by then no answer is on its way.
_GRACE_SECONDS: Final = 120.0
_retired: Final[deque[tuple[float, AdminClient]]] = deque()


def retire(client: AdminClient) -> None:
    """Keep a client until its last answers have come; may be called by the garbage collector, in any thread."""
    _retired.append((SYSTEM_CLOCK.monotonic(), client))


def drop_retired() -> int:
    """Destroy, in the thread of the caller, the clients that were retired long enough ago; return how many."""
    due, count = SYSTEM_CLOCK.monotonic() - _GRACE_SECONDS, 0
    while _retired and _retired[0][0] <= due:
        try:
            _retired.popleft()
        except IndexError:  # Another thread took it.
            break
        count += 1
    return count
