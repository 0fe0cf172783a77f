"""Workers that are killed or halted anywhere: another attempt ends their runs as if nothing had been.

Run as a program, this file is the worker that is killed: a process of its own with the real Kasmina.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from esper.core.clock import SYSTEM_CLOCK
from esper.core.settings import load_settings
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.tolaria import build_service
from esper.weatherlight._grafting import controller
from tests.campaigns import WHOLE, seed_of
from tests.conftest import RunningBroker
from tests.integration.driver import Esper
from tests.kasmina.kernels import SharedKernels
from tests.tolaria.live import Log, ask, eventually, judge, responder, worker
from tests.tolaria.test_recorded_runs import EASY, EPOCHS, PATIENCE_SECONDS, Plan, difference, grafting, recorded

REPOSITORY = Path(__file__).resolve().parents[2]
KILLS = 50 if WHOLE else 3
HALTS = 10 if WHOLE else 1
#: Nobody holds a member's lock under this name: to its home the worker is dead as soon as it is halted.
VICTIM = "tolaria-9"
#: Longer than an epoch of these runs takes: a kill may come at any moment of one.
EPOCH_SECONDS = 0.5
PLANS = [
    Plan("lines", "cnn_bn", "grafts at random", 101, 2, {"clip_norm": 0.3}),
    Plan("spirals", "mlp", "grafts at random", 202, 3, {"gradient_accumulation": 2.0}),
    Plan("squares", "cnn", "grafts at random", 303, 0, {"bfloat16": 1.0}),
]
Note = Callable[[str, object], None]


def work(home: str, kernels: str, every: int) -> None:
    """Train whatever is requested until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    runtime = SharedKernels(Path(kernels))
    settings = load_settings(_env_file=None, home=home, checkpoint_every_epochs=every)
    with Fabric.open(settings, member="victim") as fabric:
        build_service(
            fabric,
            controller_factory=lambda setup: controller(setup, runtime, EASY),
            judge_factory=judge,
            instance=VICTIM,
        ).run(stop)


