"""The journal that outlives its broker, and what `grow` is asked for, each without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from esper.core.clock import ManualClock
from esper.core.errors import BrokerUnavailable, UsageError
from esper.core.ports import FetchedKernel, KernelUnavailable
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from esper.tolaria import Answer
from esper.weatherlight._grow._gap import GapJournal, RenewedRuntime
from esper.weatherlight._grow._wishes import LogLoss, check_helpers

EPOCHS = 6
#: What one epoch asks of its journal, in order.
CALLS = ("faults", "state", "command", "events", "outcome")


@dataclass
class Broker:
    """Answers `lives` calls, is then away for `absent` looks, and lives on; keeps what was appended."""

    lives: int
    absent: int = 0
    log: list[str] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    connections: int = 0

    def call(self) -> None:
        if self.lives == 0:
            raise BrokerUnavailable("the log cannot be written", cause="no broker answers")
        self.lives -= 1

    def answers(self) -> bool:
        if self.lives == 0 and self.absent > 0:
            self.absent -= 1
            return False
        if self.lives == 0:
            self.lives = 1_000
        return True

    def append(self, entry: str) -> None:
        self.call()
        self.log.append(entry)


@dataclass
class LiveJournal:
    """A journal that appends to such a broker."""

    broker: Broker

    def append_seed_events(self, epoch: int, events: list[EventMessage]) -> None:
        for event in events:
            self.broker.append(f"{epoch}:{event.reason}")  # type: ignore[union-attr]  # only moves are appended here

    def append_state(self, packet: ly.SystemStatePacket) -> None:
        self.broker.append(f"{packet.current_epoch}:state")

    def await_command(self, packet: ly.SystemStatePacket) -> Answer:
        self.broker.call()
        return Answer(reason="timeout")

    def append_outcome(self, outcome: ly.CommandOutcome) -> None:
        self.broker.append(f"{outcome.epoch}:outcome:{outcome.reason}")

    def submit_telemetry(self, epoch: int, packet: ly.TelemetryPacket) -> None:
        raise AssertionError("no telemetry is handed over here")


def journal(broker: Broker, clock: ManualClock | None = None) -> GapJournal:
    def connect() -> LiveJournal:
        broker.connections += 1
        broker.call()
        return LiveJournal(broker)

    return GapJournal(
        connect=connect,
        answers=broker.answers,
        tell_gap=lambda first, last, _: broker.gaps.append((first, last)),
        clock=clock or ManualClock(),
    )


def live_through(journal: GapJournal, epoch: int) -> str:
    """Go through one edge as EpochEdge does; return its outcome's reason."""
    journal.append_seed_events(epoch, [ly.SeedStageChanged(reason="fault")])
    packet = ly.SystemStatePacket(current_epoch=epoch)
    journal.append_state(packet)
    answer = journal.await_command(packet)
    journal.append_seed_events(epoch, [ly.SeedStageChanged(reason="move")])
    journal.append_outcome(ly.CommandOutcome(epoch=epoch, reason=answer.reason))
    return answer.reason


@pytest.mark.parametrize("absent", [0, 1, 2])
@pytest.mark.parametrize("lives", range(1, 1 + 2 * len(CALLS)))
def test_whatever_call_loses_the_broker_the_log_is_whole(lives: int, absent: int) -> None:
    """Goal: nothing is lost, twice or out of order. Method: the broker goes at each call, for 0 to 2 epochs more."""
    broker = Broker(lives, absent)
    one = journal(broker)
    reasons = [live_through(one, epoch) for epoch in range(1, EPOCHS + 1)]
    assert one.try_to_close()
    entries = [
        f"{epoch}:{what}"
        for epoch, reason in enumerate(reasons, 1)
        for what in ("fault", "state", "move", f"outcome:{reason}")
    ]
    assert broker.log == entries
    gap = [epoch for epoch, reason in enumerate(reasons, 1) if reason == "log_gap"]
    assert broker.gaps == ([(gap[0], gap[-1])] if gap else [])
    assert reasons[-1] == "timeout", "the log is heard again"


def test_a_broker_that_goes_again_while_the_gap_is_told_changes_nothing() -> None:
    """Goal: a gap that cannot be closed stays open. Method: a broker that answers and takes two entries only."""
    broker, clock = Broker(lives=2, absent=0), ManualClock()
    one = journal(broker, clock)
    live_through(one, 1)
    assert one.in_gap
    broker.lives = 3  # The connection and two entries.
    assert not one.try_to_close()
    assert one.in_gap
    broker.lives = 1_000
    clock.advance(1.0)
    assert one.try_to_close()
    assert broker.log == ["1:fault", "1:state", "1:move", "1:outcome:log_gap"]
    assert broker.gaps == [(1, 1)]


class Flapping(Broker):
    """Answers every look, and loses each connection before it was good for an entry."""

    def call(self) -> None:
        if self.connections != 1:
            raise BrokerUnavailable("the log cannot be written", cause="the broker went again")

    def answers(self) -> bool:
        return True


