"""What a process in quarantine takes away from itself before it opens anything."""

from __future__ import annotations

import ctypes
import resource
import signal
import sys
import threading
from typing import Final

#: Room beyond the allowed memory, so that the limit that is watched from outside speaks before the kernel's does.
_MARGIN_BYTES: Final = 256 << 20
_STACK_BYTES: Final = 1 << 20
#: From linux/sched.h and linux/prctl.h.
_NEW_USER_NAMESPACE: Final = 0x1000_0000
_NEW_NETWORK_NAMESPACE: Final = 0x4000_0000
_PARENT_DEATH_SIGNAL: Final = 1


def confine_process(*, seconds: float) -> bool:
    """Bound the whole process: no core file, an end after `seconds` and when its parent ends.

    Call it first of all, before any thread exists. Returns whether the process has no network: it has none where
    Linux lets it make a network namespace of its own, and that is not claimed anywhere else.
    """
    ceiling = int(seconds) + 2
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_CPU, ceiling)
    # The alarm ends a process that sleeps, the limit on processor time one that is busy; nothing handles either.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(ceiling)
    threading.stack_size(_STACK_BYTES)
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    return any(
        libc.unshare(flags) == 0 for flags in (_NEW_USER_NAMESPACE | _NEW_NETWORK_NAMESPACE, _NEW_NETWORK_NAMESPACE)
    )


def confine_kernel(memory_bytes: int) -> None:
    """Let the process have about `memory_bytes` more than it has now, and write no file.

    Call it once everything is loaded: libraries try at their import whether a temporary file can be written.
    """
    _lower(resource.RLIMIT_FSIZE, 0)
    if not sys.platform.startswith("linux"):
        return
    with open("/proc/self/statm") as file:  # noqa: PTH123 - a path of the kernel's, not of the file system
        page, fields = resource.getpagesize(), file.read().split()
    # Data, not address space: torch reserves gigabytes of addresses that it never touches.
    _lower(resource.RLIMIT_DATA, int(fields[5]) * page + memory_bytes + _MARGIN_BYTES)


def _lower(which: int, most: int) -> None:
    _, hard = resource.getrlimit(which)
    least = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (least, least))
