"""Latency budgets: evidence by default; enforced, they end fetches and germinations, and the record binds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from esper.core.clock import ManualClock
from esper.core.digest import module_state, state_digest
from esper.core.errors import UsageError
from esper.core.ports import FetchedKernel, KernelUnavailable
from esper.kasmina import KasminaConfig, LatencyBudgets
from esper.kasmina._budgets import LATENCY_OPEN, OPERATIONS, LatencyBook
from esper.kasmina.testing import InMemoryRuntime
from esper.leyline import messages as ly
from tests.kasmina.support import FACTORIES, Loop, mlp, outcome_of, seed_command, seeded


def test_budgets_are_read_by_name() -> None:
    """Goal: one setting for all. Method: some named, others left; what is no budget is refused by name."""
    assert LatencyBudgets.of(" decide=5, fetch=2.5 ") == replace(LatencyBudgets(), decide=5.0, fetch=2.5)
    assert LatencyBudgets.of("") == LatencyBudgets()
    for wrong, word in (("sing=5", "sing"), ("decide=0", "decide"), ("decide=x", "decide"), ("blend", "blend")):
        with pytest.raises(UsageError, match=word):
            LatencyBudgets.of(wrong)


def test_operations_are_timed_against_their_budgets() -> None:
    """Goal: latencies are evidence. Method: a clock moved by hand; one operation in budget, one over."""
    clock = ManualClock()
    book = LatencyBook(LatencyBudgets(fetch=10.0), clock=clock)
    for seconds in (0.004, 0.030, 0.006):
        with book.timed("fetch"):
            clock.advance(seconds)
    figures = book.figures()
    assert figures["kasmina.fetch.latency_ms"] == pytest.approx(6.0)
    assert figures["kasmina.fetch.latency_max_ms"] == pytest.approx(30.0)
    assert figures["kasmina.fetch.over_budget"] == 1.0
    assert "kasmina.blend.latency_ms" not in figures, "what never happened has no latency"
    assert book.fetch_seconds(60.0) == 60.0


def overrun(book: LatencyBook, epoch: int, *, over: bool = True) -> bool:
    book.observe("decide", 1000.0 if over else 0.1)
    book.close_epoch(epoch)
    return book.allows


def test_the_breaker_opens_only_where_latencies_are_enforced() -> None:
    """Goal: clocks steer nothing by default. Method: ten overrun epochs, with and without `enforce`."""
    evidence, enforced = LatencyBook(LatencyBudgets()), LatencyBook(LatencyBudgets(), enforce=True)
    assert [overrun(evidence, epoch) for epoch in range(1, 11)] == [True] * 10
    # Three in a row open it for five epochs; the sixth epoch probes, and fails.
    assert [overrun(enforced, epoch) for epoch in range(1, 11)] == [True, True] + [False] * 5 + [False] * 3
    assert enforced.fetch_seconds(60.0) == 0.010


def test_the_breaker_closes_after_a_probe_in_budget() -> None:
    """Goal: conservative mode ends. Method: three overrun epochs, a pause, and one that is fast."""
    book = LatencyBook(LatencyBudgets(), enforce=True)
    for epoch in (1, 2, 3):
        overrun(book, epoch)
    assert not book.allows
    assert overrun(book, 8, over=False)
    assert [overrun(book, epoch) for epoch in (9, 10)] == [True, True]


def test_a_fast_epoch_in_between_keeps_it_closed() -> None:
    """Goal: only epochs in a row count. Method: two slow, one fast, two slow."""
    book = LatencyBook(LatencyBudgets(), enforce=True)
    assert all(overrun(book, epoch, over=epoch != 3) for epoch in range(1, 6))


class Slow(InMemoryRuntime):
    """Takes a second of a clock for each fetch, as far as it may wait."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(FACTORIES)
        self.clock = clock
        self.waits: list[float] = []

    def fetch_kernel(self, request: ly.KernelRequestSpec, *, run_id: str, wait_seconds: float) -> FetchedKernel:
        self.waits.append(wait_seconds)
        self.clock.advance(min(1.0, 1.01 * wait_seconds))  # whoever waits ends a little late
        if wait_seconds < 1.0:
            raise KernelUnavailable("no kernel", reason="timeout")
        return super().fetch_kernel(request, run_id=run_id, wait_seconds=wait_seconds)