@contextmanager
def victim(broker: RunningBroker, kernels: Path, every: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run this file as a worker; kill it at the end if it still lives."""
    words = [str(broker.settings.home), str(kernels), str(every)]
    command = [sys.executable, "-m", "tests.tolaria.test_takeover_campaign", *words]
    with subprocess.Popen(command, cwd=REPOSITORY, env=broker.environment) as process:
        try:
            yield process
        finally:
            process.kill()


def reached(log: Log, epoch: int) -> None:
    """Wait until the packet of an epoch is in the log."""
    eventually(
        lambda: len(log.of(ly.SystemStatePacket)) >= epoch,
        what=f"the packet of epoch {epoch}",
        seconds=PATIENCE_SECONDS,
    )


def pause(seconds: float) -> None:
    """Let a part of an epoch pass: a kill is to come at any moment of it."""
    SYSTEM_CLOCK.sleep(seconds)


def digests_of(log: Log) -> list[str]:
    """Return the digest of each epoch, as the attempts that count recorded them."""
    packets: dict[int, str] = {}
    for packet in log.of(ly.SystemStatePacket):
        packets.setdefault(packet.current_epoch, packet.weights_digest)
    return [packets[epoch] for epoch in sorted(packets)]


class Disturbance:
    """Runs that lose their worker, and what the same runs come to without that."""

    def __init__(self, broker: RunningBroker, fabric: Fabric, kernels: Path) -> None:
        self.broker, self.fabric, self.kernels = broker, fabric, kernels
        self.runtime = SharedKernels(kernels)
        self.expected: dict[int, list[str]] = {}
        self.ends: dict[int, str] = {}
        self.restored: Counter[int] = Counter()

    def undisturbed(self, plan: Plan) -> list[str]:
        """Return the digests of a run of this plan that nobody disturbs."""
        if plan.seed not in self.expected:
            answers = partial(grafting, seed=plan.seed)
            asked = plan.ask(self.fabric)
            self.expected[plan.seed] = recorded(self.fabric, asked, answers, self.runtime)
            self.ends[plan.seed] = Log(self.fabric, asked.run_id).finished().digest
        return self.expected[plan.seed]

    @contextmanager
    def lost(self, plan: Plan, how: signal.Signals, *, epoch: int, part: float) -> Iterator[tuple[str, int]]:
        """Send the worker of a new run a signal, somewhere in the epoch after `epoch`; yield run and process id."""
        expected = self.undisturbed(plan)
        with victim(self.broker, self.kernels, plan.checkpoint_every) as process:
            asked = plan.ask(self.fabric)
            log = Log(self.fabric, asked.run_id)
            with responder(self.fabric, asked.run_id, partial(grafting, seed=plan.seed)):
                reached(log, epoch)
                pause(part)
                process.send_signal(how)
                with worker(self.fabric, controller_factory=lambda setup: controller(setup, self.runtime, EASY)):
                    finished = log.finished(PATIENCE_SECONDS)
            assert digests_of(log) == expected, (plan, how, epoch, part)
            assert finished.digest == self.ends[plan.seed]
            claims = [claim.attempt for claim in log.of(ly.TrainingRunClaimed)]
            self.restored[max(claims)] += 1
            assert difference(self.fabric, asked.run_id, self.runtime) is None
            yield asked.run_id, process.pid


@pytest.fixture
def disturbance(broker: RunningBroker, fabric: Fabric, tmp_path: Path) -> Disturbance:
    return Disturbance(broker, fabric, tmp_path)


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_a_kill_at_any_moment_changes_no_digest(
    request: pytest.FixtureRequest, disturbance: Disturbance, record_property: Note
) -> None:
    """Goal: no kill changes a run. Method: kill -9 of a worker process at random moments of runs that graft at random;
    another attempt ends each with the digests of an undisturbed run, and the record computes again."""
    chosen = random.Random(seed_of(request))  # noqa: S311 - when it is killed, not a secret
    for number in range(KILLS):
        epoch, part = chosen.randint(1, EPOCHS - 2), chosen.uniform(0.0, EPOCH_SECONDS)
        with disturbance.lost(PLANS[number % len(PLANS)], signal.SIGKILL, epoch=epoch, part=part):
            pass
    record_property("kills", KILLS)
    record_property("runs_by_their_last_attempt", {str(each): n for each, n in disturbance.restored.items()})
    assert disturbance.restored[2], "no kill came before a run's end"


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_a_halted_worker_that_wakes_later_changes_nothing(
    request: pytest.FixtureRequest, disturbance: Disturbance, record_property: Note
) -> None:
    """Goal: a fenced attempt is nobody. Method: SIGSTOP a worker at random moments, let another end its run, wake it,
    and let it train another run, which it does only after it left the first; then append what it could have had under
    way. What `runs show` tells, what computes again and the run's only end stay as they were."""
    chosen = random.Random(seed_of(request))  # noqa: S311 - when it is halted, not a secret
    fabric, shown = disturbance.fabric, Esper(disturbance.broker.settings.home, dict(disturbance.broker.told))
    for number in range(HALTS):
        epoch, part = chosen.randint(1, EPOCHS - 3), chosen.uniform(0.0, EPOCH_SECONDS)
        plan = PLANS[number % len(PLANS)]
        with disturbance.lost(plan, signal.SIGSTOP, epoch=epoch, part=part) as (run_id, pid):
            before = shown("runs", "show", run_id, "--json").json
            os.kill(pid, signal.SIGCONT)
            after = ask(fabric, epochs=1, decision_wait_seconds=0.1)
            Log(fabric, after.run_id).finished(PATIENCE_SECONDS)
            late_records(fabric, run_id)
            assert shown("runs", "show", run_id, "--json").json == before
            assert before["digest"] == disturbance.ends[plan.seed]
            assert difference(fabric, run_id, disturbance.runtime) is None
    record_property("halts", HALTS)


def late_records(fabric: Fabric, run_id: str) -> None:
    """Append, as the first attempt, an epoch that it would have had under way and an end, all of it untrue."""
    log = Log(fabric, run_id)
    packet = log.of(ly.SystemStatePacket)[-1]
    packet.attempt, packet.weights_digest, packet.validation_loss = 1, "0" * 64, 99.0
    outcome = log.of(ly.CommandOutcome)[-1]
    outcome.attempt, outcome.reason = 1, "late"
    packet.ClearField("meta")
    outcome.ClearField("meta")
    with fabric.publisher("tolaria") as publisher:
        publisher.publish(packet, key=run_id)
        publisher.publish(outcome, key=run_id)


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], int(sys.argv[3]))
