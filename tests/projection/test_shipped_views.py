"""What the shipped views make of the cases that the story of docs/queries.md does not hold."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import cast

import pytest
from google.protobuf.message import Message

from esper.core import approvals
from esper.core.ids import derive_id
from esper.leyline import EVENT_TYPES, EventMessage, full_name
from esper.leyline import messages as ly
from esper.projection import Definition
from tests.histories.record_messages import fill
from tests.projection.conftest import OpenWorkbench, Workbench
from tests.projection.log import Log
from tests.projection.narrator import LEARNED, InMemory, Run


@pytest.fixture
def teller() -> InMemory:
    """Tells into an empty log."""
    return InMemory()


def folded(teller: InMemory, open_workbench: OpenWorkbench) -> Workbench:
    """Return the projections of what was told, all of which was believed."""
    bench = open_workbench(teller.log)
    bench.fold()
    assert bench.letters.judged == []
    return bench


def filled(name: str, **fields: Message) -> EventMessage:
    """Return an event of a type with every field set."""
    cls = EVENT_TYPES[full_name(name)]
    message = cls()
    fill(message, cls.DESCRIPTOR)
    for field, value in fields.items():
        getattr(message, field).CopyFrom(value)
    return cast("EventMessage", message)


def payloads() -> Iterator[EventMessage]:
    """Return filled events with every kind of a command's payload, of which a message holds one."""
    rollback = ly.AdaptationCommand()
    rollback.rollback_payload.update({"to_epoch": 3})
    yield filled("AdaptationCommand", rollback_payload=rollback.rollback_payload)
    adjustment = ly.CommandOptimizerAdjustment(optimizer_id="adam", hyperparameters={"lr": 0.5})
    yield filled("AdaptationCommand", optimizer_adjustment=adjustment)
    seed = ly.CommandSeedOperation(operation=ly.SEED_OP_CULL, blueprint_id="BP001", slot="a", parameters={"b": 1.0})
    yield filled("AdaptationCommand", seed_operation=seed)
    yield filled("DecisionMade", proposed=ly.AdaptationCommand(command_type=ly.COMMAND_SEED, seed_operation=seed))
    report = ly.BenchmarkReport()
    profile = report.benchmark.profiles.add(name="eager.forward")
    profile.latency.CopyFrom(ly.LatencyFigures(samples=20, p50_ms=0.5, p95_ms=0.75, batch=32))
    yield report
    yield filled("AdaptationCommand", circuit_breaker=ly.CommandCircuitBreaker(desired_state=ly.CIRCUIT_STATE_OPEN))


def test_every_column_is_filled(open_workbench: OpenWorkbench, definitions: tuple[Definition, ...]) -> None:
    """A misspelt column stays null in silence: fold a filled event of each type and look for columns without one."""
    log = Log()
    events = [filled(kind) for kind in sorted({kind for one in definitions for kind in one.types})]
    for number, event in enumerate([*events, *payloads()]):
        log.append(event, key="key", event_id=derive_id("filled", number))
    bench = open_workbench(log)
    bench.fold()
    assert bench.letters.judged == []
    for definition in definitions:
        for table in definition.table_names:
            rows = bench.rows(f"select column_name from (describe {table})")  # noqa: S608 - our own name
            columns = [str(row[0]) for row in rows]
            counted = ", ".join(f"count({column})" for column in columns)
            counts = bench.rows(f"select {counted} from {table}")[0]  # noqa: S608 - our own names
            assert [column for column, count in zip(columns, counts, strict=True) if not count] == [], table


def test_a_seed_whose_loss_is_not_finite_hurt(teller: InMemory, open_workbench: OpenWorkbench) -> None:
    """The worst grafts may not vanish from the figures: one seed with an infinite loss, one NaN, one never measured."""
    for run_id, losses in {"run-inf": (1.0, math.inf), "run-nan": (1.0, math.nan), "run-none": None}.items():
        run = Run(teller, run_id)
        run.request()
        run.take()
        run.move(1, "TRAINING", "BP003", came_from="GERMINATED")
        run.packet(1, 1.0, losses=losses)
    bench = folded(teller, open_workbench)
    assert bench.rows("select run_id, helped, hurt, gain, relative_gain from grafts order by run_id") == [
        ("run-inf", False, True, None, None),
        ("run-nan", False, True, None, None),
        ("run-none", None, None, None, None),
    ]
    sql = "select seeds, measured, helped, hurt, mean_gain, sd_gain from blueprint_results"
    assert bench.rows(sql) == [(3, 2, 0, 2, None, None)]


