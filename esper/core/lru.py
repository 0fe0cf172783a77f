"""What was used last, in at most so many bytes: the one least-recently-used store that caches are made of."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, TypeVar

V = TypeVar("V")


class SizedLru(Generic[V]):
    """Values by name in at most `bytes_max` bytes; what does not fit goes in the order of last use.

    A value that is larger than the whole is not held, and costs nobody else a place. `evictions` counts what went
    without having been replaced. Not safe to share between threads.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._held: OrderedDict[str, tuple[V, int]] = OrderedDict()
        self.bytes = 0
        self.evictions = 0

    def get(self, name: str) -> V | None:
        """Return the value and count it as used; None where it is not held."""
        held = self._held.get(name)
        if held is None:
            return None
        self._held.move_to_end(name)
        return held[0]

    def put(self, name: str, value: V, size: int) -> None:
        """Hold a value of so many bytes, in place of the one of that name."""
        self._drop(name)
        if size > self._bytes_max:
            return
        while self.bytes + size > self._bytes_max:
            self.evict([next(iter(self._held))])
        self._held[name] = value, size
        self.bytes += size

    def evict(self, names: Iterable[str]) -> int:
        """Let go those that are held; return how many bytes that were."""
        before = self.bytes
        for name in list(names):
            self.evictions += name in self._held
            self._drop(name)
        return before - self.bytes

    def clear(self) -> int:
        """Let go everything; return how many bytes that were."""
        return self.evict(self._held)

    def items(self) -> list[tuple[str, V]]:
        """Return what is held, the longest unused first; counts as no use."""
        return [(name, value) for name, (value, _) in self._held.items()]

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def _drop(self, name: str) -> None:
        held = self._held.pop(name, None)
        if held is not None:
            self.bytes -= held[1]
