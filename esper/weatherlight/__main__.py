"""`python -m esper.weatherlight SUBSYSTEM INDEX`: one member as a process of its own."""

from __future__ import annotations

import logging
import os
import sys
import threading

from esper.core.errors import Busy, EsperError
from esper.core.settings import load_settings
from esper.weatherlight._members import Member, niceness, run_member, stop_on_signals

_STDIN = 0
#: Not one of those that no restart cures: whoever holds the name may be gone by the next look.
_BUSY_EXIT_CODE = 75


def stop_with_parent(stop: threading.Event) -> None:
    """Set `stop` when the supervisor's end of our stdin closes, so that no member outlives it unseen."""

    def watch() -> None:
        # The bare descriptor: a thread inside sys.stdin's lock would abort the interpreter at its end.
        while os.read(_STDIN, 1):
            pass
        stop.set()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def main(arguments: list[str]) -> int:
    """Run the member that `arguments` name; return its exit code."""
    stop = stop_on_signals()
    stop_with_parent(stop)
    try:
        settings = load_settings()
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
        logging.getLogger("esper").setLevel(settings.log_level)
        member = Member(arguments[0], int(arguments[1]))
        os.nice(niceness(member))
        run_member(settings, member, stop)
    except EsperError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the supervisor shows this line
        return _BUSY_EXIT_CODE if isinstance(error, Busy) else error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