def test_a_loss_of_zero_divides_nothing(teller: InMemory, open_workbench: OpenWorkbench) -> None:
    """A share of nothing is unknown: a seed without which the loss is 0."""
    run = Run(teller, "run-a")
    run.move(1, "TRAINING", "BP003", came_from="GERMINATED", losses=(0.0, 0.25))
    bench = folded(teller, open_workbench)
    assert bench.rows("select gain, relative_gain, hurt, task from grafts") == [(-0.25, None, True, None)]


def test_decisions_of_a_fenced_attempt_do_not_count(teller: InMemory, open_workbench: OpenWorkbench) -> None:
    """Both attempts name their events alike: the fenced one decided epoch 2 with another policy, and first."""
    zombie = Run(teller, "run-a")
    zombie.request()
    zombie.take()
    zombie.epoch(1, 1.0, ly.SEED_OP_GERMINATE)
    winner = Run(teller, "run-a", policy=LEARNED, attempt=2)
    winner.take(resumed=1)
    zombie.epoch(2, 9.0, ly.SEED_OP_CULL)
    winner.epoch(2, 0.5, ly.SEED_OP_EVALUATE)
    bench = folded(teller, open_workbench)
    sql = "select epoch, policy, proposed, command, val_loss, val_loss_change from policy_decisions order by epoch"
    assert bench.rows(sql) == [
        (1, "heuristic", "germinate", "germinate", 1.0, -0.5),
        (2, "learned", "evaluate", "evaluate", 0.5, None),
    ]
    assert bench.rows("select epoch, attempt, decide_ms from epoch_times order by epoch") == [(1, 1, 4.0), (2, 2, 4.0)]


def test_an_epoch_that_two_attempts_shared_counts_whole(teller: InMemory, open_workbench: OpenWorkbench) -> None:
    """A worker dies between an epoch's packet and its outcome: its successor goes on from the packet as it stands."""
    lost = Run(teller, "run-a")
    lost.request()
    lost.take()
    lost.epoch(1, 1.0, ly.SEED_OP_GERMINATE)
    growth = ly.GrowthState(breaker=ly.CIRCUIT_STATE_OPEN)
    lost.packet(2, 0.5, losses=(0.75, 0.5), growth=growth)
    lost.decide(2, ly.SEED_OP_EVALUATE)
    heir = Run(teller, "run-a", attempt=2)
    heir.take(resumed=1)
    heir.move(2, "TRAINING", "BP003", came_from="GERMINATED")
    heir.settle(2, ly.SEED_OP_EVALUATE)
    heir.epoch(3, 0.25, ly.SEED_OP_CULL)
    bench = folded(teller, open_workbench)
    sql = "select epoch, attempt, val_loss, command, outcome from epochs order by epoch"
    assert bench.rows(sql) == [
        (1, 1, 1.0, "germinate", "applied"),
        (2, 1, 0.5, "evaluate", "applied"),
        (3, 2, 0.25, "cull", "applied"),
    ]
    assert bench.rows("select epochs, val_loss from runs") == [(3, 0.25)]
    assert bench.rows("select epoch, breaker_state from growth_holds") == [(2, "CIRCUIT_STATE_OPEN")]
    assert bench.rows("select measured_epoch, gain from grafts") == [(2, 0.25)]
    assert bench.rows("select epoch, proposed from policy_decisions order by epoch") == [
        (1, "germinate"),
        (2, "evaluate"),
        (3, "cull"),
    ]
    assert bench.rows("select epoch, decide_ms from epoch_times order by epoch") == [(1, 4.0), (2, 4.0), (3, 4.0)]


