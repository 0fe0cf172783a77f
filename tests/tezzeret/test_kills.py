"""The forge is killed at each step of a job: afterwards catalogue and store agree, and nothing was made in vain."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from esper.core.crash_points import CRASH_EXIT_CODE, CRASH_POINTS
from esper.core.kernel import DirectoryBlobStore, get_artifact, verify_artifact
from esper.leyline import messages as ly
from esper.oona import Fabric
from tests.campaigns import WHOLE, seed_of
from tests.conftest import RunningBroker
from tests.integration.driver import REPOSITORY
from tests.urza.harness import Log, forge, fresh_request

#: Where the forge dies -> what the kernel's log holds once another life has finished the job.
AGAIN = ["CompileStarted", "CompileStarted", "KernelCatalogUpdate", "CompileFinished"]
ONCE = ["CompileStarted", "KernelCatalogUpdate", "CompileFinished"]
STORY = {
    "tezzeret.started": AGAIN,
    "tezzeret.made": AGAIN,
    "tezzeret.stored": AGAIN,
    "tezzeret.catalogued": ONCE,
    "tezzeret.measured": ONCE,
    "tezzeret.reported": ONCE,
    "tezzeret.finished": ONCE,
    "tezzeret.retrying": ["CompileStarted", "CompileFailed", *AGAIN[1:]],
}
#: A cut of the campaign takes so many of them.
_CUT = 4


def die_at(broker: RunningBroker, point: str) -> None:
    """Run a forge in a process of its own until it dies at `point`."""
    told = {"ESPER_HOME": str(broker.home.root), "ESPER_CRASH_AT": point}
    if point == "tezzeret.retrying":
        told["ESPER_COMPILE_MEMORY_BYTES_MAX"] = str(1 << 28)  # too little for torch: a fault that may pass
    died = subprocess.run(
        [sys.executable, "-m", "esper.cli", "run", "tezzeret"],
        env=broker.environment | told,
        cwd=REPOSITORY,
        timeout=300,
        capture_output=True,
        text=True,
        check=False,
    )
    assert died.returncode == CRASH_EXIT_CODE, died.stderr


def test_every_step_of_a_job_is_killed() -> None:
    """Goal: no crash point is forgotten. Method: those of the canonical part are the keys of the story."""
    assert STORY.keys() == {name for name in CRASH_POINTS if name.startswith("tezzeret.") and ".part-" not in name}


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_killed_at_any_step_the_job_ends_once(
    local_broker: RunningBroker, request: pytest.FixtureRequest, record_property: pytest.RecordProperty
) -> None:
    """Goal: kill -9 costs no job, no byte and no needless compilation.

    Method: for each crash point, ask for a kernel, run the real forge until it dies there, check that what the
    catalogue names is stored whole; start another forge, read the kernel's whole story. Whole: all points; cut: four.
    """
    seeded = random.Random(seed_of(request))  # noqa: S311 - chooses what a cut tries
    points = list(STORY) if WHOLE else seeded.sample(list(STORY), _CUT)
    with Fabric.open(local_broker.settings, member="test") as fabric:
        store = DirectoryBlobStore(fabric.home.blobs)
        for point in points:
            log = Log(fabric, fresh_request())
            asked = log.ask_forge()
            die_at(local_broker, point)
            for update in log.of(ly.KernelCatalogUpdate):
                verify_artifact(get_artifact(store, update.artifact_ref))
            with forge(fabric):
                ended = log.wait(ly.CompileFinished)
            assert log.words() == STORY[point], point
            assert [each.meta.causation_id for each in ended] == [asked]
            assert ended[0].HasField("prewarm"), "what the dead life did not measure, the next one does"
            verify_artifact(get_artifact(store, ended[0].artifact_ref))
            assert len(log.of(ly.BenchmarkReport)) == 1, point
    record_property("killed_at", points)
