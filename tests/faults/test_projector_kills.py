"""The projector is killed again and again, and the broker now and then, while events flow; the tables show nothing."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import NotReadyError
from esper.core.ids import derive_id
from esper.core.rng import derive_seed
from esper.leyline import messages as ly
from esper.oona import Fabric, Pending
from esper.projection import catch_up, query, verify
from esper.projection.serving._control import find_projector
from tests.campaigns import WHOLE
from tests.conftest import RunningBroker, StartBroker
from tests.faults._members import Member

Note = Callable[[str, object], None]
BROKER_RETRY_SECONDS: Final = 30.0
_TICK_SECONDS: Final = 0.02
_IN_FLIGHT_MAX: Final = 2_000
_SETTLE_SECONDS: Final = 900.0
RUNS: Final = 64


@dataclass(frozen=True)
class Scale:
    """How many events flow, and how often the projector and the broker die meanwhile."""

    events: int
    projector: int
    broker: int


SCALE: Final = Scale(1_000_000, 200, 12) if WHOLE else Scale(8_000, 4, 1)


class Flow:
    """Publishes state packets from a thread, up to a target that is moved on; each event has an id of its own."""

    def __init__(self, fabric: Fabric, seed: int) -> None:
        self.acknowledged = 0
        self._seed = seed
        self._target = 0
        self._submitted = 0
        self._stop = threading.Event()
        self._publisher = fabric.publisher("tolaria")
        self._flight: deque[Pending] = deque()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="flow", daemon=True)
        self._thread.start()

    def up_to(self, target: int) -> None:
        """Let it flow on up to this many events."""
        self._target = target

    def check(self) -> None:
        """Raise what ended it."""
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        """Stop it."""
        self._stop.set()
        self._thread.join(120)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if self._submitted < self._target and len(self._flight) < _IN_FLIGHT_MAX:
                    self._submit()
                else:
                    self._collect(wait=True)
        except BaseException as error:  # noqa: BLE001 - raised in the campaign's own thread by `check`
            self._failure = error
        finally:
            self._publisher.close()

    def _submit(self) -> None:
        index = self._submitted
        packet = ly.SystemStatePacket(
            training_run_id=f"run-{index % RUNS}", current_epoch=index // RUNS + 1, validation_loss=index / 7
        )
        event_id = derive_id("projector kills", self._seed, index)
        self._flight.append(self._publisher.submit(packet, key=packet.training_run_id, event_id=event_id))
        self._submitted += 1
        self._collect(wait=False)

    def _collect(self, *, wait: bool) -> None:
        while self._flight and self._flight[0].done:
            self._flight.popleft().result()
            self.acknowledged += 1
        if wait:
            self._stop.wait(0.002)


class Campaign:
    """The faults, drawn from a seed, each in the midst of a share of the events."""

    def __init__(self, broker: RunningBroker, scale: Scale, seed: int, folder: Path) -> None:
        self.kills: Counter[str] = Counter()
        self.projector = Member(
            "projector",
            lambda: ["esper.cli", "run", "projector"],
            environment={
                "ESPER_HOME": str(broker.settings.home),
                "ESPER_BROKER_RETRY_SECONDS": str(BROKER_RETRY_SECONDS),
            },
            folder=folder,
            hear=lambda _: None,
            lives_to_tell=False,
        )
        self._broker = broker
        self._scale = scale
        self._random = random.Random(derive_seed(seed, "projector kills"))  # noqa: S311 - a seeded campaign
        self._broker_back_at: float | None = None

    def run(self, flow: Flow) -> None:
        """Do every fault while events flow, then wait until all of them are published."""
        faults = ["projector"] * self._scale.projector + ["broker"] * self._scale.broker
        self._random.shuffle(faults)
        share = self._scale.events // len(faults)
        for number, fault in enumerate(faults):
            flow.up_to((number + 1) * share)
            wanted = number * share + int(share * self._random.random())
            self._until(lambda wanted=wanted: flow.acknowledged >= wanted, flow)
            if fault == "broker":
                self._kill_broker()
            else:
                self._kill_projector(flow)
        flow.up_to(self._scale.events)
        self._until(lambda: flow.acknowledged == self._scale.events, flow)

    def _kill_broker(self) -> None:
        assert self._broker.local.kill(), "the broker ran"
        self._broker_back_at = SYSTEM_CLOCK.monotonic() + self._random.uniform(0.0, 1.0)
        self.kills["broker"] += 1

    def _kill_projector(self, flow: Flow) -> None:
        """Kill it as it starts, or a random moment after it began to fold."""
        if self._random.random() < 0.7:
            self._until(lambda: self._answers() and self._broker_back_at is None, flow)
            delay, phase = self._random.uniform(0.0, 0.6), "projector at work"
        else:
            delay, phase = self._random.uniform(0.0, 2.0), "projector, whatever it did"
        until = SYSTEM_CLOCK.monotonic() + delay
        self._until(lambda: self.projector.alive and SYSTEM_CLOCK.monotonic() >= until, flow)
        self.projector.kill(restart_after=self._random.uniform(0.0, 0.2))
        self.kills[phase] += 1

    def _answers(self) -> bool:
        try:
            return find_projector(self._broker.home) is not None
        except NotReadyError:
            return False

    def _until(self, true: Callable[[], bool], flow: Flow) -> None:
        deadline = Deadline(_SETTLE_SECONDS)
        while not true():
            if self._broker_back_at is not None and SYSTEM_CLOCK.monotonic() >= self._broker_back_at:
                self._broker.local.start()
                self._broker_back_at = None
            self.projector.tend()
            flow.check()
            assert not deadline.expired, self.projector.last_words()
            SYSTEM_CLOCK.sleep(_TICK_SECONDS)

    def settle(self, fabric: Fabric) -> None:
        """Let the last life of the projector come to the end of the log, and end it."""
        deadline = Deadline(_SETTLE_SECONDS)
        while not self._answers():
            self.projector.tend()
            assert not deadline.expired, self.projector.last_words()
            SYSTEM_CLOCK.sleep(_TICK_SECONDS)
        catch_up(fabric, seconds=_SETTLE_SECONDS)


@pytest.mark.campaign
@pytest.mark.timeout(7200 if WHOLE else 900)
def test_a_projector_may_be_killed_at_any_time(
    start_broker: StartBroker,
    tmp_path: Path,
    record_property: Note,
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Goal: however often the projector dies, its tables are those of a clean replay.

    Method: kill -9 of the projector, as it starts and as it folds, and of the broker, at points drawn from a seed while
    events flow; then every table of every projection has the hash that a replay gives up to the same offsets, every
    event stands once, and the accounts add up.
    """
    seed = int(os.environ.get("CAMPAIGN_SEED") or request.config.getoption("randomly_seed", 0))
    with capfd.disabled():
        sys.stderr.write(f"\nprojector kills: CAMPAIGN_SEED={seed}\n")
    running = start_broker(broker_retry_seconds=BROKER_RETRY_SECONDS)
    campaign = Campaign(running, SCALE, seed, tmp_path)
    began = SYSTEM_CLOCK.monotonic()
    with Fabric.open(running.settings, member="flow") as fabric:
        flow = Flow(fabric, seed)
        try:
            campaign.run(flow)
            seconds = SYSTEM_CLOCK.monotonic() - began
            campaign.settle(fabric)
            verdict = verify(fabric)
            [row] = query(
                "select count(*) as n, count(distinct event_id) as ids from run_states", settings=running.settings
            ).to_pylist()
            accounts = query("from runs.esper.accounts where read > 0", settings=running.settings).to_pylist()
        finally:
            flow.end()
            campaign.projector.end()
    different = [
        (one["name"], table["table"]) for one in verdict["projections"] for table in one["tables"] if not table["equal"]
    ]
    figures = {
        "seed": seed,
        "events": row["n"],
        "kills": campaign.kills.total(),
        "kills_by_kind": dict(campaign.kills),
        "projector_processes": campaign.projector.lives,
        "ended_because_the_broker_was_away": campaign.projector.ended_by_themselves[3],
        "tables_compared": sum(len(one["tables"]) for one in verdict["projections"]),
        "tables_that_differ": len(different),
        "seconds_under_faults": round(seconds, 1),
    }
    for name, value in figures.items():
        record_property(name, value)
    assert different == [], figures
    assert row == {"n": SCALE.events, "ids": SCALE.events}
    assert all(one["adds_up"] for one in accounts), accounts
    assert campaign.kills["broker"] == SCALE.broker
    assert campaign.kills.total() == SCALE.projector + SCALE.broker
