"""docs/rebuild.md does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from esper.projection import catch_up
from tests.conftest import RunningBroker
from tests.projection.log import one_run
from tests.projection.system import own_system

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rebuild.md"


def test_the_page_on_rebuilds_is_true(broker: RunningBroker, tmp_path: Path) -> None:
    """Goal: docs/rebuild.md keeps its word. Method: run its blocks in order beside a projector."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    script = "\n".join(["set -euo pipefail", *blocks])
    with own_system(broker, tmp_path) as system, system.projector():
        one_run(system, "run-a")
        catch_up(system.fabric)
        settings = system.settings
        assert settings.leyline_secret is not None
        environment = {
            **os.environ,
            "ESPER_HOME": str(settings.home),
            "ESPER_KAFKA_BOOTSTRAP": str(settings.kafka_bootstrap),
            "ESPER_LEYLINE_SECRET": settings.leyline_secret.get_secret_value(),
            "ESPER_TOPICS_DIR": str(settings.topics_dir),
            "ESPER_PROJECTIONS_DIR": str(settings.projections_dir),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "300",
        }
        shown = subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=400
        )
    assert shown.returncode == 0, shown.stderr
    assert "equal: the projections are what the log says" in shown.stderr
    assert "goes back to that" in shown.stderr
    assert "[True]" in shown.stdout
    assert "adds_up" in shown.stdout
    assert "False" not in shown.stdout
