"""What a loop of the user's own says in the log: its claim, its start and its end."""

from __future__ import annotations

import contextlib
import threading

from esper.core.errors import BrokerUnavailable
from esper.core.ids import RunId, derive_id, new_run_id
from esper.core.numerics import TRAINING_DISTRIBUTIONS, code_version, dependencies_digest
from esper.leyline import messages as ly
from esper.oona import Fabric, Publisher, Reader
from esper.tolaria import ClaimBook, Claimed, CommandInbox, EmergencyDesk, KafkaJournal, claim
from esper.weatherlight._grafting import judge_factory
from esper.weatherlight._grow._wishes import Wishes

TASK = "own"
_ATTEMPT = 1


class GrowRecord:
    """The log's side of one run: asks for it, claims it, and opens the journal of its epochs."""

    def __init__(self, fabric: Fabric, wishes: Wishes, *, host: str) -> None:
        self.run_id: RunId = new_run_id()
        self.host = host
        self.worker = f"grow-{self.run_id}"
        self._fabric = fabric
        self._wishes = wishes
        self._publisher = fabric.publisher("tolaria")
        self._opened: list[Reader | Publisher] = []
        self._claimed = self._claim()

    def _claim(self) -> Claimed:
        wishes = self._wishes
        request = ly.TrainingRunRequested(
            run_id=self.run_id,
            task=TASK,
            host=self.host,
            policy=wishes.policy,
            epochs=wishes.epochs,
            seed=wishes.seed,
            experiment_name=wishes.name,
            re_executable=False,
            slots=[] if wishes.slots == "auto" else list(wishes.slots),
            digest_every_epochs=wishes.digest_every_epochs,
        )
        with contextlib.closing(self._fabric.publisher("grow")) as requests:
            requests.publish(request, key=self.run_id)
        book = ClaimBook(self._fabric)
        try:
            claimed = claim(book, self._publisher, request, worker=self.worker, attempt=_ATTEMPT)
        finally:
            book.close()
        assert claimed is not None, "nobody else knows this run"
        return claimed

    def open_journal(self) -> KafkaJournal:
        """Return a journal that appends from here on and hears the commands that come from now on.

        Opened again, it does so with new connections, and says in the log where the old ones ended.

        Raises:
            BrokerUnavailable: the log cannot be written.
        """
        if self._opened:
            self._publisher = self._fabric.publisher("tolaria")
        self._drop_connections()
        fabric, claimed = self._fabric, self._claimed
        commands = ("adaptation-commands", fabric.partition_of("adaptation-commands", self.run_id))
        reader = fabric.reader({commands: "end", ("runs", claimed.partition): claimed.offset + 1})
        self._opened.append(reader)
        seeds = fabric.publisher("kasmina")
        self._opened.append(seeds)
        inbox = CommandInbox(
            run_id=self.run_id,
            attempt=_ATTEMPT,
            source=reader,
            judge=judge_factory(fabric)(self.run_id),
            wait_seconds=fabric.settings.decision_wait_seconds,
            stop=threading.Event(),
        )
        return KafkaJournal(
            run_id=self.run_id,
            attempt=_ATTEMPT,
            publisher=self._publisher,
            seed_publisher=seeds,
            inbox=inbox,
            emergencies=EmergencyDesk(self.run_id, fabric.emergencies.inbox),
        )

    def _drop_connections(self) -> None:
        while self._opened:
            # One that lost its broker has nothing left to say, and has said so.
            with contextlib.suppress(BrokerUnavailable):
                self._opened.pop().close()

    def started(self, *, numerics: ly.NumericsFingerprint, parameters: int, digest: str) -> None:
        """Append that the run starts."""
        message = ly.TrainingRunStarted(
            run_id=self.run_id,
            attempt=_ATTEMPT,
            worker=self.worker,
            numerics=numerics,
            code_version=code_version(),
            dependencies_digest=dependencies_digest(TRAINING_DISTRIBUTIONS),
            parameters=parameters,
            initial_digest=digest,
        )
        self._publisher.publish(message, key=self.run_id)

    def finished(self, end: ly.TrainingRunFinished) -> None:
        """Append the end of the run."""
        end.run_id, end.attempt = self.run_id, _ATTEMPT
        self._publisher.publish(end, key=self.run_id, event_id=derive_id(self.run_id, "finished", _ATTEMPT))

    def failed(self, detail: str, *, epochs: int) -> None:
        """Append that the loop did not come to its end."""
        message = ly.TrainingRunFailed(
            run_id=self.run_id, attempt=_ATTEMPT, reason="loop_failed", detail=detail, epochs=epochs
        )
        self._publisher.publish(message, key=self.run_id, event_id=derive_id(self.run_id, "failed", _ATTEMPT))

    def tell_gap(self, *, first_epoch: int, last_epoch: int, seconds: float) -> None:
        """Append, signed, that these epochs were trained while no broker answered, and recorded afterwards."""
        self._publisher.raise_emergency(
            ly.EMERGENCY_LEVEL_NOTICE,
            "log_gap",
            run_id=self.run_id,
            attributes={
                "first_epoch": str(first_epoch),
                "last_epoch": str(last_epoch),
                "seconds": f"{seconds:.3f}",
            },
        )
