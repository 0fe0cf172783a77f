"""The intake of a long rebuild: partitions read, verified and decoded by several processes, committed by this one.

Signatures are Python's work and so one core's; a process more is a core more. Batches come over sockets, which hold
a process back that is ahead of the writer. Partitions never change their process, so that each one's order is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import wait
from socket import socket
from typing import TYPE_CHECKING, Final

from esper.core.errors import EsperError, OperationFailed
from esper.core.interpreter import tuned_for_throughput
from esper.core.settings import Settings
from esper.oona import Fabric, Position
from esper.projection._past import log_source
from esper.projection.columnar import ArrowDecoder, Batch
from esper.projection.intake._admission import Admission
from esper.projection.intake._delivery import receive, send, socket_pair
from esper.projection.intake._intake import LocalIntake, Taken
from esper.projection.records._source import LogState

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_POLL_SECONDS: Final = 0.1
_END_SECONDS: Final = 10.0


@dataclass(frozen=True)
class _Share:
    """What one process is to do."""

    settings: Settings
    wanted: frozenset[str]
    positions: dict[Position, int]
    records_max: int
    cold: bool


@dataclass(frozen=True)
class _Delivery:
    """What one process has read, and where it stands then."""

    batch: Batch | None
    positions: Mapping[Position, int]
    more: bool


class ParallelIntake:
    """Hands out batches as processes deliver them; `seek` starts those anew."""

    def __init__(
        self,
        fabric: Fabric,
        topics: Sequence[str],
        *,
        wanted: Collection[str],
        processes: int,
        records_max: int,
        cold: bool = False,
    ) -> None:
        self._fabric = fabric
        self._log = log_source(fabric, topics, cold=cold)
        self._cold = cold
        self._wanted = frozenset(wanted)
        self._processes = processes
        self._records_max = records_max
        self._positions: dict[Position, int] = {}
        self._workers: dict[socket, SpawnProcess] = {}
        #: Those that have more, as far as they told.
        self._busy: set[socket] = set()

    def topic_ids(self) -> Mapping[str, str]:
        """Return the id of each topic."""
        return self._log.topic_ids()

    def state(self) -> LogState:
        """Return what the log holds of every partition now."""
        return self._log.state()

    def seek(self, positions: Mapping[Position, int]) -> None:
        """Start processes that read on from these offsets, the longest partitions given out first."""
        self.close()
        self._positions = dict(positions)
        state = self._log.state()
        lengths = {place: state[place].high - offset for place, offset in positions.items()}
        shares: list[dict[Position, int]] = [{} for _ in range(self._processes)]
        loads = [0] * self._processes
        for place in sorted(lengths, key=lambda one: (-lengths[one], one)):
            least = loads.index(min(loads))
            shares[least][place] = positions[place]
            loads[least] += lengths[place]
        # Spawned, not forked: the client library's threads do not survive a fork.
        context = get_context("spawn")
        for share in filter(None, shares):
            ours, theirs = socket_pair()
            work = _Share(self._fabric.settings, self._wanted, share, self._records_max, self._cold)
            process = context.Process(target=_deliver, args=(theirs, work), daemon=True)
            process.start()
            theirs.close()
            self._workers[ours] = process
            self._busy.add(ours)

    def take(self, timeout: float) -> Taken | None:
        """Return the next batch that a process delivered; None when none came in time.

        Raises what reading raised in that process; OperationFailed when it ended without a word.
        """
        ready = wait(list(self._workers), timeout)
        if not ready:
            return None
        connection = ready[0]
        assert isinstance(connection, socket), "only sockets are waited for"
        try:
            delivery = receive(connection)
        except (EOFError, ConnectionResetError):
            process = self._workers[connection]
            process.join(_END_SECONDS)
            raise OperationFailed(
                "a process that reads the log ended", cause=f"exit code {process.exitcode}", next_step="Try again"
            ) from None
        if isinstance(delivery, EsperError):
            raise delivery
        assert isinstance(delivery, _Delivery), "a process sends nothing else"
        self._positions.update(delivery.positions)
        (self._busy.add if delivery.more else self._busy.discard)(connection)
        return None if delivery.batch is None else Taken(delivery.batch, more=self.pending)

    def flush(self) -> Taken | None:
        """Return nothing: what the processes read comes by itself."""
        return None

    def positions(self) -> Mapping[Position, int]:
        """Return the offset after the last record that was handed out of each partition."""
        return self._positions

    @property
    def pending(self) -> bool:
        """Whether a process has more to deliver: what it read waits with it."""
        return bool(self._busy)

    def close(self) -> None:
        """End the processes."""
        for connection, process in self._workers.items():
            connection.close()
            process.terminate()
            process.join(_END_SECONDS)
        self._workers = {}
        self._busy.clear()
        self._log.close()


def _deliver(connection: socket, share: _Share) -> None:
    """Read, verify and decode a share of the partitions until the other end closes."""
    try:
        with Fabric.open(share.settings, member="rebuild") as fabric:
            admission = Admission(
                keyring=fabric.keyring, allowed=fabric.topics.allowed, wanted=share.wanted, decoder=ArrowDecoder()
            )
            source = log_source(fabric, sorted({topic for topic, _ in share.positions}), cold=share.cold)
            intake = LocalIntake(source, admission, records_max=share.records_max)
            intake.seek(share.positions)
            with tuned_for_throughput():
                _deliver_all(connection, intake)
    except EsperError as error:
        send(connection, error)
    except (BrokenPipeError, ConnectionResetError):
        return  # Nobody waits for more.


def _deliver_all(connection: socket, intake: LocalIntake) -> None:
    told: tuple[Mapping[Position, int], bool] | None = None
    # Nothing ever comes from the other end: what can be read there is its end, also where it was killed.
    while not wait([connection], 0):
        taken = intake.take(_POLL_SECONDS)
        if taken is None and intake.pending:
            continue
        now = (dict(intake.positions()), taken is not None and taken.more)
        if taken is not None or now != told:
            send(connection, _Delivery(None if taken is None else taken.batch, *now))
            told = now
