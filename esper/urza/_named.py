"""What the log names, kept up to date while somebody looks for what nobody names."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

from esper.core.ids import digests_in
from esper.urza._inventory import Inventory, inventory_reader, read_on

if TYPE_CHECKING:
    from esper.oona import Fabric

#: Topics whose records name bytes that may be made again; of them only what is in use counts (`Inventory.named`).
_OF_KERNELS: Final = frozenset({"kernel-catalog", "kernel-requests", "kernel-replies", "kernel-store"})
_BATCH: Final = 500


class Names(Protocol):
    """What a log names: its inventory, and the digests that records outside the topics of kernels hold."""

    inventory: Inventory
    digests: set[str]

    def read(self) -> None:
        """Take what the log holds by now."""


class LogNames:
    """`Names` of this home's log; the first `read` is of the whole log, each further one of what came since.

    Of records outside the topics of kernels every digest counts, in any field, believed or not: runs, checkpoints,
    policies, reports and events of users' own alike. Nothing that anybody names is garbage. For one thread.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.inventory = Inventory()
        self.digests: set[str] = set()
        self._fabric = fabric
        specs = [spec for spec in fabric.topics if spec.truth and spec.name not in _OF_KERNELS]
        self._places = [(spec.name, partition) for spec in specs for partition in range(spec.partitions)]
        self._stack = ExitStack()
        self._kernels = self._stack.enter_context(inventory_reader(fabric))
        self._others = self._stack.enter_context(fabric.reader(dict.fromkeys(self._places, "begin")))

    def read(self) -> None:
        """Take what the log holds by now.

        Raises:
            NotReadyError, BrokerUnavailable: the log could not be read to its end.
        """
        read_on(self.inventory, self._kernels)
        ends = {place: high for place, (_, high) in self._fabric.cluster.watermarks(self._places).items()}
        while any(self._others.positions()[place] < end for place, end in ends.items()):  # ends at the ends seen first
            for record in self._others.read_raw(1.0, _BATCH):
                self.digests |= digests_in(record.value or b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
