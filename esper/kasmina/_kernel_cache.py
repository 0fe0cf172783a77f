"""Kernels at hand on the run's device: built bodies by digest, the longest unused going first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from torch import nn


@dataclass
class _Held:
    module: nn.Module
    size: int
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
        self._bytes_max = bytes_max
        self._epochs_max = epochs_max
        self._epoch = 0
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        #: Bodies that went before they were asked for again: too old, or no room.
        self.evictions = 0

    def get(self, digest: str) -> nn.Module | None:
        """Return the body, to be copied and never changed, and count it as used; None where it is not held."""
        with self._lock:
            held = self._held.get(digest)
            if held is None:
                self.misses += 1
                return None
            self.hits += 1
            held.used_epoch = self._epoch
            self._held.move_to_end(digest)
            return held.module

    def put(self, digest: str, module: nn.Module) -> None:
        """Hold `module`, which is the caller's no more; one that is larger than the whole budget is let go."""
        size = module_bytes(module)
        with self._lock:
            self._drop(digest)
            if size > self._bytes_max:
                return
            while self.bytes + size > self._bytes_max:
                self._evict(next(iter(self._held)))
            self._held[digest] = _Held(module, size, self._epoch)
            self.bytes += size

    def close_epoch(self, epoch: int) -> int:
        """Let go what was not used in the last `epochs_max` epochs; return how many."""
        with self._lock:
            self._epoch = epoch
            old = [digest for digest, held in self._held.items() if epoch - held.used_epoch >= self._epochs_max]
            for digest in old:
                self._evict(digest)
            return len(old)

    def clear(self) -> int:
        """Let go everything; return how many bytes that were."""
        with self._lock:
            freed = self.bytes
            for digest in list(self._held):
                self._evict(digest)
            return freed

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, digest: str) -> bool:
        return digest in self._held

    def _evict(self, digest: str) -> None:
        self._drop(digest)
        self.evictions += 1

    def _drop(self, digest: str) -> None:
        held = self._held.pop(digest, None)
        if held is not None:
            self.bytes -= held.size


def module_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers; what it shares within itself counts once."""
    tensors = {tensor.untyped_storage().data_ptr(): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
