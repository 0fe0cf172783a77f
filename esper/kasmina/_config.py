"""Kasmina's own numbers, each with what it bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from esper.core.errors import UsageError
from esper.core.quarantine import QuarantineLimits
from esper.kasmina._budgets import LatencyBudgets
from esper.kasmina.grafting._alpha import ALPHA_CURVES, AlphaCurve


@dataclass(frozen=True)
class GateLimits:
    """The bounds that measured evidence is held against."""

    #: A trend needs two points.
    training_epochs_min: int = 2
    #: The line fitted through the epochs' shadow losses may rise by this share of the first of them.
    shadow_loss_rise_max: float = 0.05
    #: The held-out loss must fall by this share when the seed is switched on: added size must earn its keep.
    gain_min: float = 0.001
    #: L2 norm of a seed's gradient before clipping: above it the gradient has exploded. It is clipped to
    #: `KasminaConfig.clip_norm`, so the bound is about health, not about the size of a step.
    gradient_norm_max: float = 1e4
    #: Below it, in the whole epoch, the gradient has vanished: the seed cannot learn.
    gradient_norm_min: float = 1e-12
    #: The held-out loss may rise by this share when a fossilised seed is taken off again.
    prune_rise_max: float = 0.01


@dataclass(frozen=True)
class KasminaConfig:
    """How seeds are trained and blended.

    Raises:
        UsageError: a number is out of its range; the message names it.
    """

    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    #: Steps over which a new seed's learning rate rises linearly to its full value.
    warmup_steps: int = 20
    #: L2 norm that a seed's gradient is clipped to, apart from the host's.
    clip_norm: float = 1.0
    #: A seed in TRAINING gets a shadow pass each so many host steps.
    shadow_every: int = 1
    alpha_curve: AlphaCurve = "cosine"
    #: Epochs that alpha takes from 0 to 1; `blend_steps`, when given, counts steps instead.
    blend_epochs: float = 2.0
    blend_steps: int | None = None
    #: Epochs that alpha takes from where it is to 0 when a seed that is heard is culled; 0: at once.
    cull_epochs: float = 1.0
    #: Whether a fossilised seed that is a linear map beside or after a linear layer becomes a part of its weights.
    fold: bool = True
    #: How long an epoch's edge waits for a kernel.
    kernel_wait_seconds: float = 10.0
    #: Epochs for which the slot of a culled seed stays barred before it is reset.
    embargo_epochs: int = 5
    #: Breaches of the isolation in a row, in whatever seeds, after which its breaker opens.
    isolation_breaches_max: int = 3
    #: Epochs for which the open breaker lets no seed germinate or train.
    isolation_open_epochs: int = 5
    #: What kernels at hand on the run's device may hold (0: none), and epochs after which an unused one goes.
    cache_bytes_max: int = 64 << 20
    cache_epochs_max: int = 20
    #: Part of the memory (the device's, or the machine's) in use above which caches go and nothing germinates.
    memory_share_max: float = 0.95
    #: Epochs after which garbage is collected; 0: never.
    collect_every_epochs: int = 50
    latency_budgets: LatencyBudgets = field(default_factory=LatencyBudgets)
    #: Whether overrun budgets end fetches and germinations; without it they are evidence.
    enforce_latency: bool = False
    limits: GateLimits = field(default_factory=GateLimits)
    #: What a kernel that may not be grafted gets instead; the epoch's edge waits that long for it at most.
    quarantine: QuarantineLimits = field(default_factory=QuarantineLimits)

    def __post_init__(self) -> None:
        for name in ("learning_rate", "clip_norm", "blend_epochs", "kernel_wait_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise _unusable(name, value, "a finite number above 0")
        for name in ("weight_decay", "cull_epochs"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise _unusable(name, value, "a finite number, at least 0")
        if self.warmup_steps < 0:
            raise _unusable("warmup_steps", self.warmup_steps, "at least 0")
        for name in (
            "shadow_every",
            "embargo_epochs",
            "cache_epochs_max",
            "isolation_breaches_max",
            "isolation_open_epochs",
        ):
            if getattr(self, name) < 1:
                raise _unusable(name, getattr(self, name), "at least 1")
        for name in ("cache_bytes_max", "collect_every_epochs"):
            if getattr(self, name) < 0:
                raise _unusable(name, getattr(self, name), "at least 0")
        if not 0 < self.memory_share_max <= 1:
            raise _unusable("memory_share_max", self.memory_share_max, "a share above 0, at most 1")
        if self.blend_steps is not None and self.blend_steps < 1:
            raise _unusable("blend_steps", self.blend_steps, "at least 1")
        if self.alpha_curve not in ALPHA_CURVES:
            raise _unusable("alpha_curve", self.alpha_curve, "one of " + ", ".join(ALPHA_CURVES))

    def blend_steps_at(self, steps_per_epoch: int, *, epochs: float | None = None) -> int:
        """Return how many steps alpha takes to rise, at least 1."""
        if epochs is None and self.blend_steps is not None:
            return self.blend_steps
        return max(1, round((self.blend_epochs if epochs is None else epochs) * steps_per_epoch))

    def fall_steps_at(self, steps_per_epoch: int, *, steps: float | None, epochs: float | None) -> int:
        """Return how many steps alpha takes to fall to 0; 0: it is not waited for."""
        if steps is not None:
            return round(steps)
        return math.ceil((self.cull_epochs if epochs is None else epochs) * steps_per_epoch)


def _unusable(name: str, value: object, expected: str) -> UsageError:
    return UsageError(f"Kasmina's {name}={value!r} cannot be used", next_step=f"give {expected}")
