"""The prefetch coordinator: kernels that a controller may soon order are brought near while training goes on.

A thread of its own asks the runtime for each candidate until it is there. It trains nothing, measures nothing and draws
from no random stream. The edge then fetches as ever, by the same call with the same checks, and what it fetches is
what counts: a prefetch only makes that fetch short. One that fails or is late leaves the fetch as long as it was.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from esper.core.errors import EsperError
from esper.core.ports import BlueprintRuntime, FetchedKernel, PrefetchingRuntime
from esper.leyline import messages as ly

_logger = logging.getLogger("esper.kasmina")

#: How often the thread asks after a kernel that is being made; making one takes some 100 ms.
_POLL_SECONDS: Final = 0.02
#: Candidates that are looked after at once; a policy that names more has its first ones served.
CANDIDATES_MAX: Final = 8
#: Finished prefetches that are remembered, so that an edge can tell a hit from a miss.
_REMEMBERED_MAX: Final = 64


@dataclass
class PrefetchCounts:
    """What became of candidates and of fetches at edges.

    `ready` and `failed` count prefetches that ended; `hits` fetches whose very kernel was brought near in time, `late`
    those whose kernel was still on its way, `stale` those that got another kernel than was prefetched, `misses`
    those that nobody had foreseen.
    """

    requested: int = 0
    ready: int = 0
    failed: int = 0
    hits: int = 0
    late: int = 0
    stale: int = 0
    misses: int = 0


class KasminaPrefetchCoordinator:
    """Prefetches for one run, where `runtime` can (`PrefetchingRuntime`); elsewhere every fetch is a miss.

    `keep` is called in the thread with each kernel that came. The thread starts with the first candidate and ends
    with `close`. `expect`, `fetch` and `close` are for the training thread.
    """

    def __init__(self, runtime: BlueprintRuntime, *, run_id: str, keep: Callable[[FetchedKernel], object]) -> None:
        self.counts = PrefetchCounts()
        self._runtime = runtime
        self._ahead = runtime if isinstance(runtime, PrefetchingRuntime) else None
        self._run_id = run_id
        self._keep = keep
        self._wanted: OrderedDict[bytes, ly.KernelRequestSpec] = OrderedDict()
        #: Request -> digest of the kernel that came; "" where none could be had.
        self._ended: OrderedDict[bytes, str] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def expect(self, requests: Iterable[ly.KernelRequestSpec]) -> None:
        """Bring these kernels near from now on, and no others; returns at once."""
        if self._ahead is None or self._closed:
            return
        named = {_name(request): request for request in requests}
        with self._changed:
            fresh = [(name, request) for name, request in named.items() if self._ended.get(name, "") == ""]
            before = set(self._wanted)
            self._wanted = OrderedDict(fresh[:CANDIDATES_MAX])
            self.counts.requested += len(set(self._wanted) - before)
            self._changed.notify_all()
        if self._wanted and self._thread is None:
            self._thread = threading.Thread(target=self._work, name="kasmina-prefetch", daemon=True)
            self._thread.start()

    def fetch(self, request: ly.KernelRequestSpec, *, wait_seconds: float) -> FetchedKernel:
        """Return the kernel as the runtime gives it now, and count what the prefetch of it was good for.

        Raises:
            KernelUnavailable, UsageError, IntegrityError: from the runtime.
        """
        name = _name(request)
        with self._changed:
            foreseen, pending = self._ended.get(name, ""), name in self._wanted
        kernel = self._runtime.fetch_kernel(request, run_id=self._run_id, wait_seconds=wait_seconds)
        if foreseen:
            self.counts.hits += foreseen == kernel.artifact_ref
            self.counts.stale += foreseen != kernel.artifact_ref
        elif pending:
            self.counts.late += 1
        else:
            self.counts.misses += 1
        return kernel

    def settle(self, timeout_seconds: float) -> bool:
        """Wait until no candidate is on its way; return whether that came to be in time. For tests and benchmarks."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._wanted, timeout_seconds)

    def close(self) -> None:
        """End the thread; what was under way is given up."""
        with self._changed:
            self._closed = True
            self._wanted.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        """Ask after every candidate in turn, for as long as the run lasts."""
        while True:  # ends with `close`
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._wanted)
                if self._closed:
                    return
                turn = list(self._wanted.items())
            for name, request in turn:
                self._look(name, request)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, _POLL_SECONDS)

    def _look(self, name: bytes, request: ly.KernelRequestSpec) -> None:
        assert self._ahead is not None, "only a runtime that can is asked"
        try:
            kernel = self._ahead.prefetch(request, run_id=self._run_id)
        except EsperError as error:
            _logger.info("no kernel for %s ahead of its order: %s", request.blueprint_id, error)
            self._end(name, "")
            return
        if kernel is not None:
            self._keep(kernel)
            self._end(name, kernel.artifact_ref)

    def _end(self, name: bytes, digest: str) -> None:
        with self._changed:
            if self._wanted.pop(name, None) is None:
                return  # Nobody wants it any more.
            self._ended[name] = digest
            self._ended.move_to_end(name)
            while len(self._ended) > _REMEMBERED_MAX:
                self._ended.popitem(last=False)
            self.counts.ready += digest != ""
            self.counts.failed += digest == ""
            self._changed.notify_all()


def _name(request: ly.KernelRequestSpec) -> bytes:
    return request.SerializeToString(deterministic=True)
