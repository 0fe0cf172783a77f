"""Crash points: they end a process only where they are told to."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from esper.core.crash_points import CRASH_EXIT_CODE, CRASH_POINTS, crash_point


@pytest.mark.parametrize(("told", "code"), [("", 0), ("tezzeret.made", CRASH_EXIT_CODE), ("tezzeret.stored", 0)])
def test_only_the_named_place_ends_the_process(told: str, code: int) -> None:
    """Goal: the right place and no other. Method: pass one place in a process that was told none, this, another."""
    script = "from esper.core.crash_points import crash_point; crash_point('tezzeret.made')"
    environment = {**os.environ, "ESPER_CRASH_AT": told}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == code


def test_places_are_listed() -> None:
    """Goal: a typing error is seen. Method: pass a place that is not listed; every listed one says what it is."""
    with pytest.raises(AssertionError, match="not listed"):
        crash_point("nowhere")
    assert all(CRASH_POINTS.values())
