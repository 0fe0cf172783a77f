"""The compiler subprocess, seen from within: reads work from its input, answers on its output, knows no secret.

Run by the forge as `python -m esper.tezzeret._worker`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Final

from esper.tezzeret._faults import kind_of
from esper.tezzeret._wire import Frame, pack, read_frame

#: Work that computes on its threads may use more processor time than wall-clock time, within reason.
_CPU_PER_SECOND: Final = 4


def main() -> None:
    """Answer until the input ends."""
    os.nice(int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What libraries print goes to the log, never between two answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    threading.Thread(target=_die_with_the_forge, name="hangup", daemon=True).start()
    from esper.tezzeret._work import warm_up, work

    warm_up()
    with os.fdopen(0, "rb", closefd=False) as questions:
        while (frame := read_frame(questions)) is not None:
            _limit_processor_time(frame)
            try:
                answer = work(frame)
            # Whatever the work raises is an answer: the forge tells what may pass from what may not.
            except Exception as error:  # noqa: BLE001 - see above
                answer = Frame(
                    {"ok": False, "kind": kind_of(error), "cause": f"{type(error).__name__}: {error}"[:2000]}
                )
            answers.write(pack(answer))
            answers.flush()


def _limit_processor_time(frame: Frame) -> None:
    """Let the kernel end work that nobody is left to end: the forge may be gone, and this process too busy to see."""
    seconds = frame.header.get("seconds")
    assert isinstance(seconds, int | float), "the forge says how long work may take"
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used + _CPU_PER_SECOND * seconds) + 1, hard))


def _die_with_the_forge() -> None:
    """Kill this process and all it started as soon as nobody can write to its input any more."""
    poll = select.poll()
    poll.register(0, 0)  # a hang-up is reported unasked
    while not any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll()):
        pass
    with contextlib.suppress(OSError):
        shutil.rmtree(Path.cwd(), ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
