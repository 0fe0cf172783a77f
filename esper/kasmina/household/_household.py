"""The household of one run: kernels at hand, memory, latencies. It makes a run fast, and computes none of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.ids import derive_id
from esper.core.ports import BlueprintRuntime, FetchedKernel
from esper.kasmina._budgets import LATENCY_OPEN, LatencyBook
from esper.kasmina._config import KasminaConfig
from esper.kasmina.household._governor import MEMORY_PRESSURE, Cache, MemoryGovernor, MemorySensor
from esper.kasmina.household._kernel_cache import KernelCache
from esper.kasmina.household._prefetch import KasminaPrefetchCoordinator
from esper.leyline import messages as ly

#: Why a germination is refused for want of memory or time; a re-execution takes these from the record.
HOUSE_REASONS: Final = frozenset({MEMORY_PRESSURE, LATENCY_OPEN})
#: Grafts whose stall is remembered, the latest.
_STALLS_MAX: Final = 256


@dataclass(frozen=True)
class GraftStall:
    """How long training stood still for one graft: its verdict and its acts, without the wait for the log.

    `fetch_ms` is part of `decide_ms`. `step_ms` is the mean time from step to step in the epoch before; 0.0 where it
    had fewer than two steps.
    """

    epoch: int
    seed_id: str
    operation: ly.SeedOperation
    fetch_ms: float
    decide_ms: float
    fold_ms: float
    step_ms: float

    @property
    def ms(self) -> float:
        """Milliseconds of the stall."""
        return self.decide_ms + self.fold_ms

    @property
    def steps(self) -> float:
        """The stall in steps of the epoch before; 0.0 where those could not be timed."""
        return self.ms / self.step_ms if self.step_ms > 0 else 0.0


@dataclass
class _Steps:
    """When steps ended in the epoch under way."""

    count: int = 0
    first: float = 0.0
    last: float = 0.0

    @property
    def mean_ms(self) -> float:
        return 1000.0 * (self.last - self.first) / (self.count - 1) if self.count > 1 else 0.0


class Household:
    """Looks after what a seed manager has besides its seeds; for the training thread.

    `device` is the run's. `caches` are further ones that may be emptied when memory is short.
    """

    def __init__(
        self,
        *,
        runtime: BlueprintRuntime,
        run_id: str,
        device: torch.device,
        config: KasminaConfig,
        caches: Sequence[Cache] = (),
        sensor: MemorySensor | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.kernels = KernelCache(bytes_max=config.cache_bytes_max, epochs_max=config.cache_epochs_max)
        self.prefetch = KasminaPrefetchCoordinator(runtime, run_id=run_id, keep=self._keep)
        self.memory = MemoryGovernor(
            [self.kernels, *caches],
            device=device,
            share_max=config.memory_share_max,
            collect_every=config.collect_every_epochs,
            sensor=sensor,
            clock=clock,
        )
        self.latencies = LatencyBook(config.latency_budgets, enforce=config.enforce_latency, clock=clock)
        self.clock = clock
        self.stalls: deque[GraftStall] = deque(maxlen=_STALLS_MAX)
        self._run_id = run_id
        self._device = device
        self._wait_seconds = config.kernel_wait_seconds
        self._fetch_ms = 0.0
        self._steps = _Steps()
        self._step_ms = 0.0
        self._stall: GraftStall | None = None
        self._isolated = True
        self._failed_told = 0
        self._notices: list[ly.TelemetryEvent] = []

    def refusal(self) -> str:
        """Return why no seed may germinate now for want of memory or time; "" if one may."""
        if self.memory.pressure:
            return MEMORY_PRESSURE
        return "" if self.latencies.allows else LATENCY_OPEN

    def expect(self, requests: Iterable[ly.KernelRequestSpec]) -> None:
        """Let these kernels be brought near; while memory is short none is."""
        self.prefetch.expect(() if self.memory.pressure else requests)

    def fetch(self, request: ly.KernelRequestSpec) -> FetchedKernel:
        """Return the kernel for `request`, its body on the run's device where it is at hand there.

        Raises:
            KernelUnavailable, UsageError, IntegrityError: from the runtime.
        """
        began = self.clock.monotonic()
        try:
            with self.latencies.timed("fetch"):
                wait_seconds = self.latencies.fetch_seconds(self._wait_seconds)
                return self._at_hand(self.prefetch.fetch(request, wait_seconds=wait_seconds))
        finally:
            self._fetch_ms = (self.clock.monotonic() - began) * 1000.0

    def _at_hand(self, kernel: FetchedKernel) -> FetchedKernel:
        """Return the kernel with the body that is held for its digest; hold its own where none is."""
        if kernel.module is None:  # It may not be built here, whatever is held of it.
            return kernel
        held = self.kernels.get(kernel.artifact_ref)
        if held is None:
            self._keep(kernel)
            return kernel
        return replace(kernel, module=held)

    def _keep(self, kernel: FetchedKernel) -> None:
        if kernel.module is not None and kernel.artifact_ref not in self.kernels:
            self.kernels.put(kernel.artifact_ref, kernel.module.to(self._device))

    def take_fetch_ms(self) -> float:
        """Return how long the last fetch took, once; 0.0 when there was none since."""
        taken, self._fetch_ms = self._fetch_ms, 0.0
        return taken

    def step_ended(self) -> None:
        """Take note that a step of the host is over."""
        steps, now = self._steps, self.clock.monotonic()
        steps.first, steps.last = (steps.first if steps.count else now), now
        steps.count += 1

    def steps_over(self) -> None:
        """Take note that the epoch's steps are over: the time that the edge takes is none of theirs."""
        self._step_ms, self._steps = self._steps.mean_ms, _Steps()

    def grafting(
        self, epoch: int, seed_id: str, operation: ly.SeedOperation, *, decide_ms: float, fetch_ms: float
    ) -> None:
        """Begin to count the stall of a graft; its acts are still to be folded."""
        self._stall = GraftStall(epoch, seed_id, operation, fetch_ms, decide_ms, 0.0, self._step_ms)

    def folded(self, milliseconds: float, *, last: bool) -> None:
        """Add an act to the graft under way, if there is one; with the `last` its stall is known."""
        if self._stall is None:
            return
        self._stall = replace(self._stall, fold_ms=self._stall.fold_ms + milliseconds)
        if last:
            self.stalls.append(self._stall)
            self._stall = None

    def close_epoch(self, epoch: int, *, isolated: bool) -> None:
        """Look after memory and latencies at the edge after `epoch`, before anything is decided there.

        `isolated` says whether the breaker of the isolation monitor is closed, of which is told as well.
        """
        emergencies = self.memory.emergencies
        if self.memory.close_epoch(epoch) or self.memory.emergencies > emergencies:
            self._tell_of_memory(epoch)
        if self.latencies.close_epoch(epoch):
            word = "let pass again" if self.latencies.allows else "refused: latency budgets were overrun"
            self._tell(epoch, "latency_breaker", f"germinations are {word}", warning=not self.latencies.allows)
        if isolated != self._isolated:
            self._isolated = isolated
            word = "closed again" if isolated else "open: no seed germinates or trains"
            self._tell(epoch, "isolation_breaker", f"the breaker of the isolation is {word}", warning=not isolated)
        failed, self._failed_told = self.prefetch.counts.failed - self._failed_told, self.prefetch.counts.failed
        if failed:
            self._tell(epoch, "prefetch_failed", f"{failed} kernels could not be had ahead", warning=True)

    def _tell_of_memory(self, epoch: int) -> None:
        reading, pressure = self.memory.reading, self.memory.pressure
        said = "short, nothing germinates" if pressure else "sufficient, caches may have been emptied for it"
        text = f"memory is {said}: {reading.used} of {reading.total} bytes in use"
        self._tell(epoch, "memory_pressure", text, warning=pressure)

    def _tell(self, epoch: int, word: str, description: str, *, warning: bool) -> None:
        self._notices.append(
            ly.TelemetryEvent(
                event_id=derive_id(self._run_id, "kasmina", word, epoch),
                description=description,
                level=ly.TELEMETRY_LEVEL_WARNING if warning else ly.TELEMETRY_LEVEL_INFO,
                attributes={"run_id": self._run_id, "epoch": str(epoch), "kind": word},
            )
        )

    def notices(self) -> list[ly.TelemetryEvent]:
        """Return what is to be told that was not told yet, in order."""
        told, self._notices = self._notices, []
        return told

    def figures(self) -> dict[str, float]:
        """Return what is counted and timed, by the name of its metric."""
        kernels, ahead = self.kernels, self.prefetch.counts
        figures = {
            "kasmina.cache.hits": float(kernels.hits),
            "kasmina.cache.misses": float(kernels.misses),
            "kasmina.cache.evictions": float(kernels.evictions),
            "kasmina.cache.entries": float(len(kernels)),
            "kasmina.cache.held_bytes": float(kernels.bytes),
        }
        figures |= {f"kasmina.prefetch.{name}": float(count) for name, count in vars(ahead).items()}
        figures |= self.memory.figures()
        figures |= self.latencies.figures()
        if self.stalls:
            last = self.stalls[-1]
            figures |= {"kasmina.graft.stall_ms": last.ms, "kasmina.graft.stall_steps": last.steps}
        return figures

    def close(self) -> None:
        """End the prefetching and let go every kernel: the run is over."""
        self.prefetch.close()
        self.kernels.clear()
