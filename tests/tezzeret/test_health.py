"""The forge's breaker, retries, and what it refuses to make or to run."""

from __future__ import annotations

import pytest

from esper.core.approvals import descriptor_digest
from esper.core.clock import ManualClock
from esper.core.errors import UsageError
from esper.karn import KarnCatalog
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.tezzeret import build_service
from esper.tezzeret._faults import CompilerDied, CompileTimeout, passes, reason_of
from esper.tezzeret._health import ForgeHealth
from esper.tezzeret._jobs import KernelFacts, Step, Strategy, backoff_seconds, decide, fold
from esper.tezzeret._metrics import ForgeMetrics
from tests.conftest import RunningBroker
from tests.urza.harness import Log, fresh_request, running


def health(clock: ManualClock, metrics: ForgeMetrics) -> ForgeHealth:
    """Return the health of a forge that opens at two faults, for ten seconds."""
    return ForgeHealth(failures_max=2, open_seconds=10.0, metrics=metrics, clock=clock)


def test_faults_in_a_row_make_it_conservative_until_a_probe_succeeds() -> None:
    """Goal: open, conservative, probe, recovered. Method: faults and good jobs on a clock that is moved by hand."""
    clock, metrics = ManualClock(), ForgeMetrics("test")
    forge = health(clock, metrics)
    for error in (CompilerDied("x"), CompileTimeout("y")):
        strategy = forge.begin()
        assert strategy is Strategy.STANDARD
        forge.end(strategy, error)
    assert forge.begin() is Strategy.CONSERVATIVE
    assert forge.conservative.is_set()
    assert metrics.value("tezzeret.conservative_mode") == 1
    assert metrics.value("tezzeret.breaker.state") == ly.CIRCUIT_STATE_OPEN
    clock.advance(10.0)
    probe = forge.begin()
    assert probe is Strategy.STANDARD
    assert forge.begin() is Strategy.CONSERVATIVE, "one probe at a time"
    forge.end(probe, CompilerDied("again"))
    assert forge.begin() is Strategy.CONSERVATIVE
    clock.advance(10.0)
    forge.end(forge.begin(), None)
    assert forge.begin() is Strategy.STANDARD
    assert not forge.conservative.is_set()
    assert metrics.value("tezzeret.conservative_mode") == 0


def test_bad_requests_open_no_breaker() -> None:
    """Goal: a caller's mistakes cost nobody else. Method: a hundred of them, also as a probe."""
    clock, metrics = ManualClock(), ForgeMetrics("test")
    forge, mistake = health(clock, metrics), UsageError("no such thing")
    for _ in range(100):
        forge.end(forge.begin(), mistake)
    assert forge.begin() is Strategy.STANDARD
    forge.end(Strategy.STANDARD, CompilerDied("x"))
    forge.end(forge.begin(), CompilerDied("x"))
    clock.advance(10.0)
    forge.end(forge.begin(), mistake)
    assert forge.begin() is Strategy.STANDARD, "a mistake is no probe: the next job is"


def test_a_retried_failure_is_no_end() -> None:
    """Goal: the fold tells an attempt's failure from a request's. Method: fold attempts, decide after each."""
    facts = KernelFacts()
    about = ly.EventMeta(causation_id="one")
    for number in range(1, 4):
        assert decide(facts, "one", stored=False) is Step.COMPILE
        facts = fold(facts, ly.CompileStarted(meta=about))
        assert facts.tries == {"one": number}
        facts = fold(facts, ly.CompileFailed(meta=about, retried=True))
    assert decide(facts, "one", stored=False) is Step.GIVE_UP
    assert decide(facts, "two", stored=False) is Step.COMPILE
    facts = fold(facts, ly.CompileFailed(meta=about))
    assert decide(facts, "one", stored=False) is Step.NOTHING
    assert facts.tries == {}


