"""The forge is killed at each step of a job: afterwards catalogue and store agree, and nothing was made in vain."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.crash_points import CRASH_EXIT_CODE, CRASH_POINTS
from esper.core.kernel import DirectoryBlobStore, get_artifact, verify_artifact
from esper.karn import KarnCatalog
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.tezzeret import build_service
from tests.campaigns import WHOLE, seed_of
from tests.conftest import RunningBroker, StartBroker
from tests.integration.driver import REPOSITORY
from tests.urza.harness import Log, forge, fresh_request, running

#: Where the forge dies -> what the kernel's log holds once another life has finished the job.
AGAIN = ["CompileStarted", "CompileStarted", "KernelCatalogUpdate", "CompileFinished"]
ONCE = ["CompileStarted", "KernelCatalogUpdate", "CompileFinished"]
STORY = {
    "tezzeret.started": AGAIN,
    "tezzeret.made": AGAIN,
    "store.written": AGAIN,
    "store.renamed": AGAIN,
    "store.spec": AGAIN,
    "store.weights": AGAIN,
    "tezzeret.stored": AGAIN,
    "tezzeret.catalogued": ONCE,
    "tezzeret.measured": ONCE,
    "tezzeret.reported": ONCE,
    "tezzeret.finished": ONCE,
    "tezzeret.retrying": ["CompileStarted", "CompileFailed", *AGAIN[1:]],
}
#: A cut of the campaign takes so many of them.
_CUT = 4


def die_at(broker: RunningBroker, point: str, **more: str) -> None:
    """Run a forge in a process of its own until it dies at `point`."""
    told = {"ESPER_HOME": str(broker.home.root), "ESPER_CRASH_AT": point, **more}
    if point == "tezzeret.retrying":
        told["ESPER_COMPILE_MEMORY_BYTES_MAX"] = str(1 << 28)  # too little for torch: a fault that may pass
    died = subprocess.run(
        [sys.executable, "-m", "esper.cli", "run", "tezzeret"],
        env=broker.environment | told,
        cwd=REPOSITORY,
        timeout=900,
        capture_output=True,
        text=True,
        check=False,
    )
    assert died.returncode == CRASH_EXIT_CODE, died.stderr


def test_every_step_of_a_job_is_killed() -> None:
    """Goal: no crash point is forgotten. Method: those of store and canonical part are the keys of the story."""
    of_jobs = {name for name in CRASH_POINTS if name.startswith(("tezzeret.", "store."))}
    assert STORY.keys() == {name for name in of_jobs if ".part-" not in name}


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
        # The session's store may hold what other tests damaged on purpose.
        others = {blob.digest for blob in store.blobs()}
        for point in points:
            log = Log(fabric, fresh_request())
            asked = log.ask_forge()
            die_at(local_broker, point)
            for digest in {blob.digest for blob in store.blobs()} - others:
                store.check(digest)
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


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_killed_while_it_makes_a_part_the_forge_judges_it_once(
    start_broker: StartBroker, record_property: pytest.RecordProperty
) -> None:
    """Goal: no part is listed whose bytes are not stored, and none is judged twice.

    Method: a broker of its own, one kernel; let a forge that makes compiled parts die at each step, then let another
    finish; read the verdicts. Whole: real parts, all steps; cut: parts that get half a second, the last step.
    """
    broker = start_broker()
    seconds = 900.0 if WHOLE else 0.5
    points = [name for name in CRASH_POINTS if ".part-" in name] if WHOLE else ["tezzeret.part-listed"]
    settings = broker.settings.model_copy(update={"compiled_parts": True, "compile_part_seconds_max": seconds})
    with Fabric.open(settings, member="test") as fabric:
        log, store = Log(fabric, fresh_request("BP014", gate_bias=-1.25)), DirectoryBlobStore(fabric.home.blobs)
        log.ask_forge()
        for point in points:
            die_at(broker, point, ESPER_COMPILED_PARTS="true", ESPER_COMPILE_PART_SECONDS_MAX=str(seconds))
            for listed in log.of(ly.KernelPartCompiled):
                assert not listed.chosen or len(store.get(listed.part_digest)) == listed.part_bytes
        deadline = Deadline(1800.0)
        with running(build_service(fabric, blueprints=KarnCatalog())):
            while len(log.of(ly.KernelPartCompiled)) < 2 and not deadline.expired:
                SYSTEM_CLOCK.sleep(0.2)
        verdicts = log.of(ly.KernelPartCompiled)
    assert [each.kind for each in verdicts] == [ly.COMPILED_KIND_AOT_TRAIN_PACKAGE, ly.COMPILED_KIND_AOT_PACKAGE]
    assert all(each.chosen != bool(each.reason) for each in verdicts), "chosen, or eager with the reason"
    record_property("killed_at", points)
    record_property("verdicts", [each.reason or "chosen" for each in verdicts])
