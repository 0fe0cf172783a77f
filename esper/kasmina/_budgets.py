"""Latency budgets: how long each kind of work at an edge takes, and what it may take.

Latencies are evidence. Only where they are enforced do they decide anything, and then by outcomes that a re-execution
takes from the log: a fetch waits no longer than its budget, and a breaker that found budgets overrun in several epochs
in a row refuses germinations for a while (conservative mode).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Final

from esper.core.breaker import CircuitBreaker
from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import UsageError
from esper.leyline import messages as ly

#: Why nothing germinates in conservative mode.
LATENCY_OPEN: Final = "breaker_open:latency"
_EPOCHS_OVER_MAX: Final = 3
_OPEN_EPOCHS: Final = 5


@dataclass(frozen=True)
class LatencyBudgets:
    """Milliseconds that each operation may take.

    `decide`: judging a command, gates included, without the fetch of a kernel. `fetch`: having a kernel at hand.
    `germinate` and `blend`: planting a seed, letting it join its host. `measure`: the held-out losses at an edge.
    """

    #: The brief's budget of an epoch's hook.
    decide: float = 18.0
    #: The design's p50 for a stored kernel.
    fetch: float = 10.0
    germinate: float = 10.0
    blend: float = 10.0
    #: Passes over the whole probe; as long as a second of training may cost.
    measure: float = 1_000.0

    def __post_init__(self) -> None:
        for name in OPERATIONS:
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise UsageError(
                    f"the latency budget {name}={value!r} cannot be used",
                    next_step="give a finite number of milliseconds above 0",
                )

    @classmethod
    def of(cls, text: str) -> LatencyBudgets:
        """Return the budgets with those put over them that `text` names: "decide=18,fetch=25" (milliseconds).

        Raises:
            UsageError: an operation is unknown, or its budget is no number above 0.
        """
        given: dict[str, float] = {}
        for word in filter(None, (part.strip() for part in text.split(","))):
            name, _, number = word.partition("=")
            try:
                given[name.strip()] = float(number)
            except ValueError:
                given[name.strip()] = float("nan")
        unknown = sorted(set(given) - set(OPERATIONS))
        if unknown:
            raise UsageError(
                f"there is no latency budget for {unknown[0]!r}", next_step=f"name one of {', '.join(OPERATIONS)}"
            )
        return cls(**given)


OPERATIONS: Final = tuple(each.name for each in fields(LatencyBudgets))


@dataclass
class _Tally:
    count: int = 0
    over: int = 0
    last_ms: float = 0.0
    max_ms: float = 0.0


@dataclass
class LatencyBook:
    """Times operations against their budgets; for the training thread.

    With `enforce` its breaker counts epochs in a row in which a budget was overrun, three of which open it for five
    epochs; then one epoch probes. Without, `allows` is always True.
    """

    budgets: LatencyBudgets
    enforce: bool = False
    clock: Clock = SYSTEM_CLOCK
    breaker: CircuitBreaker = field(default_factory=lambda: CircuitBreaker(_EPOCHS_OVER_MAX, float(_OPEN_EPOCHS)))
    _tallies: dict[str, _Tally] = field(default_factory=lambda: {name: _Tally() for name in OPERATIONS})
    _timed: bool = False
    _over: bool = False
    _epoch: int = 0

    @property
    def allows(self) -> bool:
        """Whether a seed may germinate as far as latencies go."""
        state = self.breaker.state(float(self._epoch))
        return not self.enforce or state != ly.CIRCUIT_STATE_OPEN

    @contextmanager
    def timed(self, operation: str) -> Iterator[None]:
        """Take the block's time as that of one `operation`."""
        began = self.clock.monotonic()
        try:
            yield
        finally:
            self.observe(operation, (self.clock.monotonic() - began) * 1000.0)

    def observe(self, operation: str, milliseconds: float) -> None:
        """Take note of one operation."""
        tally = self._tallies[operation]
        over = milliseconds > getattr(self.budgets, operation)
        tally.count += 1
        tally.over += over
        tally.last_ms, tally.max_ms = milliseconds, max(tally.max_ms, milliseconds)
        self._timed, self._over = True, self._over or over

    def fetch_seconds(self, wait_seconds: float) -> float:
        """Return how long a fetch may wait of the `wait_seconds` that it could."""
        return min(wait_seconds, self.budgets.fetch / 1000.0) if self.enforce else wait_seconds

    def close_epoch(self, epoch: int) -> bool:
        """Let the breaker know of the edge that is over; return whether `allows` changed by it."""
        before = self.allows
        self._epoch = epoch
        if self.enforce and self._timed:
            failed, opened = self._over, self.breaker.state(float(epoch)) == ly.CIRCUIT_STATE_OPEN
            if failed and not opened:
                self.breaker = self.breaker.failed(float(epoch))
            elif not failed and not opened:
                self.breaker = self.breaker.succeeded()
        self._timed = self._over = False
        return before != self.allows

    def figures(self) -> Mapping[str, float]:
        """Return what was timed, by the name of its metric; operations that never happened are absent."""
        timed = {name: tally for name, tally in self._tallies.items() if tally.count}
        figures = {f"kasmina.{name}.latency_ms": tally.last_ms for name, tally in timed.items()}
        figures |= {f"kasmina.{name}.latency_max_ms": tally.max_ms for name, tally in timed.items()}
        figures |= {f"kasmina.{name}.over_budget": float(tally.over) for name, tally in timed.items()}
        figures["kasmina.latency.breaker_open"] = float(not self.allows)
        return figures