def test_a_packet_that_came_after_a_takeover_counts_for_nothing(
    teller: InMemory, open_workbench: OpenWorkbench
) -> None:
    """Its worker wakes up between the next attempt's start and its packet, and says another loss."""
    zombie, heir = Run(teller, "run-a"), Run(teller, "run-a", attempt=2)
    zombie.take()
    zombie.epoch(1, 1.0, ly.SEED_OP_GERMINATE)
    heir.take(resumed=1)
    zombie.packet(2, 9.0, losses=(9.0, 8.0))
    heir.packet(2, 0.5, losses=(0.75, 0.5))
    zombie.packet(3, 9.0)
    heir.move(2, "TRAINING", "BP003", came_from="GERMINATED")
    bench = folded(teller, open_workbench)
    assert bench.rows("select epoch, attempt, val_loss from epochs order by epoch") == [(1, 1, 1.0), (2, 2, 0.5)]
    assert bench.rows("select measured_epoch, gain from grafts") == [(2, 0.25)]


def test_who_claimed_nothing_fences_nobody(teller: InMemory, open_workbench: OpenWorkbench) -> None:
    """A start without a claim is nobody's: another producer says that attempt 99 took the run over at epoch 0."""
    run = Run(teller, "run-a")
    run.take()
    run.epoch(1, 1.0, ly.SEED_OP_GERMINATE)
    start = ly.TrainingRunStarted(run_id="run-a", attempt=99, resumed_epochs=0)
    teller.log.append_raw(teller.log.sign(start, key="run-a", producer_id="other:1"))
    bench = folded(teller, open_workbench)
    assert bench.rows("select epoch, outcome from epochs") == [(1, "applied")]


def test_a_gate_without_figures_still_failed(teller: InMemory, open_workbench: OpenWorkbench) -> None:
    """No figure, no row, would hide a failure: a failed gate without checks, and one that passed."""
    for gate, passed in ((ly.SEED_GATE_G5_RESET, False), (ly.SEED_GATE_G0_SANITY, True)):
        teller.tell(ly.GateEvaluated(run_id="run-a", epoch=1, seed_id="a.1", gate=gate, passed=passed), "run-a")
    bench = folded(teller, open_workbench)
    assert bench.rows("select gate, figure, value, blueprint_id from gate_failures") == [("G5_RESET", None, None, None)]


def _policy(teller: InMemory, version: str, *, parent: str = "") -> None:
    update = ly.PolicyUpdate(policy_id="default", tamiyo_policy_version=version, parent_policy_version=parent)
    teller.tell(update, "default")


def test_a_promoted_policy_retires_the_one_before(teller: InMemory, open_workbench: OpenWorkbench) -> None:
    """One version decides: v2 is promoted after v1, which is told of twice; in another line v1 alone."""
    for version in ("v1", "v2", "v1"):
        _policy(teller, version)
    for version in ("v1", "v2"):
        teller.tell(ly.PolicyPromoted(policy_id="default", tamiyo_policy_version=version), "default")
    teller.tell(ly.PolicyUpdate(policy_id="other", tamiyo_policy_version="v1"), "other")
    teller.tell(ly.PolicyPromoted(policy_id="other", tamiyo_policy_version="v1"), "other")
    bench = folded(teller, open_workbench)
    assert bench.rows("select policy_id, policy_version, status from policies order by all") == [
        ("default", "v1", "retired"),
        ("default", "v2", "active"),
        ("other", "v1", "active"),
    ]


def test_a_lineage_ends(teller: InMemory, open_workbench: OpenWorkbench) -> None:
    """A pedigree that goes round would never end: two versions that name each other, one whose parent is unknown."""
    _policy(teller, "v1", parent="v2")
    _policy(teller, "v2", parent="v1")
    _policy(teller, "v3", parent="v0")
    bench = folded(teller, open_workbench)
    sql = "select policy_version, generation, ancestor, known from policy_lineage order by all"
    assert bench.rows(sql) == [
        ("v1", 0, "v1", True),
        ("v1", 1, "v2", True),
        ("v2", 0, "v2", True),
        ("v2", 1, "v1", True),
        ("v3", 0, "v3", True),
        ("v3", 1, "v0", False),
    ]


