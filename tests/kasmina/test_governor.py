"""Memory governance: caches go first, then nothing new is taken on, and what a run computes with never goes."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from esper.core.digest import module_state, state_digest
from esper.core.errors import UsageError
from esper.kasmina import MEMORY_PRESSURE, KasminaConfig, KernelCache, MemoryReading
from esper.kasmina.household._governor import MemoryGovernor, memory_sensor
from esper.leyline import messages as ly
from tests.kasmina.support import Loop, mlp, outcome_of, seed_command, seeded

CPU = torch.device("cpu")


@dataclass
class Gauge:
    """A sensor that shows what it is told to, and how often it was read."""

    used: int = 10
    reads: int = 0
    #: What is in use from the nth read on.
    later: dict[int, int] = field(default_factory=dict)

    def __call__(self) -> MemoryReading:
        self.reads += 1
        self.used = self.later.get(self.reads, self.used)
        return MemoryReading(self.used, 100)


def governor(gauge: Gauge, cache: KernelCache, *, every: int = 0) -> MemoryGovernor:
    return MemoryGovernor([cache], device=CPU, share_max=0.8, collect_every=every, sensor=gauge)


def full_cache() -> KernelCache:
    cache = KernelCache(bytes_max=1000, epochs_max=5)
    cache.put("one", nn.Linear(10, 1, bias=False))
    return cache


def test_with_room_nothing_is_touched() -> None:
    """Goal: governance costs nothing in good times. Method: an edge at 10 % in use."""
    gauge, cache = Gauge(), full_cache()
    ruler = governor(gauge, cache)
    assert ruler.close_epoch(1) is False
    assert (ruler.pressure, len(cache), ruler.collections, ruler.emergencies, gauge.reads) == (False, 1, 0, 0, 1)


def test_caches_that_make_room_are_enough() -> None:
    """Goal: caches go before anything is refused. Method: 90 % in use, 50 % once the caches are empty."""
    cache = full_cache()
    ruler = governor(Gauge(used=90, later={2: 50}), cache)
    assert ruler.close_epoch(1) is False
    assert (ruler.pressure, len(cache), ruler.emergencies, ruler.emergency_freed_bytes) == (False, 0, 1, 40)
    assert (ruler.collections, ruler.reading.used) == (1, 50)


def test_pressure_holds_until_there_is_room() -> None:
    """Goal: refuse while memory is short, and not longer. Method: 90 % for two edges, then 80 %, which is allowed."""
    ruler = governor(Gauge(used=90, later={5: 80}), full_cache())
    assert (ruler.close_epoch(1), ruler.pressure) == (True, True)
    assert (ruler.close_epoch(2), ruler.pressure) == (False, True)
    assert (ruler.close_epoch(3), ruler.pressure) == (True, False)


def test_garbage_is_collected_each_so_many_epochs() -> None:
    """Goal: cycles go on time, and the time it takes is known. Method: a cycle, collected every second epoch."""

    class Thing:
        pass

    def forgotten() -> weakref.ref[Thing]:
        thing = Thing()
        thing.__dict__["self"] = thing
        return weakref.ref(thing)

    ruler = governor(Gauge(), full_cache(), every=2)
    gc.disable()
    try:
        left = forgotten()
        ruler.close_epoch(1)
        assert left() is not None
        ruler.close_epoch(2)
        assert left() is None
    finally:
        gc.enable()
    figures = ruler.figures()
    assert (figures["kasmina.memory.gc_runs"], figures["kasmina.memory.gc_objects"] >= 1) == (1.0, True)
    assert figures["kasmina.memory.gc_latency_ms"] > 0


def test_the_process_knows_its_own_memory() -> None:
    """Goal: the sensor measures. Method: 256 MiB that are written to must show, whatever else comes and goes."""
    sensor = memory_sensor(CPU)
    before = sensor()
    held = torch.ones(64 << 20)
    after = sensor()
    assert 0 < before.used < before.total
    assert after.used - before.used > 128 << 20
    assert held.numel() == 64 << 20


def a_loop(gauge: Gauge, **config: object) -> Loop:
    settled = KasminaConfig(warmup_steps=2, memory_share_max=0.8, **config)  # type: ignore[arg-type]  # its fields
    return Loop(seeded(mlp), ["1", "2"], config=settled, memory=gauge)


def test_germinations_are_refused_by_name_and_seeds_live_on() -> None:
    """Goal: refuse what is new, keep what is there. Method: a seed, a teacher, then pressure; then room again."""
    gauge = Gauge()
    loop = a_loop(gauge)
    teacher = seeded(mlp, 3)
    kept = state_digest(module_state(teacher))
    loop.manager.watch_teacher(teacher)
    loop.train_epoch(3)
    seed_id = loop.germinate("1").seed_id
    gauge.used = 95
    loop.train_epoch(3)
    host = state_digest(module_state(loop.model))
    refused = loop.germinate("2")
    assert (refused.result, refused.reason) == (ly.COMMAND_RESULT_REJECTED, MEMORY_PRESSURE)
    (told,) = [event for event in refused.events if isinstance(event, ly.SeedMoveRejected)]
    assert told.reason == MEMORY_PRESSURE
    assert state_digest(module_state(loop.model)) == host
    assert loop.manager.lifecycle.stage_of(seed_id) == ly.SEED_STAGE_TRAINING
    assert state_digest(module_state(teacher)) == kept
    assert loop.manager.figures()["kasmina.memory.pressure"] == 1.0
    (notice,) = loop.manager.notices()
    assert (notice.level, notice.attributes["kind"]) == (ly.TELEMETRY_LEVEL_WARNING, "memory_pressure")
    assert loop.manager.notices() == []
    gauge.used = 20
    loop.train_epoch(3)
    assert loop.germinate("2").result == ly.COMMAND_RESULT_APPLIED
    (relief,) = loop.manager.notices()
    assert relief.level == ly.TELEMETRY_LEVEL_INFO
    moved = loop.manager.lifecycle.stage_of(seed_id)
    assert moved == ly.SEED_STAGE_TRAINING


def test_a_teacher_that_is_watched_is_kept_through_an_emergency() -> None:
    """Goal: a distillation target stays. Method: hold it by the run alone, clean up, and look for its tensors."""
    gauge = Gauge()
    loop = a_loop(gauge)
    teacher = seeded(mlp, 3)
    loop.manager.watch_teacher(teacher)
    watched = [weakref.ref(parameter) for parameter in teacher.parameters()]
    gauge.used = 99
    loop.train_epoch(3)
    assert loop.manager.figures()["kasmina.memory.emergencies"] == 1.0
    del teacher
    gc.collect()
    assert all(each() is not None for each in watched)


@pytest.mark.parametrize("short", [True, False])
def test_a_re_execution_takes_the_verdict_from_the_record(short: bool) -> None:
    """Goal: the repeating machine's memory steers nothing. Method: repeat under the opposite of what was recorded."""
    command = seed_command(ly.SEED_OP_GERMINATE, epoch=1, slot="1", blueprint="BYPASS")
    lived = a_loop(Gauge(used=95 if short else 10))
    lived.train_epoch(3)
    decision = lived.manager.handle_command(command, epoch=1, append=lived.log.append)
    assert (decision.reason == MEMORY_PRESSURE) == short
    lived.train_epoch(3)
    repeated = a_loop(Gauge(used=10 if short else 95))
    repeated.manager._examiner._runtime = lived.manager._examiner._runtime
    repeated.train_epoch(3)
    again = repeated.manager.decide(command, epoch=1, recorded=outcome_of(decision, command, epoch=1))
    for event in again.events:
        repeated.manager.fold(event)
    repeated.train_epoch(3)
    for name in ("result", "reason", "kernel_digest", "gate_verdicts"):
        assert getattr(again, name) == getattr(decision, name)
    states = [{**module_state(loop.model), **loop.manager.state()} for loop in (lived, repeated)]
    assert state_digest(states[0]) == state_digest(states[1])


@pytest.mark.parametrize("wrong", [{"memory_share_max": 0.0}, {"memory_share_max": 1.5}, {"collect_every_epochs": -1}])
def test_limits_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    """Goal: no limit that means nothing. Method: one wrong number each."""
    with pytest.raises(UsageError, match=next(iter(wrong))):
        KasminaConfig(**wrong)  # type: ignore[arg-type]  # that is the point