def test_a_broker_that_comes_and_goes_is_connected_to_ever_more_seldom() -> None:
    """Goal: a bounded number of connections. Method: 300 epochs of one second with a broker that answers every look and
    loses every connection; then it stays, and the log is whole.
    """
    broker, clock = Flapping(lives=0), ManualClock()
    one = journal(broker, clock)
    broker.connections = 2  # From now on it goes.
    for epoch in range(1, 301):
        assert live_through(one, epoch) == "log_gap"
        clock.advance(1.0)
    assert 8 <= broker.connections <= 2 + 7 + 2 * 300 / 30
    assert not one.try_to_close(unpaced=True)
    tried = broker.connections
    assert not one.try_to_close()
    assert broker.connections == tried, "only who waits by itself asks without a pace"
    broker.call = lambda: None  # type: ignore[method-assign]  # it stays
    assert one.try_to_close(unpaced=True)
    assert [entry for entry in broker.log if entry.endswith("state")] == [f"{epoch}:state" for epoch in range(1, 301)]
    assert broker.gaps == [(1, 300)]


def test_kernels_are_not_asked_for_at_every_edge_of_an_outage() -> None:
    """Goal: as above for what fetches kernels. Method: 100 failing fetches, one a second."""
    opened, clock = list[int](), ManualClock()

    def absent() -> FetchedKernel:
        raise BrokerUnavailable("no catalogue", cause="no broker answers")

    class Runtime:
        def fetch_kernel(self, request: ly.KernelRequestSpec, *, run_id: str, wait_seconds: float) -> FetchedKernel:
            return absent()

        def fetch_by_digest(self, artifact_ref: str) -> FetchedKernel:
            return absent()

    def open_runtime() -> Runtime:
        opened.append(len(opened))
        return Runtime()

    runtime = RenewedRuntime(open_runtime, clock=clock)
    for _ in range(100):
        with pytest.raises(KernelUnavailable) as refused:
            runtime.fetch_by_digest("digest")
        assert refused.value.reason == "log_gap"
        clock.advance(1.0)
    assert 4 <= len(opened) <= 2 + 7 + 2 * 100 / 30


def test_a_kernel_runtime_is_opened_anew_after_its_broker_was_away() -> None:
    """Goal: a lost broker refuses a kernel and no more. Method: a runtime that fails, and the one opened after it."""
    kernel = FetchedKernel(nn.Identity(), "digest", ly.ArtifactManifest(), 0.0)

    @dataclass
    class Runtime:
        ask: Callable[[], FetchedKernel]

        def fetch_kernel(self, request: ly.KernelRequestSpec, *, run_id: str, wait_seconds: float) -> FetchedKernel:
            return self.ask()

        def fetch_by_digest(self, artifact_ref: str) -> FetchedKernel:
            return self.ask()

    def lost() -> FetchedKernel:
        raise BrokerUnavailable("no catalogue", cause="no broker answers")

    opened = iter([Runtime(lost), Runtime(lambda: kernel)])
    runtime = RenewedRuntime(lambda: next(opened))
    with pytest.raises(KernelUnavailable) as refused:
        runtime.fetch_by_digest("digest")
    assert refused.value.reason == "log_gap"
    assert runtime.fetch_kernel(ly.KernelRequestSpec(), run_id="run", wait_seconds=1.0) is kernel


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("stop", LogLoss()),
        ("degrade", LogLoss(degrade=True)),
        ("hold:90", LogLoss(hold_seconds=90.0)),
        ("hold:0.5", LogLoss(hold_seconds=0.5)),
    ],
)
def test_what_on_log_loss_says(text: str, meaning: LogLoss) -> None:
    """Goal: the three words. Method: each of them."""
    assert LogLoss.of(text) == meaning


@pytest.mark.parametrize("text", ["", "hold", "hold:", "hold:-1", "hold:nan", "hold:inf", "hold:0", "ignore"])
def test_what_on_log_loss_cannot_say(text: str) -> None:
    """Goal: an error that names the words. Method: what is near them."""
    with pytest.raises(UsageError, match="stop, hold:SECONDS and degrade"):
        LogLoss.of(text)


def test_helpers_of_another_loop_are_refused() -> None:
    """Goal: a scaler or schedule that cannot do its part is refused. Method: wrong types, another optimiser's."""
    parameter = nn.Parameter(torch.zeros(1))
    mine, other = torch.optim.SGD([parameter], lr=0.1), torch.optim.SGD([parameter], lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(other, 1)
    check_helpers(other, torch.amp.GradScaler("cpu"), schedule)
    with pytest.raises(UsageError, match="do not belong together"):
        check_helpers(mine, None, schedule)
    with pytest.raises(UsageError, match="get_scale"):
        check_helpers(mine, object(), None)  # type: ignore[arg-type]  # a caller's mistake
    with pytest.raises(UsageError, match="get_last_lr"):
        check_helpers(mine, None, object())  # type: ignore[arg-type]  # a caller's mistake
