"""What the caller of `grow` gives, checked before anything is started or written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import torch
from torch import Tensor

from esper.core.errors import UsageError
from esper.core.inputs import Batch, Output, Targets

LossFunction = Callable[[Output, Targets], Tensor]
#: Figures of an epoch, or what gives them when they are wanted.
Metrics = Mapping[str, float] | Callable[[], Mapping[str, float]]

STOP: Final = "stop"
DEGRADE: Final = "degrade"
_HOLD: Final = "hold:"
RECORD: Final = "record"
ROLLBACK: Final = "rollback"


class LossScaler(Protocol):
    """What is asked of a loss scaler; `torch.amp.GradScaler` is one."""

    def get_scale(self) -> float:
        """Return the factor that the next loss is multiplied by."""


class RateSchedule(Protocol):
    """What is asked of a learning-rate scheduler; those of `torch.optim.lr_scheduler` are such."""

    optimizer: Any

    def get_last_lr(self) -> Sequence[Any]:
        """Return the present rate of each parameter group."""


@dataclass(frozen=True)
class LogLoss:
    """What to do when no broker answers: stop the loop, after a while of its own, or train on without growth."""

    degrade: bool = False
    #: How long an edge waits for a broker; None: as long as the settings say.
    hold_seconds: float | None = None

    @classmethod
    def of(cls, text: str) -> LogLoss:
        """Return what `text` says: "stop", "hold:SECONDS" or "degrade".

        Raises:
            UsageError: it is none of them.
        """
        if text in (STOP, DEGRADE):
            return cls(degrade=text == DEGRADE)
        seconds = _number(text.removeprefix(_HOLD)) if text.startswith(_HOLD) else None
        if seconds is None or not 0.0 < seconds < float("inf"):
            raise UsageError(
                f"on_log_loss={text!r} cannot be used",
                cause="it is none of stop, hold:SECONDS and degrade",
                next_step='write on_log_loss="hold:300", say',
            )
        return cls(hold_seconds=seconds)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class Wishes:
    """What the caller of `grow` gave."""

    slots: Sequence[str] | Literal["auto"]
    optimizer: torch.optim.Optimizer | None
    loss_fn: LossFunction | None
    probe: Sequence[Batch] | None
    scaler: LossScaler | None
    scheduler: RateSchedule | None
    policy: str
    epochs: int
    seed: int
    name: str
    on_log_loss: LogLoss
    #: The state digest costs reading every weight once.
    digest_every_epochs: int = 1
    #: Whether states are kept, so that the run can return to one by order and does so after a fault.
    returns: bool = False


def check_digests(every_epochs: int) -> None:
    """Raise UsageError when the weights cannot be hashed that often."""
    if every_epochs < 1:
        raise UsageError(
            f"digest_every_epochs={every_epochs} cannot be used",
            next_step="give a number of epochs, at least 1; 1 hashes the weights at every edge",
        )


def returns_on(on_fault: str, optimizer: torch.optim.Optimizer | None) -> bool:
    """Return whether a run is to return to an earlier state: `on_fault` is "rollback", not "record".

    Raises:
        UsageError: it is neither, or there is no optimiser that could return with the model.
    """
    if on_fault not in (RECORD, ROLLBACK):
        raise UsageError(
            f"on_fault={on_fault!r} cannot be used",
            cause=f"it is neither {RECORD} nor {ROLLBACK}",
            next_step='write on_fault="rollback", say',
        )
    if on_fault == ROLLBACK and optimizer is None:
        raise UsageError(
            f"on_fault={ROLLBACK!r} cannot be used without an optimizer",
            cause="a return takes the optimiser back with the model and halves its rate, and grow was given none",
            next_step="give grow(..., optimizer=...) the optimiser that your loop steps",
        )
    return on_fault == ROLLBACK


def check_alone(wishes: Wishes, *, ranks: int) -> None:
    """Raise UsageError where something is wished for that one process can do and several cannot."""
    if wishes.returns and ranks > 1:
        raise UsageError(
            f"on_fault={ROLLBACK!r} cannot be used by {ranks} ranks",
            cause="a rank measures faults and keeps states by itself, and all would have to go back as one",
            next_step=f"write on_fault={RECORD!r}, and begin again from a checkpoint of your own",
        )


def check_helpers(
    optimizer: torch.optim.Optimizer | None, scaler: LossScaler | None, scheduler: RateSchedule | None
) -> None:
    """Raise when an optimiser, scaler or scheduler cannot be what it is given for.

    Raises:
        UsageError: the optimiser can take no seed over, a method is missing, or the scheduler is that of another
            optimiser.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UsageError(
            "optimizer=LBFGS cannot be used",
            cause="it keeps one flat state for all parameters, and a seed that stays brings it more of them",
            next_step="train with one that keeps a state for each parameter, Adam or SGD, say; or leave optimizer out, "
            "so that seeds that stay keep their own",
        )
    if scaler is not None and not callable(getattr(scaler, "get_scale", None)):
        raise UsageError(
            f"scaler={type(scaler).__name__} cannot be used",
            cause="it has no get_scale()",
            next_step="give the torch.amp.GradScaler that scales your loss",
        )
    if scheduler is None:
        return
    if not callable(getattr(scheduler, "get_last_lr", None)):
        raise UsageError(
            f"scheduler={type(scheduler).__name__} cannot be used",
            cause="it has no get_last_lr()",
            next_step="give one of torch.optim.lr_scheduler",
        )
    if optimizer is not None and getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise UsageError(
            "scheduler and optimizer do not belong together",
            cause="the scheduler changes the rates of another optimiser",
            next_step="give grow the optimiser that the scheduler was made with",
        )
