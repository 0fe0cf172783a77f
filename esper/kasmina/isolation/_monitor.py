"""The isolation monitor: sees at every step whether a seed reached the host or the host a seed, and counts it.

Two windows are watched. During a pass of a seed (shadow forward, backward, its optimiser's step) nothing of the host
may be written to: parameters, buffers, gradients, random streams, nor any other seed. During the host's own step no
seed's parameters may be written to, and a seed that the host does not hear may get no gradient. What happens between
steps (a restored checkpoint, weights loaded by the user) is nobody's step, and is not counted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from esper.core.apart import random_states
from esper.core.breaker import CircuitBreaker
from esper.core.ranks import Ranks
from esper.kasmina.isolation._ownership import HOST, TEACHER, OwnershipRegistry, seed_owner, version_of
from esper.leyline import messages as ly

logger = logging.getLogger("esper.kasmina")


@dataclass(frozen=True)
class Leaks:
    """How often a seed's pass changed what is not its own, and how often something else changed the seed."""

    host_changes: int = 0
    seed_changes: int = 0

    def __add__(self, other: Leaks) -> Leaks:
        """Return both together."""
        return Leaks(self.host_changes + other.host_changes, self.seed_changes + other.seed_changes)

    @property
    def total(self) -> int:
        """All of them."""
        return self.host_changes + self.seed_changes


NO_LEAKS = Leaks()


@dataclass(frozen=True)
class HostPrint:
    """What a pass must leave as it was: versions of tensors and gradients, and random streams."""

    versions: Sequence[int]
    gradients: Sequence[tuple[int, int] | None]
    streams: Sequence[Tensor]

    def changes(self, later: HostPrint) -> int:
        """Return how many tensors, gradients and streams differ."""
        return (
            sum(old != new for old, new in zip(self.versions, later.versions, strict=True))
            + sum(old != new for old, new in zip(self.gradients, later.gradients, strict=True))
            + sum(not torch.equal(old, new) for old, new in zip(self.streams, later.streams, strict=True))
        )


