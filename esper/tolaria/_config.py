"""What a run's loop is set to: the task's own numbers, overridden by the request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from esper.core.errors import UsageError
from esper.core.rng import derive_seed
from esper.leyline import messages as ly
from esper.tolaria.tasks._tasks import Task

#: Hyperparameters that a request may set, and whether each is a whole number.
HYPERPARAMETERS: Final[Mapping[str, bool]] = {
    "batch_size": True,
    "bfloat16": True,
    "clip_norm": False,
    "epoch_budget_seconds": False,
    "gradient_accumulation": True,
    "learning_rate": False,
    "loss_spike_factor": False,
    "rollback_rate_factor": False,
    "rollbacks_max": True,
    "threads": True,
}
#: Whole numbers of which 0 is one.
_FROM_ZERO: Final = frozenset({"rollbacks_max"})
#: Shares: above 0, at most 1.
_SHARES: Final = frozenset({"rollback_rate_factor"})
#: These are switches: 0 or 1.
_SWITCHES: Final = frozenset({"bfloat16"})
#: The most of each whole number: a request must not be able to exhaust its worker, or to end it, with a number.
#: Beyond 256 threads only cost memory.
_MOST: Final = {"batch_size": 2**31 - 1, "gradient_accumulation": 1_000_000, "rollbacks_max": 1_000_000, "threads": 256}


@dataclass(frozen=True)
class TrainingLoopConfig:
    """The numbers of one run. `learning_rate` is Adam's, the top of a cosine that ends at zero.

    `clip_norm`: the host's gradient, all that its optimiser trains taken together, is scaled down to this L2 norm
    before each step (Pascanu et al., 2013); seeds are clipped apart, each by Kasmina. None clips nothing.
    `bfloat16`: training forwards and their loss run under torch's autocast, on CPU and CUDA alike; weights, gradients,
    gates, shadows and evaluation stay in single precision, and no scaler is needed.
    `loss_spike_factor`: a held-out loss above so many times the median of the last five, and above the first, is a
    fault, as one is that is not finite; the run then returns to its newest checkpoint, `rollbacks_max` times at most,
    and trains on with `rollback_rate_factor` of the learning rate that it had there.
    `epoch_budget_seconds`: telemetry warns of an epoch whose steps took longer; nothing is cut off.
    """

    seed: int
    epochs: int
    batch_size: int
    learning_rate: float
    device: torch.device
    gradient_accumulation: int = 1
    threads: int = 1
    clip_norm: float | None = None
    bfloat16: bool = False
    epoch_budget_seconds: float | None = None
    loss_spike_factor: float = 10.0
    rollbacks_max: int = 3
    rollback_rate_factor: float = 0.5
    digest_every_epochs: int = 1
    #: A replicate other than 0 draws otherwise than its origin, after the epochs that it has from there.
    replicate: int = 0
    forked_epochs: int = 0
    #: (epoch, learning rate): tops of the cosine that hold after an epoch, ascending; before the first `learning_rate`.
    learning_rates: tuple[tuple[int, float], ...] = ()
    decision_wait_seconds: float = 10.0
    kernel_wait_seconds: float = 10.0

    @classmethod
    def of(
        cls,
        request: ly.TrainingRunRequested,
        task: Task,
        *,
        decision_wait_seconds: float = 10.0,
        kernel_wait_seconds: float = 10.0,
    ) -> TrainingLoopConfig:
        """Return the configuration that `request` asks for; what it leaves at zero is the task's or the given.

        Raises:
            UsageError: an unknown hyperparameter, a value out of range, or a device that is not there.
        """
        chosen = check_hyperparameters(request.hyperparameters)
        return cls(
            seed=request.seed,
            epochs=request.epochs or task.epochs,
            batch_size=int(chosen.get("batch_size", task.batch_size)),
            learning_rate=chosen.get("learning_rate", task.learning_rate),
            gradient_accumulation=int(chosen.get("gradient_accumulation", 1)),
            threads=int(chosen.get("threads", 1)),
            clip_norm=chosen.get("clip_norm"),
            bfloat16=bool(chosen.get("bfloat16", 0)),
            epoch_budget_seconds=chosen.get("epoch_budget_seconds"),
            loss_spike_factor=chosen.get("loss_spike_factor", 10.0),
            rollbacks_max=int(chosen.get("rollbacks_max", 3)),
            rollback_rate_factor=chosen.get("rollback_rate_factor", 0.5),
            device=usable_device(request.device or "cpu"),
            digest_every_epochs=request.digest_every_epochs or 1,
            replicate=request.replicate,
            forked_epochs=request.forked_epochs,
            learning_rates=check_learning_rates(request),
            decision_wait_seconds=request.decision_wait_seconds or decision_wait_seconds,
            kernel_wait_seconds=request.kernel_wait_seconds or kernel_wait_seconds,
        )

    def learning_rate_in(self, epoch: int) -> float:
        """Return the top of the cosine that the steps of an epoch go by."""
        held = [rate for after, rate in self.learning_rates if epoch > after]
        return held[-1] if held else self.learning_rate

    def seed_at(self, epoch: int) -> int:
        """Return what the draws of an epoch and of its decision follow from."""
        if not self.replicate or epoch <= self.forked_epochs:
            return self.seed
        return derive_seed(self.seed, "replicate", self.replicate)

    def steps_per_epoch(self, samples: int) -> int:
        """Return the optimiser steps that one pass over `samples` takes; the last batch may be short."""
        return math.ceil(samples / self.batch_size)

    def is_hashed(self, epoch: int) -> bool:
        """Whether the weights are hashed at the end of `epoch`: every so many epochs, and at the last."""
        return epoch % self.digest_every_epochs == 0 or epoch == self.epochs


def check_device_name(name: str) -> torch.device:
    """Return the torch device that `name` names, whether or not this machine has it.

    Raises:
        UsageError: it names none that can train.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"{name!r} names no device", cause=str(error).split("\n")[0], next_step="Use cpu, cuda or cuda:N"
        ) from error
    if device.type not in {"cpu", "cuda"}:
        raise UsageError(f"{name!r} cannot train", cause="runs train on cpu or cuda", next_step="Name one of these")
    return device


