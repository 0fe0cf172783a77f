"""The process in quarantine: reads a trial from its standard input, says on its standard output what it measures.

Started by `_process` as a module, never imported by it. One JSON object a line, the last of which is "done" or
"failed"; what bounds it stands in `_confine`.
"""

from __future__ import annotations

import json
import sys
from typing import BinaryIO, Final

_TEXT_MAX: Final = 500


def main(source: BinaryIO, sink: BinaryIO) -> None:
    """Read, confine, load, train, and say how it went."""
    from esper.core.quarantine._confine import confine_kernel, confine_process
    from esper.core.quarantine._trial import decode

    trial, settings = decode(source)
    alone = confine_process(seconds=settings.wall_seconds)
    import psutil
    import torch

    from esper.core.quarantine._steps import Line, run_steps

    torch.set_num_threads(1)
    confine_kernel(settings.memory_bytes)

    def say(line: Line) -> None:
        sink.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        sink.flush()

    # What the process has before the kernel: by its own count, for whoever watches it may look only much later.
    own = psutil.Process()
    begun = {"memory_bytes": own.memory_info().rss, "threads": own.num_threads()}
    say({"kind": "ready", "no_network": float(alone), **begun})
    try:
        run_steps(trial, settings, say)
    except Exception as error:  # noqa: BLE001 - whatever a kernel does is a result, and the parent judges it
        say({"kind": "failed", "error_kind": _kind(error), "error": f"{type(error).__name__}: {error}"[:_TEXT_MAX]})


def _kind(error: Exception) -> str:
    """Return what was refused to the process, if that is what the error says."""
    text = str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "not enough memory" in text:
        return "memory"
    return "threads" if "can't start new thread" in text else ""


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
