"""Kernels at hand on the run's device: built bodies by digest, the longest unused going first."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from torch import nn

from esper.core.lru import SizedLru


@dataclass
class _Held:
    module: nn.Module
    used_epoch: int


class KernelCache:
    """Kernels' bodies by the digest of their artifact, in at most `bytes_max` bytes; any thread may call it.

    What does not fit goes in the order of last use (LRU); what was not asked for in `epochs_max` epochs goes as well.
    Ages are epochs: no clock decides. A body is what its digest says and nobody trains it (a seed gets a copy), so
    what is held or gone changes how fast a run is, never what it computes. 0 bytes hold nothing.
    """

    def __init__(self, *, bytes_max: int, epochs_max: int) -> None:
        assert bytes_max >= 0, "a budget is a number of bytes"
        assert epochs_max >= 1, "what is held is held for an epoch at least"
        self._epochs_max = epochs_max
        self._epoch = 0
        self._held: SizedLru[_Held] = SizedLru(bytes_max)
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    @property
    def bytes(self) -> int:
        """What the held bodies take."""
        return self._held.bytes

    @property
    def evictions(self) -> int:
        """Bodies that went before they were asked for again: too old, or no room."""
        return self._held.evictions

    def get(self, digest: str) -> nn.Module | None:
        """Return the body, to be copied and never changed, and count it as used; None where it is not held."""
        with self._lock:
            held = self._held.get(digest)
            if held is None:
                self.misses += 1
                return None
            self.hits += 1
            held.used_epoch = self._epoch
            return held.module

    def put(self, digest: str, module: nn.Module) -> None:
        """Hold `module`, which is the caller's no more; one that is larger than the whole budget is let go."""
        size = module_bytes(module)
        with self._lock:
            self._held.put(digest, _Held(module, self._epoch), size)

    def close_epoch(self, epoch: int) -> int:
        """Let go what was not used in the last `epochs_max` epochs; return how many."""
        with self._lock:
            self._epoch = epoch
            old = [digest for digest, held in self._held.items() if epoch - held.used_epoch >= self._epochs_max]
            self._held.evict(old)
            return len(old)

    def clear(self) -> int:
        """Let go everything; return how many bytes that were."""
        with self._lock:
            return self._held.clear()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, digest: str) -> bool:
        return digest in self._held


def module_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers; what it shares within itself counts once."""
    tensors = {tensor.untyped_storage().data_ptr(): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
