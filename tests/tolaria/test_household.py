"""What Kasmina does beside its seeds, in whole runs: foreseen kernels, short memory, and every figure of the brief."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from esper.kasmina import MEMORY_PRESSURE, KasminaConfig, KasminaSeedManager, MemoryReading
from esper.kasmina.testing import ForeseeingRuntime, bypass
from esper.leyline import messages as ly
from esper.tolaria import (
    ControllerFactory,
    MemoryJournal,
    Recording,
    ResumingJournal,
    TolariaTrainer,
    TrainingSetup,
    prepared,
    re_execute,
)
from tests.tolaria.grafting import Kept, Lived, seed_manager
from tests.tolaria.small import request, scheduled

EPOCHS = 12
MOVES = {
    1: ly.SEED_OP_GERMINATE,
    3: ly.SEED_OP_GERMINATE,
    5: ly.SEED_OP_START_GRAFTING,
    8: ly.SEED_OP_STABILIZE,
}
#: Names of the brief's cheat sheet, and those that stand for what it only describes.
TOLARIA_NAMES = {
    "tolaria.training.loss",
    "tolaria.training.accuracy",
    "tolaria.training.latency_ms",
    "tolaria.seeds.active",
    "tolaria.epoch_hook.latency_ms",
}
KASMINA_NAMES = {
    "kasmina.isolation.violations",
    "kasmina.isolation.breaker_open",
    # "fetch latency"
    "kasmina.fetch.latency_ms",
    # "GPU cache stats"
    "kasmina.cache.hits",
    "kasmina.cache.misses",
    "kasmina.cache.evictions",
    "kasmina.cache.entries",
    "kasmina.cache.held_bytes",
    # "breakers, prefetch", latency budgets, memory governance
    "kasmina.latency.breaker_open",
    "kasmina.prefetch.requested",
    "kasmina.prefetch.ready",
    "kasmina.prefetch.failed",
    "kasmina.prefetch.hits",
    "kasmina.prefetch.late",
    "kasmina.prefetch.stale",
    "kasmina.prefetch.misses",
    "kasmina.decide.latency_ms",
    "kasmina.germinate.latency_ms",
    "kasmina.blend.latency_ms",
    "kasmina.measure.latency_ms",
    "kasmina.measure.over_budget",
    "kasmina.memory.used_bytes",
    "kasmina.memory.share",
    "kasmina.memory.pressure",
    "kasmina.memory.emergencies",
    "kasmina.memory.gc_runs",
    "kasmina.memory.gc_latency_ms",
    "kasmina.graft.stall_ms",
    "kasmina.graft.stall_steps",
}


def foreseeing(packet: ly.SystemStatePacket) -> ly.AdaptationCommand:
    """Order the moves of the schedule, and name the germination as a candidate until it was made."""
    command = scheduled(MOVES)(packet)
    assert command is not None
    if not packet.seed_states and packet.current_epoch < 3:
        command.candidates.add(operation=ly.SEED_OP_GERMINATE, slot=packet.slots[0].slot, blueprint_id="BYPASS")
    return command


def short_until(reads: int) -> Callable[[], MemoryReading]:
    """Return a sensor that shows 99 % in use for that many reads and 10 % afterwards."""
    left = [reads]

    def read() -> MemoryReading:
        left[0] -= 1
        return MemoryReading(99 if left[0] >= 0 else 10, 100)

    return read


RUNTIME = ForeseeingRuntime({"BYPASS": bypass(width=16, dropout=0.25)})


def grown(sensor: Callable[[], MemoryReading]) -> ControllerFactory:
    def make(setup: TrainingSetup) -> KasminaSeedManager:
        return seed_manager(setup, RUNTIME, config=KasminaConfig(collect_every_epochs=3), memory=sensor)

    return make


@pytest.fixture(scope="module")
def lived() -> Lived:
    """A run whose memory is short at its first edge, so that its first germination is refused."""
    journal, kept = MemoryJournal(policy=foreseeing), Kept()
    with prepared(request(epochs=EPOCHS)) as setup:
        # An edge that is short reads twice: before the caches go and after.
        trainer = TolariaTrainer(setup, grown(short_until(2))(setup), journal, checkpoints=kept)
        result = trainer.run()
        trainer.close()
    return Lived(result, journal, kept.checkpoints)


def test_the_refusal_is_an_outcome(lived: Lived) -> None:
    """Goal: short memory steers by a recorded word. Method: the outcomes of the first three edges."""
    first, _, third = lived.journal.outcomes[:3]
    assert (first.result, first.reason) == (ly.COMMAND_RESULT_REJECTED, MEMORY_PRESSURE)
    assert third.result == ly.COMMAND_RESULT_APPLIED, third.reason
    rejected = [event for event in lived.journal.seed_events if isinstance(event, ly.SeedMoveRejected)]
    assert [event.reason for event in rejected] == [MEMORY_PRESSURE]


@pytest.mark.parametrize("short_reads", [0, 10**9])
def test_a_re_execution_has_its_own_memory(lived: Lived, short_reads: int) -> None:
    """Goal: `runs verify` on a machine with more memory, or less. Method: repeat with none of the pressure, and with
    pressure for ever; every packet agrees."""
    compared = re_execute(
        request(epochs=EPOCHS),
        lived.journal.outcomes,
        lived.journal.packets,
        grown(short_until(short_reads)),
    )
    assert compared.equal, compared.first_difference
    assert compared.epochs == EPOCHS


@pytest.mark.parametrize("epoch", [1, 2, 3, 6])
def test_a_successor_goes_on_from_a_checkpoint(lived: Lived, epoch: int) -> None:
    """Goal: takeover with a household of its own. Method: resume in the middle; later checkpoints are byte-equal."""
    live, kept = MemoryJournal(policy=foreseeing), Kept()
    recording = Recording.of(lived.journal.packets[:epoch], lived.journal.outcomes[:epoch])
    with prepared(request(epochs=EPOCHS), attempt=2) as setup:
        trainer = TolariaTrainer(
            setup, grown(short_until(0))(setup), ResumingJournal(recording, live), checkpoints=kept
        )
        trainer.resume(lived.checkpoints[epoch].content, recording.packets[epoch])
        assert trainer.run() == lived.result
        trainer.close()
    assert kept.checkpoints == {later: lived.checkpoints[later] for later in range(epoch + 1, EPOCHS + 1)}


def test_every_name_of_the_brief_is_emitted(lived: Lived) -> None:
    """Goal: what the brief's cheat sheet names is seen. Method: the telemetry of a whole run, name by name."""
    points = [point for packet in lived.journal.telemetry for point in packet.metrics]
    assert {point.name for point in points} >= TOLARIA_NAMES | KASMINA_NAMES
    units = {point.name: point.unit for point in points}
    assert units["kasmina.fetch.latency_ms"] == "ms"
    assert (units["kasmina.cache.held_bytes"], units["kasmina.graft.stall_steps"]) == ("bytes", "steps")
    last = {point.name: point.value for point in lived.journal.telemetry[-1].metrics}
    assert last["kasmina.prefetch.hits"] + last["kasmina.prefetch.late"] >= 1
    assert last["kasmina.memory.gc_runs"] == 1 + EPOCHS // 3
    assert last["kasmina.graft.stall_ms"] > 0
    events = [event for event in lived.journal.seed_events if isinstance(event, ly.GateEvaluated)]
    assert {event.gate for event in events} >= {ly.SEED_GATE_G0_SANITY, ly.SEED_GATE_G1_GRADIENT_HEALTH}


def test_a_packet_says_how_urgent_it_is(lived: Lived) -> None:
    """Goal: the priority stands in the packet. Method: an epoch with a warning and one without."""
    short, calm = lived.journal.telemetry[0], lived.journal.telemetry[4]
    assert short.system_health.status == ly.HEALTH_STATUS_DEGRADED
    assert short.system_health.indicators["priority"] == "MESSAGE_PRIORITY_HIGH"
    assert [event.attributes["kind"] for event in short.events if "kind" in event.attributes] == ["memory_pressure"]
    if not calm.events:  # A machine that is busy may make a hook slow, which is a warning as well.
        assert calm.system_health.status == ly.HEALTH_STATUS_HEALTHY
        assert calm.system_health.indicators["priority"] == "MESSAGE_PRIORITY_NORMAL"
