"""The prefetch coordinator: what was foreseen is at hand, what was not is fetched as ever, and outcomes say which."""

from __future__ import annotations

import threading

import pytest

from esper.core.digest import module_state, state_digest
from esper.core.ports import FetchedKernel, PrefetchingRuntime
from esper.kasmina import KasminaConfig, KasminaPrefetchCoordinator
from esper.kasmina.household._prefetch import CANDIDATES_MAX
from esper.kasmina.testing import ForeseeingRuntime, InMemoryRuntime
from esper.leyline import messages as ly
from tests.kasmina.support import FACTORIES, Loop, mlp, outcome_of, seed_command, seeded

SECONDS = 20.0


def wish(slot: str = "1", blueprint: str = "BYPASS") -> ly.CommandSeedOperation:
    return ly.CommandSeedOperation(operation=ly.SEED_OP_GERMINATE, slot=slot, blueprint_id=blueprint)


def foresee(loop: Loop, *wishes: ly.CommandSeedOperation, settle: bool = True) -> None:
    """Pass an edge whose command changes nothing and names `wishes` as candidates."""
    command = ly.AdaptationCommand(command_id="foresee", command_type=ly.COMMAND_CONTINUE, candidates=wishes)
    loop.manager.handle_command(command, epoch=loop.epoch, append=loop.log.append)
    if settle:
        assert loop.manager._house.prefetch.settle(SECONDS)


def counts(loop: Loop) -> dict[str, int]:
    return {name: count for name, count in vars(loop.manager._house.prefetch.counts).items() if count}


def a_loop(runtime: InMemoryRuntime) -> Loop:
    loop = Loop(seeded(mlp), ["1", "2"], runtime=runtime, config=KasminaConfig(warmup_steps=5))
    loop.train_epoch(3)
    return loop


def test_a_foreseen_kernel_is_at_hand() -> None:
    """Goal: the edge finds what was foreseen. Method: candidates at one edge, the order at the next."""
    runtime = ForeseeingRuntime(FACTORIES, looks=3)
    assert isinstance(runtime, PrefetchingRuntime)
    loop = a_loop(runtime)
    foresee(loop, wish())
    assert runtime.looked == ["BYPASS"] * 3
    loop.train_epoch(3)
    assert loop.germinate("1").result == ly.COMMAND_RESULT_APPLIED
    assert counts(loop) == {"requested": 1, "ready": 1, "hits": 1}
    figures = loop.manager.figures()
    assert (figures["kasmina.cache.hits"], figures["kasmina.cache.misses"]) == (1.0, 0.0)
    loop.manager.close()


def test_a_run_is_the_same_with_prefetching_and_without() -> None:
    """Goal: prefetching is about time alone. Method: digests of one life foreseen, unforeseen, and wrongly foreseen."""

    def lived(runtime: InMemoryRuntime, *wishes: ly.CommandSeedOperation) -> tuple[str, str]:
        loop = a_loop(runtime)
        foresee(loop, *wishes)
        loop.train_epoch(3)
        digest = loop.germinate("1", "DROPPING").kernel_digest
        loop.train_epoch(5)
        loop.manager.close()
        return digest, state_digest({**module_state(loop.model), **loop.manager.state()})

    plain = lived(InMemoryRuntime(FACTORIES), wish("1", "DROPPING"))
    assert plain == lived(ForeseeingRuntime(FACTORIES), wish("1", "DROPPING"))
    assert plain == lived(ForeseeingRuntime(FACTORIES), wish("2", "BYPASS"))
    assert plain[0]


def test_a_prefetch_that_fails_leaves_the_fetch() -> None:
    """Goal: degrade to the fetch at the edge. Method: a prefetch that fails where the fetch does not."""
    loop = a_loop(ForeseeingRuntime(FACTORIES, failing={"BYPASS": "forge_busy"}))
    foresee(loop, wish())
    assert counts(loop) == {"requested": 1, "failed": 1}
    loop.train_epoch(3)
    assert loop.germinate("1").result == ly.COMMAND_RESULT_APPLIED
    assert counts(loop) == {"requested": 1, "failed": 1, "misses": 1}
    loop.manager.close()


def test_a_failed_candidate_is_tried_again_when_it_is_named_again() -> None:
    """Goal: a passing fault bans nothing. Method: fail once, then let it work, and name it a second time."""
    runtime = ForeseeingRuntime(FACTORIES, failing={"BYPASS": "forge_busy"})
    loop = a_loop(runtime)
    foresee(loop, wish())
    runtime._failing.clear()
    loop.train_epoch(3)
    foresee(loop, wish())
    assert counts(loop) == {"requested": 2, "failed": 1, "ready": 1}
    loop.manager.close()


def test_a_kernel_still_on_its_way_is_late() -> None:
    """Goal: the figures tell late from unforeseen. Method: a kernel that no look finds ready."""
    loop = a_loop(ForeseeingRuntime(FACTORIES, looks=10**9))
    foresee(loop, wish(), settle=False)
    loop.train_epoch(3)
    assert loop.germinate("1").result == ly.COMMAND_RESULT_APPLIED
    assert counts(loop) == {"requested": 1, "late": 1}
    loop.manager.close()


