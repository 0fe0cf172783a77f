"""Places at which a test may have a process die, as if it were killed there.

Work that has to survive a crash at any moment calls `crash_point` between its steps. In ordinary life that is one look
into the environment; a process that finds its own place in `ESPER_CRASH_AT` ends at once, without a cleanup, without
a flush, as under SIGKILL. It is no setting: nothing but a test has a use for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

#: Exit code of a process that died at a crash point, unlike that of any command.
CRASH_EXIT_CODE: Final = 86
_VARIABLE: Final = "ESPER_CRASH_AT"

#: Every crash point there is, and what has happened when it is reached.
CRASH_POINTS: Final[Mapping[str, str]] = {
    "tezzeret.started": "the log says that an attempt began; nothing was made",
    "tezzeret.made": "the compiler gave the kernel's bytes; none is stored",
    "tezzeret.stored": "all bytes of the kernel are stored; the catalogue does not name them",
    "tezzeret.catalogued": "the catalogue names the kernel; nothing was measured",
    "tezzeret.measured": "the kernel was measured; the log does not say so",
    "tezzeret.reported": "the log holds the measurement; the request has no end",
    "tezzeret.finished": "the request has its end; its offset is not committed",
    "tezzeret.retrying": "the log says that an attempt failed and another will follow",
    "store.written": "the bytes of a blob are written beside its place; nothing lies there",
    "store.renamed": "a blob lies at its place; nobody was told",
    "store.spec": "a kernel's spec is stored; its weights and manifest are not",
    "store.weights": "a kernel's spec and weights are stored; its manifest is not",
    "tezzeret.part-made": "a compiled part was made; none of it is stored",
    "tezzeret.part-stored": "a compiled part is stored; the log does not list it",
    "tezzeret.part-listed": "the log lists a compiled part",
    "tamiyo.read": "a packet was taken in; nothing is decided about it",
    "tamiyo.decided": "a decision was made; the log does not hold it",
    "tamiyo.recorded": "the log holds the decision; its command is not appended",
    "tamiyo.commanded": "the log holds the command; telemetry and reports are not sent, the offset is not committed",
    "tamiyo.reported": "what is owed was handed to the producer, which need not have sent it",
    "tamiyo.appointed": "another learned version is to decide; its network is not at hand",
    "tamiyo.swapped": "another learned version decides; nothing was decided by it",
    "tamiyo.breached": "a promoted version breached its watch; the log does not say so",
    "tamiyo.given-up": "the log gives a promoted version up; it still decides here",
}


def crash_point(name: str) -> None:
    """End this process here and now if `ESPER_CRASH_AT` names this place."""
    assert name in CRASH_POINTS, f"crash point {name!r} is not listed"
    if os.environ.get(_VARIABLE) == name:
        os._exit(CRASH_EXIT_CODE)
