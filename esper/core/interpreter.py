"""Settings of the interpreter for long work by several threads, and where other interpreters find this package."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import esper

#: A thread that comes back from a library waits so long for one that computes; by default 5 ms, for each of its calls.
_SWITCH_SECONDS: Final = 0.000_1
#: So many new objects until the garbage collector looks for cycles, of which such work makes none; by default 700.
_NEW_OBJECTS: Final = 100_000


@contextmanager
def tuned_for_throughput() -> Iterator[None]:
    """Let threads take turns quickly and the garbage collector look seldom, in the whole process, for a block."""
    seconds, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.set_threshold(_NEW_OBJECTS, *thresholds[1:])
    try:
        yield
    finally:
        sys.setswitchinterval(seconds)
        gc.set_threshold(*thresholds)


def package_path() -> str:
    """Return the folder that `esper` is imported from: a subprocess told so as PYTHONPATH finds the same one."""
    return str(Path(esper.__file__).parent.parent)