def test_a_reply_answers_the_request_that_it_follows_from(teller: InMemory, open_workbench: OpenWorkbench) -> None:
    """Whoever knows a request's id could answer it: a reply with the right id and another cause leaves it waiting."""
    ask = ly.KernelPrefetchRequest(request_id="r", kernel_id="k", training_run_id="run-a")
    teller.tell(ask, "k", event_id="1" * 32)
    teller.tell(ly.KernelArtifactReady(request_id="r", kernel_id="k"), "k", cause="2" * 32)
    bench = folded(teller, open_workbench)
    assert bench.rows("select status, wait_ms from kernel_requests") == [("waiting", None)]
    assert bench.rows("select request_id, run_id from waiting_kernel_requests") == [("r", "run-a")]


def test_a_kernel_that_failed_and_was_made_after_all(teller: InMemory, open_workbench: OpenWorkbench) -> None:
    """The last word counts and the failure is kept: requested twice, failed once, finished."""
    wanted = ly.KernelRequestSpec(blueprint_id="BP003")
    for _ in range(2):
        teller.tell(ly.CompileRequested(kernel_id="k", request=wanted), "k")
    teller.tell(ly.CompileStarted(kernel_id="k", attempt=1), "k")
    teller.tell(ly.CompileFailed(kernel_id="k", reason="timeout", attempt=1), "k")
    teller.tell(ly.CompileStarted(kernel_id="k", attempt=2), "k")
    teller.tell(ly.CompileFinished(kernel_id="k", compile_ms=5.0), "k")
    bench = folded(teller, open_workbench)
    sql = "select blueprint_id, status, requests, attempts, failures, failure, compile_ms from compile_jobs"
    assert bench.rows(sql) == [("BP003", "finished", 2, 2, 1, "timeout", 5.0)]


def test_figures_that_are_no_numbers_spoil_no_quantile(teller: InMemory, open_workbench: OpenWorkbench) -> None:
    """One NaN would make a mean NaN: samples 1, 3, NaN and infinity of one metric that names no subsystem."""
    packet = ly.TelemetryPacket()
    for value in (1.0, 3.0, math.nan, math.inf):
        packet.metrics.add(name="m", value=value, unit="ms")
    teller.tell(packet, "cli")
    bench = folded(teller, open_workbench)
    sql = "select subsystem, samples, mean_ms, max_ms from latencies"
    assert bench.rows(sql) == [("cli", 2, 2.0, 3.0)]
    assert bench.rows("select count(*) from metric_samples") == [(4,)]


def test_removed_kernels_leave_the_catalogue_until_made_again(teller: InMemory, open_workbench: OpenWorkbench) -> None:
    """Nobody is shown what cannot be fetched: one removed, one removed and made again, one whose older form was."""
    for name in ("gone", "again", "newer"):
        teller.tell(ly.KernelCatalogUpdate(kernel_id=name, artifact_ref=f"ref-{name}"), name, after_ms=1)
    teller.tell(ly.KernelCatalogUpdate(kernel_id="newer", artifact_ref="ref-new"), "newer", after_ms=1)
    for name in ("gone", "again", "newer"):
        teller.tell(ly.KernelEvicted(kernel_id=name, artifact_ref=f"ref-{name}"), name, after_ms=1)
    teller.tell(ly.KernelCatalogUpdate(kernel_id="again", artifact_ref="ref-again"), "again", after_ms=1)
    bench = folded(teller, open_workbench)
    sql = "select kernel_id, artifact_ref from urza_catalog order by kernel_id"
    assert bench.rows(sql) == [("again", "ref-again"), ("newer", "ref-new")]


