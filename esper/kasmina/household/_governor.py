"""Memory governance: old caches go, garbage is collected, and nothing new is taken on while memory is short.

Nothing that a run computes with is ever freed here: not the host, not a seed, not a teacher. Caches go first; where
that does not help, germinations are refused as "memory_pressure" until there is room again. Such a refusal is an
outcome like any other, and a re-execution takes it from the log: its own machine's memory steers nothing.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import torch

from esper.core.clock import SYSTEM_CLOCK, Clock

_logger = logging.getLogger("esper.kasmina")

#: Why nothing germinates while memory is short.
MEMORY_PRESSURE: Final = "memory_pressure"
#: Where a container's limit stands (cgroup v2, then v1); a number of bytes, or "max".
_CGROUP_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_STATM: Final = Path("/proc/self/statm")


@dataclass(frozen=True)
class MemoryReading:
    """Bytes in use and bytes there are."""

    used: int
    total: int

    @property
    def share(self) -> float:
        """Part of the memory that is in use; 0.0 where nobody knows how much there is."""
        return self.used / self.total if self.total > 0 else 0.0


MemorySensor = Callable[[], MemoryReading]


@runtime_checkable
class Cache(Protocol):
    """What can be emptied without changing what a run computes."""

    def close_epoch(self, epoch: int) -> int:
        """Let go what is too old; return how many entries."""

    def clear(self) -> int:
        """Let go everything; return how many bytes, as far as they are known."""


def memory_sensor(device: torch.device) -> MemorySensor:
    """Return what reads the memory that a run on `device` needs.

    CUDA: the whole device's, whoever uses it (`torch.cuda.mem_get_info`). Else: what this process has resident,
    of the machine's memory or of its container's where that is less.
    """
    return (lambda: _device_memory(device)) if device.type == "cuda" else _process_memory


def _device_memory(device: torch.device) -> MemoryReading:
    free, total = torch.cuda.mem_get_info(device)
    return MemoryReading(total - free, total)


def _process_memory() -> MemoryReading:
    page = os.sysconf("SC_PAGE_SIZE")
    total = min([os.sysconf("SC_PHYS_PAGES") * page, *_container_limits()])
    resident = int(_STATM.read_text().split()[1]) * page if _STATM.exists() else 0
    return MemoryReading(resident, total)


def _container_limits() -> list[int]:
    words = [path.read_text().strip() for path in _CGROUP_LIMITS if path.exists()]
    return [int(word) for word in words if word.isdecimal() and int(word) > 0]


class MemoryGovernor:
    """Looks after the memory of one run at each of its edges; for the training thread.

    `share_max` of the memory may be in use; above it all `caches` are emptied and garbage is collected, and if that
    was not enough `pressure` holds until a later edge finds room. `collect_every` epochs garbage is collected whatever
    is in use (0: never); `caches` let go what is too old at every edge.
    """

    def __init__(
        self,
        caches: Sequence[Cache],
        *,
        device: torch.device,
        share_max: float,
        collect_every: int,
        sensor: MemorySensor | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._caches = caches
        self._device = device
        self._share_max = share_max
        self._collect_every = collect_every
        self._sensor = sensor or memory_sensor(device)
        self._clock = clock
        self.reading = MemoryReading(0, 0)
        self.pressure = False
        self.expired = 0
        self.collections = 0
        #: Of the last collection: how long it took, and how many objects only cycles had kept.
        self.collection_ms = 0.0
        self.collected_objects = 0
        self.emergencies = 0
        self.emergency_freed_bytes = 0

    def close_epoch(self, epoch: int) -> bool:
        """Look after memory at the edge after `epoch`; return whether `pressure` changed."""
        self.expired += sum(cache.close_epoch(epoch) for cache in self._caches)
        if self._collect_every and epoch % self._collect_every == 0:
            self._collect()
        self.reading = self._sensor()
        if self.reading.share > self._share_max:
            self._clean_up()
        before, self.pressure = self.pressure, self.reading.share > self._share_max
        return before != self.pressure

    def _clean_up(self) -> None:
        """Empty every cache and give back what nobody uses; read again what is in use."""
        before = self.reading
        freed = sum(cache.clear() for cache in self._caches)
        self._collect()
        self.reading = self._sensor()
        self.emergencies += 1
        self.emergency_freed_bytes += freed
        _logger.warning(
            "memory is short: %.1f %% were in use, %d bytes of caches were let go, %.1f %% are in use now",
            100 * before.share,
            freed,
            100 * self.reading.share,
        )

    def _collect(self) -> None:
        began = self._clock.monotonic()
        self.collected_objects = gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self.collections += 1
        self.collection_ms = (self._clock.monotonic() - began) * 1000.0

    def figures(self) -> dict[str, float]:
        """Return what is counted, by the name of its metric."""
        return {
            "kasmina.memory.used_bytes": float(self.reading.used),
            "kasmina.memory.share": self.reading.share,
            "kasmina.memory.pressure": float(self.pressure),
            "kasmina.memory.emergencies": float(self.emergencies),
            "kasmina.memory.emergency_freed_bytes": float(self.emergency_freed_bytes),
            "kasmina.memory.gc_runs": float(self.collections),
            "kasmina.memory.gc_latency_ms": self.collection_ms,
            "kasmina.memory.gc_objects": float(self.collected_objects),
            "kasmina.memory.expired": float(self.expired),
        }