def usable_device(name: str) -> torch.device:
    """Return the torch device called `name`.

    Raises:
        UsageError: there is no such device here.
    """
    device = check_device_name(name)
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= count:
        raise UsageError(
            f"there is no device {name!r}", cause=f"this machine has {count} of its kind", next_step="Use cpu"
        )
    return device


def check_learning_rates(request: ly.TrainingRunRequested) -> tuple[tuple[int, float], ...]:
    """Return the learning rates of a request that hold from some epoch on, as (epoch, rate).

    Raises:
        UsageError: they do not ascend, or one cannot be trained with.
    """
    given = [(each.epoch, each.learning_rate) for each in request.learning_rates]
    epochs = [epoch for epoch, _ in given]
    if epochs != sorted(set(epochs)):
        raise UsageError(
            "learning_rates cannot be used",
            cause=f"their epochs are {epochs}",
            next_step="Give them in ascending order",
        )
    for _, rate in given:
        check_hyperparameters({"learning_rate": rate})
    return tuple(given)


def learning_rate_at(step: int, *, steps: int, top: float) -> float:
    """Return the learning rate of `step` (from 0) of `steps`: half a cosine from `top` to 0 (SGDR, 2017, eq. 5)."""
    return top * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def check_hyperparameters(given: Mapping[str, float]) -> dict[str, float]:
    """Return `given` when a run can be trained with it.

    Raises:
        UsageError: an unknown name, or a value out of range.
    """
    unknown = sorted(set(given) - set(HYPERPARAMETERS))
    if unknown:
        raise UsageError(
            f"there is no hyperparameter {', '.join(map(repr, unknown))}",
            cause=f"known are {', '.join(sorted(HYPERPARAMETERS))}",
            next_step="Name one of them",
        )
    for name, value in given.items():
        if name in _SWITCHES:
            fits, kind = value in {0, 1}, "0 or 1"
        elif name in _FROM_ZERO:
            fits, kind = math.isfinite(value) and value >= 0 and value.is_integer(), "a whole number, at least 0"
        elif name in _SHARES:
            fits, kind = 0 < value <= 1, "above 0 and at most 1"
        elif HYPERPARAMETERS[name]:
            fits, kind = math.isfinite(value) and value >= 1 and value.is_integer(), "a whole number of at least 1"
        else:
            fits, kind = math.isfinite(value) and value > 0, "a finite number above 0"
        if not fits:
            raise UsageError(f"{name} = {value:g} cannot be used", cause=f"it must be {kind}", next_step="Correct it")
        if value > _MOST.get(name, math.inf):
            raise UsageError(
                f"{name} = {value:g} cannot be used", cause=f"it is at most {_MOST[name]}", next_step="Correct it"
            )
    return dict(given)
