"""The housekeeper: the one member that reads every topic, judges what nobody else reads, and signs checkpoints."""

from __future__ import annotations

import threading
from typing import Final, Self

from esper.oona._fabric import Fabric
from esper.oona.housekeeping._reports import Archived, RebuiltFrom, Reports, no_archive, no_projections
from esper.oona.proof._writer import CheckpointWriter
from esper.oona.publishing._publisher import Publisher

GROUP: Final = "esper.housekeeping"
SOURCE: Final = "oona"
#: A bad record hurts nobody before it is named; half a second later is soon enough.
_GATHER_SECONDS: Final = 0.5


class Housekeeper:
    """Member of the group `esper.housekeeping` on all topics; handles nothing, sets aside what must not be believed.

    Topics whose readers only tail them, or that nobody reads yet, are watched like all others. Beside it, a
    `CheckpointWriter` signs what every partition holds, and `Reports` emit metrics and delete what expired.
    """

    def __init__(
        self,
        fabric: Fabric,
        *,
        instance: str,
        rebuilt_from: RebuiltFrom = no_projections,
        archived: Archived = no_archive,
    ) -> None:
        self._fabric = fabric
        self._instance = instance
        self._rebuilt_from = rebuilt_from
        self._archived = archived

    def run(self, stop: threading.Event) -> None:
        """Watch until `stop` is set; the last checkpoint is written after the last dead letter.

        Sets `stop` itself when checkpoints can no longer be written, and then raises.

        Raises:
            BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
            SecretError: the log key cannot be used.
        """
        with self._fabric.publisher(SOURCE) as publisher, _Writing(self._fabric, publisher, ends=stop) as writing:
            consumer = self._fabric.consumer(
                group=GROUP,
                instance=self._instance,
                topics=[spec.name for spec in self._fabric.topics],
                handlers={},
                publisher=publisher,
                gather_seconds=_GATHER_SECONDS,
            )
            with Reports(self._fabric, publisher, rebuilt_from=self._rebuilt_from, archived=self._archived):
                consumer.run(stop)
            writing.complete()


class _Writing:
    """The thread in which checkpoints are written; leaving the block waits for it and raises what it died of."""

    def __init__(self, fabric: Fabric, publisher: Publisher, *, ends: threading.Event) -> None:
        self._writer = CheckpointWriter(fabric, publisher)
        self._ends = ends
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def complete(self) -> None:
        """Let the writer cover what is there, and wait for it; raises what it died of."""
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def __exit__(self, *_: object) -> None:
        # After a failure of the watch itself there may be no broker: nothing is covered on the way out.
        self._writer.abandon()
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._writer.run(self._stop)
        except BaseException as error:  # noqa: BLE001 - handed to the member's own thread, which raises it
            self._failure = error
            self._ends.set()


def build_housekeeper(
    fabric: Fabric,
    *,
    instance: str = "housekeeper-0",
    rebuilt_from: RebuiltFrom = no_projections,
    archived: Archived = no_archive,
) -> Housekeeper:
    """Return the service; `instance` is its stable name in its group.

    `rebuilt_from` names the topics that projections are made from: of those nothing expires that `archived` does not
    say the archive holds. Of a partition that the archive seals nothing expires that it has not sealed.
    """
    return Housekeeper(fabric, instance=instance, rebuilt_from=rebuilt_from, archived=archived)