def test_waits_double_up_to_a_bound() -> None:
    """Goal: backoff is bounded. Method: many tries."""
    assert [backoff_seconds(tries, 0.5) for tries in (1, 2, 3, 20)] == [0.5, 1.0, 2.0, 10.0]


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (CompilerDied("x"), True),
        (OSError(28, "disk full"), True),
        (MemoryError(), True),
        (NotADirectoryError(20, "a file"), False),
        (UsageError("bad"), False),
        (RuntimeError("shapes"), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error: Exception, again: bool) -> None:
    """Goal: a bad request is not retried. Method: one error of each kind; its reason begins with its word."""
    assert passes(error) is again
    assert reason_of(error).partition(":")[0].islower()


def test_faults_are_retried_then_conservative(broker: RunningBroker) -> None:
    """Goal: backoff, a maximum, and conservative mode after it. Method: a compiler that may hold too little memory."""
    cramped = broker.settings.model_copy(
        update={"compile_memory_bytes_max": 16 << 20, "compile_failures_max": 1, "compile_backoff_seconds": 0.01}
    )
    with Fabric.open(cramped, member="test") as fabric:
        first, second = Log(fabric, fresh_request()), Log(fabric, fresh_request())
        first.ask_forge()
        forge = build_service(fabric, blueprints=KarnCatalog())
        with running(forge):
            failures = first.wait(ly.CompileFailed, 3)
            second.ask_forge()
            alone = second.wait(ly.CompileFailed)
    assert [each.retried for each in failures] == [True, True, False]
    assert [each.attempt for each in failures] == [1, 2, 3]
    assert all(each.reason.startswith("compiler_out_of_memory: ") for each in failures)
    assert failures[0].retry_after_ms > 0
    assert [each.retried for each in alone] == [False], "conservative: one attempt"
    assert forge.metrics.value("tezzeret.jobs.retried") == 2
    assert forge.metrics.value("tezzeret.jobs.failed") == 2
    assert forge.metrics.value("tezzeret.conservative_mode") == 1


def test_withdrawn_is_not_made_and_unapproved_is_not_run(fabric: Fabric) -> None:
    """Goal: approvals hold at the forge. Method: withdraw a blueprint, ask; approve it again, ask."""
    log = Log(fabric, fresh_request("BP009", depth=1.0))
    descriptor = KarnCatalog().get("BP009").descriptor()
    digest = descriptor_digest(descriptor)
    with fabric.publisher("karn") as karn:
        registered = ly.BlueprintRegistered(descriptor=descriptor, descriptor_digest=digest)
        karn.publish(registered, key="BP009")
    with fabric.publisher("cli") as cli:
        cli.publish(ly.BlueprintWithdrawn(blueprint_id="BP009", withdrawn_by="me", reason="test"), key="BP009")
    try:
        log.ask_forge()
        with running(build_service(fabric, blueprints=KarnCatalog())):
            assert log.wait(ly.CompileFailed)[0].reason.startswith("withdrawn: ")
            assert log.of(ly.KernelCatalogUpdate) == []
            _approve(fabric, digest)
            log.ask_forge()
            assert log.wait(ly.CompileFinished)[0].fallback_reason == ""
    finally:
        _approve(fabric, digest)  # the broker is shared


def test_what_is_for_quarantine_is_made_and_never_run(fabric: Fabric) -> None:
    """Goal: a hazard's bytes are data, its steps are nobody's. Method: ask for one; there is no figure of it."""
    log = Log(fabric, fresh_request("BP043", scale=12.345))
    log.ask_forge()
    with running(build_service(fabric, blueprints=KarnCatalog())):
        ended = log.wait(ly.CompileFinished)[0]
    assert ended.fallback_reason.startswith("quarantine_only: ")
    assert not ended.HasField("prewarm")
    assert log.of(ly.BenchmarkReport) == []


def _approve(fabric: Fabric, digest: str) -> None:
    with fabric.publisher("cli") as cli:
        approval = ly.BlueprintApproved(blueprint_id="BP009", descriptor_digest=digest, approved_by="me")
        cli.publish(approval, key="BP009")