def slow_loop(*, enforce: bool) -> Loop:
    clock = ManualClock()
    config = KasminaConfig(warmup_steps=2, enforce_latency=enforce, latency_budgets=LatencyBudgets(fetch=50.0))
    loop = Loop(seeded(mlp), ["1", "2"], runtime=Slow(clock), config=config, clock=clock)
    loop.train_epoch(3)
    return loop


def test_without_enforcement_a_slow_fetch_is_counted_and_applied() -> None:
    """Goal: evidence only. Method: a fetch of one second against a budget of 50 ms."""
    loop = slow_loop(enforce=False)
    assert loop.germinate("1").result == ly.COMMAND_RESULT_APPLIED
    figures = loop.manager.figures()
    assert figures["kasmina.fetch.latency_ms"] == pytest.approx(1000.0)
    assert (figures["kasmina.fetch.over_budget"], figures["kasmina.latency.breaker_open"]) == (1.0, 0.0)


def test_enforced_a_slow_fetch_ends_and_the_breaker_refuses() -> None:
    """Goal: conservative mode, by recorded verdicts. Method: three slow fetches, a refusal, all repeated."""
    lived = slow_loop(enforce=True)
    commands, decisions = [], []
    for epoch in (1, 2, 3, 4):
        command = seed_command(ly.SEED_OP_GERMINATE, epoch=epoch, slot="1", blueprint="BYPASS")
        commands.append(command)
        decisions.append(lived.manager.handle_command(command, epoch=epoch, append=lived.log.append))
        lived.train_epoch(3)
    reasons = [decision.reason for decision in decisions]
    assert reasons == ["kernel_unavailable:timeout"] * 3 + [LATENCY_OPEN]
    assert lived.manager._examiner._runtime.waits == [0.05] * 3  # type: ignore[attr-defined]  # it is Slow
    assert [notice.attributes["kind"] for notice in lived.manager.notices()] == ["latency_breaker"]
    after = state_digest({**module_state(lived.model), **lived.manager.state()})
    # The repeat enforces nothing, and its runtime would give the kernel.
    again = Loop(seeded(mlp), ["1", "2"], config=KasminaConfig(warmup_steps=2))
    for command, decision in zip(commands, decisions, strict=True):
        again.train_epoch(3)
        repeated = again.manager.decide(
            command, epoch=again.epoch, recorded=outcome_of(decision, command, epoch=again.epoch)
        )
        for event in repeated.events:
            again.manager.fold(event)
        assert (repeated.result, repeated.reason) == (decision.result, decision.reason)
    again.train_epoch(3)
    assert state_digest({**module_state(again.model), **again.manager.state()}) == after


def test_the_stall_of_a_graft_is_told_in_milliseconds_and_steps() -> None:
    """Goal: how long training stands still for a graft. Method: steps of 0.5 s and a fetch of 1 s on a manual clock."""
    clock = ManualClock()
    loop = Loop(seeded(mlp), ["1"], runtime=Slow(clock), config=KasminaConfig(warmup_steps=2), clock=clock)
    loop.model.train()
    for _ in range(4):
        clock.advance(0.5)
        loop.step()
    assert loop.manager.stalls == []
    clock.advance(7.0)  # whatever lies between the last step and the edge is no step's time
    loop.epoch = 1
    loop.manager.end_epoch(1)
    assert loop.germinate("1").result == ly.COMMAND_RESULT_APPLIED
    (stall,) = loop.manager.stalls
    assert (stall.operation, stall.epoch, stall.seed_id) == (ly.SEED_OP_GERMINATE, 1, "1.1")
    assert (stall.fetch_ms, stall.ms) == (pytest.approx(1000.0), pytest.approx(1000.0))
    assert (stall.step_ms, stall.steps) == (pytest.approx(500.0), pytest.approx(2.0))
    figures = loop.manager.figures()
    assert figures["kasmina.graft.stall_ms"] == pytest.approx(1000.0)
    assert figures["kasmina.graft.stall_steps"] == pytest.approx(2.0)


def test_a_refused_order_is_no_stall_of_a_graft() -> None:
    """Goal: only grafts count. Method: an order that nobody can carry out."""
    loop = Loop(seeded(mlp), ["1"], config=KasminaConfig(warmup_steps=2))
    loop.train_epoch(3)
    assert loop.germinate("no such slot").result == ly.COMMAND_RESULT_REJECTED
    assert loop.manager.stalls == []
    assert set(OPERATIONS) == {"decide", "fetch", "germinate", "blend", "measure"}
