"""Karn, Tezzeret and Urza in one process, for whoever wants kernels without running members."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Final, Self

from google.protobuf.message import Message

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import EsperError, OperationFailed
from esper.core.ids import new_event_id
from esper.core.kernel import BlobStore, DirectoryBlobStore, make_request
from esper.core.ports import FetchedKernel
from esper.karn import Blueprint, BlueprintQuery, KarnCatalog
from esper.karn import build_service as build_karn
from esper.leyline import messages as ly
from esper.oona import Fabric, Reader, Service
from esper.tezzeret import build_service as build_forge
from esper.urza import UrzaRuntime
from esper.urza import build_service as build_urza

Notify = Callable[[Message], None]

_NOTICED: Final = (
    ly.KernelCatalogUpdate,
    ly.CompileFailed,
    ly.KernelPartCompiled,
    ly.BenchmarkReport,
    ly.KernelIntegrityFailed,
    ly.KernelEvicted,
)
_TOPICS: Final = ("kernel-catalog", "kernel-store")
_POLL_SECONDS: Final = 0.2
_STOP_SECONDS: Final = 60.0


class BlueprintPipeline:
    """From a blueprint to a kernel in hand: registers, compiles, stores, catalogues, fetches, and tells of each.

    Inside its block the three members run in threads of this process, beside any others of the home; everything goes
    through the log as it does between processes, so what one pipeline made every home's reader has. `notify` is called
    from a thread of the pipeline's own with each event about kernels that the log gets meanwhile.
    """

    def __init__(
        self,
        fabric: Fabric,
        *,
        catalog: KarnCatalog | None = None,
        store: BlobStore | None = None,
        notify: Notify | None = None,
    ) -> None:
        self._fabric = fabric
        self._catalog = catalog or KarnCatalog()
        self._store = store or DirectoryBlobStore(fabric.home.blobs)
        self._notify = notify
        # Names of its own: members of the home may run beside it.
        self._instance = f"pipeline-{new_event_id()[:8]}"
        self._karn = build_karn(fabric, catalog=self._catalog, instance=self._instance)
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self._runtime: UrzaRuntime | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _open(self) -> None:
        instance = self._instance
        services: Sequence[Service] = (
            self._karn,
            build_forge(self._fabric, blueprints=self._catalog, instance=instance, store=self._store),
            build_urza(self._fabric, instance=instance, store=self._store),
        )
        for service in services:
            self._start(lambda service=service: service.run(self._stop), type(service).__name__)  # type: ignore[misc]  # bound now
        if self._notify is not None:
            places = [(topic, p) for topic in _TOPICS for p in range(self._fabric.topics[topic].partitions)]
            reader = self._stack.enter_context(self._fabric.reader(dict.fromkeys(places, "end")))
            notify = self._notify
            self._start(lambda: self._tell(reader, notify), "pipeline-notices")
        publisher = self._stack.enter_context(self._fabric.publisher("kasmina"))
        self._runtime = UrzaRuntime(self._fabric, store=self._store, publisher=publisher)
        self._stack.callback(self._runtime.close)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._stack.close()

    def select(self, query: BlueprintQuery) -> Blueprint:
        """Return the blueprint that answers `query` and may be used by what the log says now.

        Raises:
            BlueprintError: the query cannot be answered; asking again changes nothing.
            KarnUnavailable: the log could not be read, or Karn's breaker is open.
        """
        return self._karn.queries.handle_query(query)

    def kernel(
        self,
        blueprint_id: str,
        parameters: Mapping[str, float],
        *,
        layout: str,
        shape: Sequence[int],
        dtype: str = "float32",
        wait_seconds: float = 60.0,
    ) -> FetchedKernel:
        """Return the kernel of a blueprint for slots of this layout and shape; it is made when it is not there.

        Raises:
            UsageError: no such blueprint, or not with these parameters, layout and shape; nobody was asked.
            KernelUnavailable: it was refused, or not there within `wait_seconds`.
            OperationFailed: a member of the pipeline failed.
        """
        request = make_request(blueprint_id, parameters, layout=layout, in_shape=shape, dtype=dtype)
        self._catalog.build_spec(request)
        runtime, deadline = self._runtime, Deadline(wait_seconds, clock=SYSTEM_CLOCK)
        assert runtime is not None, "a pipeline is used inside its block"
        self._check()
        try:
            return runtime.fetch_kernel(request, run_id="", wait_seconds=deadline.remaining_seconds)
        finally:
            self._check()

    def _start(self, work: Callable[[], None], name: str) -> None:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - whatever ended the thread is raised where a kernel is asked for
                self._failures.append(error)
                self._stop.set()

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        self._stack.callback(thread.join, _STOP_SECONDS)

    def _tell(self, reader: Reader, notify: Notify) -> None:
        while not self._stop.is_set():
            for event in reader.read(_POLL_SECONDS):
                if isinstance(event.message, _NOTICED):
                    notify(event.message)

    def _check(self) -> None:
        if not self._failures:
            return
        error = self._failures[0]
        what = error.what if isinstance(error, EsperError) else type(error).__name__
        raise OperationFailed(
            "the pipeline has stopped", cause=f"a member failed: {what}: {error}", next_step="begin another one"
        ) from error
