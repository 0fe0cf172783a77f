"""Two processes that know nothing of each other but the log, and what a SIGKILL does to one of them.

Run as a program, this file is the second process: a worker that claims each run that is requested.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from esper.core.clock import Deadline
from esper.core.ids import derive_id, new_run_id
from esper.core.settings import load_settings
from esper.leyline import messages as ly
from esper.oona import Event, Fabric, Reader
from tests.conftest import RunningBroker

REPOSITORY = Path(__file__).resolve().parents[2]


def work(home: str, group: str, name: str) -> None:
    """Claim every requested run until SIGTERM; a claim's id follows from the request's."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with Fabric.open(load_settings(_env_file=None, home=home), member=name) as fabric:
        publisher = fabric.publisher("tolaria")

        def claim(event: Event) -> None:
            request = cast("ly.TrainingRunRequested", event.message)
            claimed = ly.TrainingRunClaimed(run_id=request.run_id, attempt=1, worker=name)
            publisher.publish(
                claimed,
                key=request.run_id,
                causation_id=event.meta.event_id,
                event_id=derive_id(request.run_id, "claim", 1),
            )

        fabric.consumer(
            group=group,
            instance=name,
            topics=["run-requests"],
            handlers={ly.TrainingRunRequested: claim},
            publisher=publisher,
        ).run(stop)


@contextmanager
def worker(broker: RunningBroker, group: str, name: str = "worker-0") -> Iterator[subprocess.Popen[bytes]]:
    """Run this file as a worker process; kill it at the end if it still lives."""
    command = [sys.executable, "-m", "tests.integration.test_two_processes", str(broker.settings.home), group, name]
    with subprocess.Popen(command, cwd=REPOSITORY) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def claims(fabric: Fabric) -> Iterator[Reader]:
    """Return a reader of `runs` from its present end."""
    with fabric.reader(dict.fromkeys(fabric.topics.partitions("runs"), "end")) as reader:
        yield reader


def request_runs(fabric: Fabric, count: int) -> dict[str, str]:
    """Append requests for fresh runs; return the request's event id by run id."""
    with fabric.publisher("cli") as publisher:
        pending = {}
        for _ in range(count):
            run_id = new_run_id()
            request = ly.TrainingRunRequested(run_id=run_id, task="mnist1d", epochs=1)
            pending[run_id] = publisher.submit(request, key=run_id)
        return {run_id: one.result().event_id for run_id, one in pending.items()}


def read_claims(reader: Reader, requested: dict[str, str], found: list[Event], *, until: int) -> None:
    """Add claims of requested runs to `found` until so many runs are claimed."""
    deadline = Deadline(60.0)
    while len({event.meta.subject for event in found}) < until:
        assert not deadline.expired, f"{len(found)} claims of {until}"
        found += [event for event in reader.read(0.2) if event.meta.subject in requested]


def test_request_in_one_process_is_answered_by_another(broker: RunningBroker, fabric: Fabric, claims: Reader) -> None:
    """Two real processes meet in two topics of a real broker: request 20 runs, wait for the other's claims."""
    requested = request_runs(fabric, 20)
    with worker(broker, "test.two-processes") as process:
        found: list[Event] = []
        read_claims(claims, requested, found, until=20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, "SIGTERM ends a member cleanly"
    assert {event.meta.subject: event.meta.causation_id for event in found} == requested
    assert len(found) == 20
    assert {event.meta.source for event in found} == {"tolaria"}
    assert len({event.meta.producer_id for event in found}) == 1


@pytest.mark.campaign
def test_killed_worker_resumes_without_loss(broker: RunningBroker, fabric: Fabric, claims: Reader) -> None:
    """A SIGKILL loses nothing: kill the worker three times among 600 requests; every run is claimed, under one id."""
    group = f"test.{new_run_id()}"
    requested = request_runs(fabric, 600)
    found: list[Event] = []
    for share in (100, 250, 400):
        with worker(broker, group) as process:
            read_claims(claims, requested, found, until=share)
            process.send_signal(signal.SIGKILL)
            assert process.wait(30) == -signal.SIGKILL
    with worker(broker, group) as process:
        read_claims(claims, requested, found, until=600)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert {event.meta.subject for event in found} == set(requested)
    assert all(event.meta.event_id == derive_id(event.meta.subject, "claim", 1) for event in found)
    assert len({event.meta.producer_id for event in found}) == 4
    repeated = Counter(event.meta.subject for event in found)
    assert max(repeated.values()) <= 4, "a run is claimed again only by a life that followed a kill"


if __name__ == "__main__":
    work(*sys.argv[1:4])
