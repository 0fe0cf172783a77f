"""Runs one real Tamiyo member in a process of its own: `python -m tests.tamiyo.member HOME INSTANCE`."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from esper.core.settings import load_settings
from esper.oona import Fabric
from esper.tamiyo import build_service


def main() -> None:
    """Answer packets until SIGTERM."""
    home, instance = Path(sys.argv[1]), sys.argv[2]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with Fabric.open(load_settings(_env_file=None, home=home), member=instance) as fabric:
        build_service(fabric, instance=instance).run(stop)


if __name__ == "__main__":
    main()
