"""The command line `esper ...`: parses, calls one function of a package below, and shows the answer."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; every deliberate error becomes one line on stderr and its exit code."""
    from esper.cli._app import app
    from esper.cli._console import say
    from esper.core.errors import EsperError

    try:
        app()
    except EsperError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has enough (`esper events cat | head`); that is no failure.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)


__all__ = ["main"]