def test_the_catalogue_says_what_failed_and_why(teller: InMemory, open_workbench: OpenWorkbench) -> None:
    """Goal: one query tells. Method: kernels ready, unmeasured, damaged, mended, failed, retried, failed when there."""
    asked = ly.KernelRequestSpec(blueprint_id="BP2", layout="map1d")
    teller.tell(ly.CompileRequested(kernel_id="failed", request=asked), "failed")
    for name in ("ready", "unmeasured", "damaged", "mended", "older"):
        teller.tell(ly.KernelCatalogUpdate(kernel_id=name, blueprint_id="BP1", artifact_ref=f"ref-{name}"), name)
        fault = "out_of_memory: measuring was killed" if name == "unmeasured" else ""
        teller.tell(ly.CompileFinished(kernel_id=name, artifact_ref=f"ref-{name}", fallback_reason=fault), name)
    for name in ("damaged", "mended"):
        wrong = ly.KernelIntegrityFailed(kernel_id=name, artifact_ref=f"ref-{name}", part="spec", reason="refused")
        teller.tell(wrong, name, after_ms=1)
    wrong = ly.KernelIntegrityFailed(
        kernel_id="ready", artifact_ref="ref-ready", part="compiled part", reason="refused"
    )
    teller.tell(wrong, "ready")
    teller.tell(ly.KernelCatalogUpdate(kernel_id="mended", artifact_ref="ref-mended"), "mended", after_ms=1)
    for name, retried in (("failed", True), ("failed", False), ("older", False), ("tried", True)):
        teller.tell(ly.CompileFailed(kernel_id=name, reason="late", retried=retried), name)
    bench = folded(teller, open_workbench)
    assert bench.rows("select kernel_id, status, reason, artifact_ref from urza_catalog order by kernel_id") == [
        ("damaged", "damaged", "spec: refused", "ref-damaged"),
        ("failed", "failed", "late", None),
        ("mended", "ready", None, "ref-mended"),
        ("older", "ready", "late", "ref-older"),
        ("ready", "ready", None, "ref-ready"),
        ("unmeasured", "ready", "out_of_memory: measuring was killed", "ref-unmeasured"),
    ]
    sql = "select blueprint_id, layout from urza_catalog where status = 'failed'"
    assert bench.rows(sql) == [("BP2", "map1d")]


def _words(chooser: random.Random, name: str) -> Iterator[EventMessage]:
    """Yield what Karn and people say of one blueprint, at random."""
    for _ in range(chooser.randrange(1, 9)):
        digest = chooser.choice("ab")
        tiers = (ly.BLUEPRINT_TIER_SAFE, ly.BLUEPRINT_TIER_EXPERIMENTAL, ly.BLUEPRINT_TIER_HIGH_RISK)
        (tier,) = chooser.choices(tiers, (4, 4, 1))
        descriptor = ly.BlueprintDescriptor(
            blueprint_id=name,
            tier=tier,
            approval_required=chooser.random() < 0.3,
            quarantine_only=chooser.random() < 0.1,
        )
        yield chooser.choice(
            [
                ly.BlueprintRegistered(descriptor=descriptor, descriptor_digest=digest),
                ly.BlueprintApproved(blueprint_id=name, descriptor_digest=digest, approved_by="ada"),
                ly.BlueprintWithdrawn(blueprint_id=name, descriptor_digest=digest, withdrawn_by="grace"),
            ]
        )


def test_the_view_judges_blueprints_as_everybody_does(teller: InMemory, open_workbench: OpenWorkbench) -> None:
    """One judgement, two forms: random histories of 200 blueprints, the view against `esper.core.approvals`."""
    chooser = random.Random(7)  # noqa: S311 - a reproducible draw, no secret
    standing = approvals.registered([])
    for number in range(200):
        for message in _words(chooser, f"BP{number:03}"):
            standing = approvals.fold(standing, message)
            teller.tell(message, f"BP{number:03}")
    expected = {}
    for name, one in standing.items():
        if one.descriptor is not None:
            refused = approvals.refusal(standing, name)
            expected[name] = refused.reason if refused else "approved" if one.approval else "allowed"
    bench = folded(teller, open_workbench)
    assert dict(bench.rows("select blueprint_id, status from blueprints")) == expected
    assert len(set(expected.values())) == 6


def test_a_part_that_differs_from_eager_is_a_failure(teller: InMemory, open_workbench: OpenWorkbench) -> None:
    """A compiled part is measured again: the last figures count, and each time it differed is told."""
    for passed in (False, True):
        parity = ly.ParityFigures(forward_abs_max=0.0 if passed else 1.0, tolerance=1e-5, passed=passed)
        part = ly.KernelPartCompiled(kernel_id="k", artifact_ref="r", part_digest="p", parity=parity, chosen=passed)
        part.reason = "" if passed else "differs from eager"
        teller.tell(part, "k", after_ms=1)
    bench = folded(teller, open_workbench)
    assert bench.rows("select parity_passed, chosen, reason from compiled_parts") == [(True, True, None)]
    assert bench.rows("select what, reason from kernel_failures") == [("compiled part", "differs from eager")]