class IsolationMonitor:
    """Watches the tensors of a registry. `breaker` counts breaches and reckons in epochs, not in time.

    One breach fails gate G1 of its seed for that epoch. Breaches in a row open the breaker: from then on no seed
    takes a step, the seeds that leaked are culled at the epoch's edge, and none germinates until it has cooled down.
    """

    def __init__(
        self, registry: OwnershipRegistry, *, devices: Sequence[torch.device], breaker: CircuitBreaker, active: bool
    ) -> None:
        self.breaker = breaker
        #: Breaches since the run began.
        self.violations = 0
        self._registry = registry
        self._devices = devices
        self._active = active
        self._epoch = 0
        self._now: dict[str, Leaks] = {}
        self._last: dict[str, Leaks] = {}

    @property
    def allows(self) -> bool:
        """Whether seeds may take steps and germinate: the breaker is not open."""
        return self.state() != ly.CIRCUIT_STATE_OPEN

    def state(self) -> ly.CircuitBreakerState:
        """Return how the breaker stands after the epoch that was closed last."""
        return self.breaker.state(float(self._epoch))

    def leaks(self, seed_id: str) -> Leaks:
        """Return what leaked from and into the seed in the epoch that was closed last."""
        return self._last.get(seed_id, NO_LEAKS)

    def fault(self, seed_id: str) -> str:
        """Return "isolation" for a seed that leaked while the breaker opened; nothing for any other."""
        return "isolation" if not self.allows and self.leaks(seed_id).total else ""

    # -- the host's step ------------------------------------------------------------------------------------

    def host_step_begins(self, seed_ids: Iterable[str]) -> None:
        """Take seeds as they are: from here to `host_step_ended` nobody may write to them."""
        if self._active:
            for seed_id in seed_ids:
                self._registry.accept(seed_owner(seed_id))

    def host_step_ended(self, seed_ids: Iterable[str], *, unheard: Iterable[str]) -> None:
        """Count seeds that the host's step wrote to, and those of `unheard` that it gave a gradient."""
        if not self._active:
            return
        for seed_id in seed_ids:
            written = self._registry.changed(seed_owner(seed_id))
            self._count(seed_id, Leaks(seed_changes=len(written)), "the host's step wrote to", written)
        for seed_id in unheard:
            tensors = self._registry.tensors_of(seed_owner(seed_id))
            reached = [name for name, tensor in tensors.items() if tensor.grad is not None]
            self._count(seed_id, Leaks(seed_changes=len(reached)), "the host's backward reached", reached)

    # -- a seed's pass --------------------------------------------------------------------------------------

    @contextmanager
    def pass_of(self, seed_id: str, others: Iterable[str]) -> Iterator[None]:
        """Count what the block changes of the host and of the `others`; a block that raises is not judged."""
        if not self._active:
            yield
            return
        before = self.host_print()
        for other in others:
            self._registry.accept(seed_owner(other))
        yield
        changes = before.changes(self.host_print())
        strangers = [f"{other}:{name}" for other in others for name in self._registry.changed(seed_owner(other))]
        leaks = Leaks(host_changes=changes + len(strangers))
        self._count(seed_id, leaks, "a pass of it changed", strangers or ["the host"])
        self._registry.accept(seed_owner(seed_id))

    def host_print(self) -> HostPrint:
        """Return versions and streams as they are now; waits for nothing."""
        tensors = self._registry.tensors_of(HOST).values()
        gradients = [tensor.grad for tensor in tensors]
        return HostPrint(
            self._registry.versions(HOST),
            [None if gradient is None else (id(gradient), version_of(gradient)) for gradient in gradients],
            random_states(self._devices),
        )

    # -- the edge -------------------------------------------------------------------------------------------

    def check_optimizer(self, seed_ids: Iterable[str], optimizer: torch.optim.Optimizer | None) -> None:
        """Count the parameters of seeds that the host's optimiser would update."""
        seed_ids = list(seed_ids)
        if not (self._active and seed_ids) or optimizer is None:
            return
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for seed_id in seed_ids:
            tensors = self._registry.tensors_of(seed_owner(seed_id))
            taken = [name for name, tensor in tensors.items() if id(tensor) in held]
            self._count(seed_id, Leaks(seed_changes=len(taken)), "the host's optimiser holds", taken)

    def check_teacher(self) -> None:
        """Count what was changed of the teacher, which belongs to no seed; the change is then taken as given."""
        changed = self._registry.changed(TEACHER)
        if self._active and changed:
            self._breach(len(changed))
            logger.error("the teacher was changed in epoch %d: %s", self._epoch, ", ".join(changed[:3]))
            self._registry.accept(TEACHER)

    def close_epoch(self, epoch: int, *, trained: bool) -> None:
        """Begin the next epoch's count; a clean epoch in which seeds were `trained` closes the breaker."""
        clean = not any(leaks.total for leaks in self._now.values())
        self._epoch = epoch
        self._last, self._now = self._now, {}
        if clean and trained and self.allows:
            self.breaker = self.breaker.succeeded()

    def agree(self, ranks: Ranks, seed_ids: Sequence[str]) -> None:
        """Take the worst that any rank saw in this epoch for what happened; before `close_epoch`."""
        leaks = [self._now.get(seed_id, NO_LEAKS) for seed_id in seed_ids]
        counts = [float(count) for each in leaks for count in (each.host_changes, each.seed_changes)]
        opened = self.breaker.opened_at
        facts = [float(self.violations), float(self.breaker.failures), -1.0 if opened is None else opened]
        violations, failures, opened_at, *counts = ranks.highest([*facts, *counts])
        self.violations = int(violations)
        self.breaker = replace(self.breaker, failures=int(failures), opened_at=None if opened_at < 0 else opened_at)
        for seed_id, host, seed in zip(seed_ids, counts[::2], counts[1::2], strict=True):
            if host or seed:
                self._now[seed_id] = Leaks(int(host), int(seed))

    def breach(self, seed_id: str, leaks: Leaks) -> None:
        """Count what a rehearsal found."""
        if self._active:
            self._count(seed_id, leaks, "its rehearsal changed", ["host"])

    def _count(self, seed_id: str, leaks: Leaks, what: str, names: Sequence[str]) -> None:
        if not leaks.total:
            return
        if seed_id not in self._now:
            logger.error("seed %s is not isolated: %s %s", seed_id, what, ", ".join(names[:3]))
        self._now[seed_id] = self._now.get(seed_id, NO_LEAKS) + leaks
        self._breach(leaks.total)

    def _breach(self, count: int) -> None:
        self.violations += count
        self.breaker = self.breaker.failed(float(self._epoch))

    def close_breaker(self) -> None:
        """Let seeds take steps again: an operator or a controller answers for it."""
        self.breaker = self.breaker.succeeded()

    def move_on(self, epoch: int) -> None:
        """Go on at `epoch` after a return to an earlier one: what is left of an open breaker's time stays left."""
        shift, opened_at = epoch - self._epoch, self.breaker.opened_at
        self._epoch = epoch
        if opened_at is not None:
            self.breaker = replace(self.breaker, opened_at=opened_at + shift)

    # -- checkpoints ----------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """Return where the monitor stands, between the closing of an epoch and its decision."""
        return {
            "epoch": self._epoch,
            "violations": self.violations,
            "failures": self.breaker.failures,
            "opened_at": self.breaker.opened_at,
            "leaks": {seed_id: [leaks.host_changes, leaks.seed_changes] for seed_id, leaks in self._last.items()},
        }

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Go on from what `facts` returned."""
        self._epoch, self.violations = int(facts["epoch"]), int(facts["violations"])
        self.breaker = CircuitBreaker(
            self.breaker.failures_max, self.breaker.open_seconds, int(facts["failures"]), facts["opened_at"]
        )
        self._last = {seed_id: Leaks(*counts) for seed_id, counts in facts["leaks"].items()}
