"""`esper collect`: stacks in this process, or in several beside each other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Final

from esper.core.clock import SYSTEM_CLOCK
from esper.core.errors import Busy, NotReadyError, OperationFailed, UsageError
from esper.core.home import Home, mark_ready, member_lock
from esper.core.settings import Settings
from esper.core.stacks import COLLECTOR
from esper.oona import Fabric
from esper.weatherlight._collecting import Collected, Collection, collect_stack

if TYPE_CHECKING:
    from esper.core.ports import BlueprintRuntime

#: Members that make kernels: the only ones that a collection needs beside itself.
KERNEL_MAKERS: Final = ("karn", "tezzeret", "urza")
_COLLECTORS_MAX: Final = 64
_JOIN_SECONDS: Final = 60.0

#: Told the episodes that are over, and those of the epochs that all stacks finished (episode-epochs).
Progress = Callable[[int], None]


def check_collection(collection: Collection) -> None:
    """Raise when the collection asks for something that does not exist or that no stack can do.

    Raises:
        UsageError: unknown task, host, policy or slot, a number out of its range, or a host that cannot be stacked.
    """
    from esper.core.settings import load_settings
    from esper.tolaria.stack import prepared_stack
    from esper.weatherlight._collecting import stack_requests
    from esper.weatherlight._requests import check_request

    check_request(collection.first)
    few = range(min(2, collection.stack, collection.runs))
    if collection.first.device == "cpu":
        with prepared_stack(stack_requests(collection, few, load_settings())):
            pass


def collect(
    fabric: Fabric,
    collection: Collection,
    *,
    workers: int = 1,
    runtime: BlueprintRuntime | None = None,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train the runs of a collection, stack by stack, through the log; return the document of `esper collect`.

    With `workers` above 1 as many processes train their own stacks. Kernels are made by members of the home.

    Raises:
        UsageError: the collection cannot be trained so.
        OperationFailed: a worker failed; its runs are ended in the log.
        BrokerUnavailable: no broker answered for `settings.broker_retry_seconds`.
    """
    if not 1 <= workers <= _COLLECTORS_MAX:
        raise UsageError(f"workers = {workers} cannot be used", next_step=f"give 1 to {_COLLECTORS_MAX}")
    began = SYSTEM_CLOCK.monotonic()
    stop = stop or threading.Event()
    if workers == 1:
        found = _collect_here(fabric, collection, 0, 1, runtime=runtime, stop=stop, progress=progress)
    else:
        found = _collect_beside(fabric.settings, collection, workers, stop=stop, progress=progress)
    return found.document(collection, seconds=SYSTEM_CLOCK.monotonic() - began)


@contextmanager
def _as_collector(home: Home) -> Iterator[str]:
    """Be a member of the home under the first free collector's name."""
    for number in range(_COLLECTORS_MAX):
        name = f"{COLLECTOR}{number}"
        lock = member_lock(home, name)
        try:
            lock.__enter__()
        except Busy:
            continue
        try:
            mark_ready(home, name)
            yield name
        finally:
            lock.__exit__(None, None, None)
        return
    raise NotReadyError("nobody more can collect in this home", cause=f"{_COLLECTORS_MAX} collectors run")


def _collect_here(
    fabric: Fabric,
    collection: Collection,
    share: int,
    shares: int,
    *,
    runtime: BlueprintRuntime | None,
    stop: threading.Event,
    progress: Progress | None,
) -> Collected:
    """Train every `shares`-th stack from `share` on in this process."""
    from esper.weatherlight._grafting import kernel_runtime

    found = Collected()
    runtime = runtime or kernel_runtime(fabric)
    with _as_collector(fabric.home) as worker:
        for runs in collection.stacks()[share::shares]:
            size = len(runs)
            told = None if progress is None else lambda _stack, _epoch, size=size: progress(size)
            found += collect_stack(fabric, collection, runs, worker=worker, runtime=runtime, stop=stop, told=told)
    return found


def _collect_beside(
    settings: Settings, collection: Collection, workers: int, *, stop: threading.Event, progress: Progress | None
) -> Collected:
    context = multiprocessing.get_context("spawn")
    processes, readers = [], list[Connection]()
    for share in range(workers):
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(settings, collection, share, workers, writer), daemon=True)
        process.start()
        writer.close()
        processes.append(process)
        readers.append(reader)
    try:
        return _gathered(readers, stop=stop, progress=progress)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        for process in processes:
            process.join(_JOIN_SECONDS)


def _gathered(readers: list[Connection], *, stop: threading.Event, progress: Progress | None) -> Collected:
    found, left = Collected(), list(readers)
    while left:  # ends when every worker has told its end, or one of them failed or died
        if stop.is_set():
            raise OperationFailed("collecting was stopped", cause="the process was told to stop")
        for reader in wait(left, timeout=0.5):
            assert isinstance(reader, Connection), "only these are waited for"
            try:
                told = reader.recv()
            except EOFError:
                raise OperationFailed(
                    "a collector died", cause="it said nothing", next_step="`esper runs list` shows what it left"
                ) from None
            if isinstance(told, Collected):
                found += told
                left.remove(reader)
            elif isinstance(told, str):
                raise OperationFailed("a collector failed", cause=told)
            elif progress is not None:
                progress(told)
    return found


def _work(settings: Settings, collection: Collection, share: int, shares: int, writer: Connection) -> None:
    """Collect in a process of its own; tells the episodes of each finished epoch, and what it came to."""
    stop = threading.Event()
    parent = os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent says when to stop.

    def tell(episodes: int) -> None:
        if os.getppid() != parent:
            stop.set()
        writer.send(episodes)

    try:
        with Fabric.open(settings, member=f"{COLLECTOR}{share}") as fabric:
            writer.send(_collect_here(fabric, collection, share, shares, runtime=None, stop=stop, progress=tell))
    except BaseException as error:
        writer.send(f"{type(error).__name__}: {error}")
        raise
