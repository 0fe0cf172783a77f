"""The worker: a member of the group that takes requested runs, one at a time, and trains them."""

from __future__ import annotations

import logging
import threading
from typing import Final

from esper.core.clock import Deadline
from esper.core.errors import IntegrityError
from esper.core.home import live_members
from esper.core.stacks import STACK_LOST, is_stacked
from esper.leyline import messages as ly
from esper.oona import Consumer, Event, Fabric
from esper.tolaria._setup import ControllerFactory
from esper.tolaria.worker._attempt import Wiring, execute
from esper.tolaria.worker._claims import ATTEMPTS_MAX, ClaimBook, Claimed, RunClaim, claim
from esper.tolaria.worker._failures import publish_failure
from esper.tolaria.worker._inbox import JudgeFactory

_log = logging.getLogger("esper.tolaria.service")

GROUP: Final = "esper.tolaria"
REQUESTS_TOPIC: Final = "run-requests"
_POLL_SECONDS: Final = 0.2
_READ_SECONDS: Final = 600.0
#: How often an idle worker looks for runs of dead ones; a supervisor starts a dead worker again in less.
_ORPHANS_SECONDS: Final = 5.0


class TolariaService:
    """Member `instance` of the group on run-requests.

    First it ends what its previous life began: runs that it claimed and that have no end get its next attempt,
    or TrainingRunFailed{worker_lost} after the third. Then it takes requests, and between them what a dead
    worker of its home left. It leaves the group's partitions while it trains, so that other workers can take
    what waits there.
    """

    def __init__(
        self,
        fabric: Fabric,
        *,
        controller_factory: ControllerFactory,
        judge_factory: JudgeFactory,
        instance: str = "tolaria-0",
    ) -> None:
        self._fabric = fabric
        self._instance = instance
        self._controller_factory = controller_factory
        self._judge_factory = judge_factory

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; a run in training is then left claimed for this worker's next life.

        Raises:
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
            IntegrityError: the log lacks what this worker needs of it.
        """
        with (
            self._fabric.publisher("tolaria") as publisher,
            self._fabric.publisher("kasmina") as seed_publisher,
        ):
            wiring = Wiring(
                fabric=self._fabric,
                worker=self._instance,
                publisher=publisher,
                seed_publisher=seed_publisher,
                controller_factory=self._controller_factory,
                judge_factory=self._judge_factory,
            )
            book = ClaimBook(self._fabric)
            try:
                _Worker(wiring, book, stop).run()
            finally:
                book.close()


class _Worker:
    """One life of the worker."""

    def __init__(self, wiring: Wiring, book: ClaimBook, stop: threading.Event) -> None:
        self._wiring = wiring
        self._book = book
        self._stop = stop
        self._won: list[Claimed] = []

    def run(self) -> None:
        while not self._stop.is_set():
            for unfinished in self._unfinished():
                if self._stop.is_set():
                    return
                self._take_up(unfinished)
            self._wait_for_requests()
            while self._won:
                execute(self._wiring, self._won.pop(0), self._stop)

    def _unfinished(self) -> list[RunClaim]:
        """Return what this worker's previous life, or a worker of this home that is dead, began and did not end."""
        home = self._wiring.fabric.home
        self._book.catch_up()
        alive = {member.name for member in live_members(home)}
        return self._book.unfinished(self._wiring.worker, home_id=home.home_id, alive=alive)

    def _take_up(self, unfinished: RunClaim) -> None:
        """Go on with a run that this worker's previous life left, or give it up."""
        attempt = unfinished.attempt
        if attempt >= ATTEMPTS_MAX:
            detail = f"{attempt} attempts of {unfinished.worker} ended without an end of the run"
            self._give_up(unfinished, reason="worker_lost", detail=detail)
            return
        try:
            request = find_request(self._wiring.fabric, unfinished)
        except IntegrityError as error:
            self._give_up(unfinished, reason="request_lost", detail=str(error))
            return
        message = request.message
        assert isinstance(message, ly.TrainingRunRequested), "the topic carries requests only"
        if is_stacked(message):
            detail = f"{unfinished.worker}, which trained its stack {message.stack.stack_id}, is gone"
            self._give_up(unfinished, reason=STACK_LOST, detail=detail)
            return
        claimed = self._claim(request, attempt=attempt + 1)
        if claimed is not None:
            execute(self._wiring, claimed, self._stop)

    def _claim(self, requested: Event, *, attempt: int) -> Claimed | None:
        wiring, request = self._wiring, requested.message
        assert isinstance(request, ly.TrainingRunRequested), "the topic carries requests only"
        return claim(
            self._book,
            wiring.publisher,
            request,
            worker=wiring.worker,
            attempt=attempt,
            home_id=wiring.fabric.home.home_id,
            requested_ms=requested.record.append_time_ms,
        )

    def _give_up(self, run: RunClaim, *, reason: str, detail: str) -> None:
        _log.warning("run %s is given up: %s", run.run_id, detail)
        publish_failure(
            self._wiring.publisher, run_id=run.run_id, attempt=run.attempt, reason=reason, detail=detail, epochs=0
        )

    def _wait_for_requests(self) -> None:
        """Be a member of the group until a request is won, a dead worker left a run, or the worker is to stop."""
        consumer: Consumer

        def on_request(event: Event) -> None:
            self._on_request(event)
            if self._won:
                # One run at a time: what else waits in these partitions is for whoever is free first.
                consumer.pause()

        consumer = self._wiring.fabric.consumer(
            group=GROUP,
            instance=self._wiring.worker,
            topics=[REQUESTS_TOPIC],
            handlers={ly.TrainingRunRequested: on_request},
            publisher=self._wiring.publisher,
        )
        with consumer:
            look = Deadline(_ORPHANS_SECONDS)
            while not self._won and not self._stop.is_set():
                consumer.poll(_POLL_SECONDS)
                if look.expired and not self._won:
                    if self._unfinished():
                        return
                    look = Deadline(_ORPHANS_SECONDS)

    def _on_request(self, event: Event) -> None:
        request = event.message
        assert isinstance(request, ly.TrainingRunRequested), "the handler is called for requests only"
        if not request.re_executable:
            _log.info("run %s is trained by its user's own loop", request.run_id)
            return
        if is_stacked(request):
            _log.info("run %s is trained by whoever collects its stack", request.run_id)
            return
        self._book.catch_up()
        known = self._book.run(request.run_id)
        if known is not None and (known.ended or known.producer_id != self._wiring.publisher.producer_id):
            _log.info("run %s was taken before", request.run_id)
            return
        claimed = self._claim(event, attempt=1)
        if claimed is not None:
            self._won.append(claimed)


def find_request(fabric: Fabric, run: RunClaim) -> Event:
    """Return the request behind a claim.

    Raises:
        IntegrityError: the log does not hold it.
    """
    partition = fabric.partition_of(REQUESTS_TOPIC, run.run_id)
    with fabric.reader({(REQUESTS_TOPIC, partition): "begin"}) as reader:
        for event in reader.read_to_end(_READ_SECONDS):
            if event.meta.event_id == run.request_event_id:
                return event
    raise IntegrityError(
        f"run {run.run_id} was claimed, but {REQUESTS_TOPIC}-{partition} does not hold its request",
        cause=f"there is no event {run.request_event_id}",
        next_step="`esper verify` shows what was lost",
    )


def build_service(
    fabric: Fabric,
    *,
    controller_factory: ControllerFactory,
    judge_factory: JudgeFactory,
    instance: str = "tolaria-0",
) -> TolariaService:
    """Return the worker; `instance` is its stable name in the group, used by one process at a time.

    `controller_factory` makes what grafts in each run, `judge_factory` what says which commands may be applied.
    """
    return TolariaService(fabric, controller_factory=controller_factory, judge_factory=judge_factory, instance=instance)