def test_another_kernel_than_foreseen_is_the_one_that_counts() -> None:
    """Goal: the outcome names what was fetched at the edge. Method: a prefetch that gives another kernel's digest."""

    class Misled(ForeseeingRuntime):
        def prefetch(self, request: ly.KernelRequestSpec, *, run_id: str) -> FetchedKernel | None:
            other = ly.KernelRequestSpec()
            other.CopyFrom(request)
            other.blueprint_id = "DROPPING"
            return super().prefetch(other, run_id=run_id)

    loop = a_loop(Misled(FACTORIES))
    foresee(loop, wish())
    loop.train_epoch(3)
    decision = loop.germinate("1")
    assert counts(loop) == {"requested": 1, "ready": 1, "stale": 1}
    plain = a_loop(InMemoryRuntime(FACTORIES))
    plain.train_epoch(3)
    assert decision.kernel_digest == plain.germinate("1").kernel_digest
    loop.manager.close()


def test_without_a_runtime_that_can_no_thread_is_started() -> None:
    """Goal: nothing runs that is of no use. Method: the threads of a process whose runtime cannot prefetch."""
    loop = a_loop(InMemoryRuntime(FACTORIES))
    before = threading.active_count()
    foresee(loop, wish())
    assert threading.active_count() == before
    loop.train_epoch(3)
    assert loop.germinate("1").result == ly.COMMAND_RESULT_APPLIED
    assert counts(loop) == {"misses": 1}


def test_candidates_replace_each_other_and_are_bounded() -> None:
    """Goal: no backlog of wishes. Method: more candidates than are served, then others in their stead."""
    runtime = ForeseeingRuntime(FACTORIES, looks=10**9)
    coordinator = KasminaPrefetchCoordinator(runtime, run_id="run", keep=lambda _: None)
    coordinator.expect(ly.KernelRequestSpec(blueprint_id=f"B{index}") for index in range(CANDIDATES_MAX + 5))
    assert coordinator.counts.requested == CANDIDATES_MAX
    assert not coordinator.settle(0.0)
    coordinator.expect([])
    assert coordinator.settle(SECONDS)
    coordinator.close()
    coordinator.expect([ly.KernelRequestSpec(blueprint_id="BYPASS")])
    assert coordinator.settle(0.0), "nothing is taken on after the end"


def test_the_end_joins_the_thread() -> None:
    """Goal: no thread outlives its run. Method: threads by name before and after `close`."""
    loop = a_loop(ForeseeingRuntime(FACTORIES, looks=10**9))
    foresee(loop, wish(), settle=False)
    assert "kasmina-prefetch" in [thread.name for thread in threading.enumerate()]
    loop.manager.close()
    assert "kasmina-prefetch" not in [thread.name for thread in threading.enumerate()]


def test_unknown_slots_and_other_operations_are_passed_over() -> None:
    """Goal: candidates order nothing and break nothing. Method: a slot that the host lacks, a cull as a candidate."""
    loop = a_loop(ForeseeingRuntime(FACTORIES))
    foresee(loop, wish("no such slot"), ly.CommandSeedOperation(operation=ly.SEED_OP_CULL, slot="1"))
    assert counts(loop) == {}
    assert loop.manager.summaries() == []
    loop.manager.close()


@pytest.mark.parametrize("looks", [1, 10**9])
def test_a_re_execution_prefetches_nothing_and_takes_the_recorded_digest(looks: int) -> None:
    """Goal: the record binds. Method: a graft that was foreseen, or late, repeated by a runtime that must not look."""
    runtime = ForeseeingRuntime(FACTORIES, looks=looks)
    lived = a_loop(runtime)
    foresee(lived, wish(), settle=looks == 1)
    command = seed_command(ly.SEED_OP_GERMINATE, epoch=2, slot="1", blueprint="BYPASS")
    command.candidates.append(wish("2"))
    lived.train_epoch(3)
    decision = lived.manager.handle_command(command, epoch=2, append=lived.log.append)
    outcome = outcome_of(decision, command, epoch=2)
    lived.train_epoch(3)
    lived.manager.close()
    runtime.looked.clear()
    again = a_loop(runtime)
    again.train_epoch(3)
    repeated = again.manager.decide(command, epoch=2, recorded=outcome)
    for event in repeated.events:
        again.manager.fold(event)
    again.train_epoch(3)
    assert runtime.looked == []
    assert repeated.kernel_digest == decision.kernel_digest
    assert state_digest({**module_state(again.model), **again.manager.state()}) == state_digest(
        {**module_state(lived.model), **lived.manager.state()}
    )


def test_what_went_wrong_is_told_once() -> None:
    """Goal: people hear of prefetches that fail and of breakers. Method: one that fails; an open breaker."""
    loop = a_loop(ForeseeingRuntime(FACTORIES, failing={"BYPASS": "forge_busy"}))
    foresee(loop, wish())
    loop.train_epoch(3)
    loop.train_epoch(3)
    assert [notice.attributes["kind"] for notice in loop.manager.notices()] == ["prefetch_failed"]
    house = loop.manager._house
    for epoch, isolated in ((7, False), (8, False), (9, True)):
        house.close_epoch(epoch, isolated=isolated)
    told = [(notice.attributes["kind"], notice.attributes["epoch"], notice.level) for notice in house.notices()]
    assert told == [
        ("isolation_breaker", "7", ly.TELEMETRY_LEVEL_WARNING),
        ("isolation_breaker", "9", ly.TELEMETRY_LEVEL_INFO),
    ]
    loop.manager.close()
