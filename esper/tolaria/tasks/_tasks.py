"""What is trained: data in three parts, how an error is measured, and the hosts that may learn it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.core.errors import UsageError

Placement = Literal["branch", "residual"]
Loss = Callable[[Tensor, Tensor], Tensor]

_TARGET_DIMS: Final = (1, 2)
_SIZED_NAME: Final = re.compile(r"(?P<family>[a-z0-9_]+):(?P<width>[1-9][0-9]{0,4})")
#: A wider layer would take minutes an epoch.
WIDTH_MAX: Final = 4096


@dataclass(frozen=True)
class Split:
    """One part of a data set: `inputs` [N, ...] and `targets` of class indices (int64).

    Targets are [N], one class a sample, or [N, L], one at each of L positions (a sequence's next tokens).
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def predictions(self) -> int:
        """How many classes are to be named: N, or N * L."""
        return self.targets.numel()

    def to(self, device: torch.device) -> Split:
        """Return this part on `device`."""
        return Split(self.inputs.to(device), self.targets.to(device))


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits [N, C] for targets [N], or of [N, L, C] for [N, L]; classes come last.

    Positions are laid out flat, for torch's loss over [N, C, L] is not deterministic on CUDA.
    """
    if targets.dim() == 1:
        return F.cross_entropy(outputs, targets)
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


@dataclass(frozen=True)
class SlotSpec:
    """Where a seed may be grafted: the named module that the slot spans, and what a seed there reads.

    "branch" reads the module's input, "residual" its output; both add to its output.
    """

    module: str
    placement: Placement = "branch"
    slot: str = ""

    @property
    def name(self) -> str:
        """The slot's name; the module's where none was given."""
        return self.slot or self.module


@dataclass(frozen=True)
class Host:
    """A freshly initialised network and its slots; one that has none can be trained, but not grown."""

    module: nn.Module
    slots: tuple[SlotSpec, ...] = ()

    def __post_init__(self) -> None:
        modules = dict(self.module.named_modules())
        for spec in self.slots:
            if not spec.module or spec.module not in modules:
                known = ", ".join(name for name in modules if name) or "none"
                raise UsageError(
                    f"the host has no module {spec.module!r} for a slot",
                    cause=f"its modules are {known}",
                    next_step="name one of them",
                )


@dataclass(frozen=True)
class Task:
    """A classification problem with everything that a run of it needs besides the request.

    The trainer learns from `train`; gates, policies and reports look at `validation`; `test` is looked at
    once, at a run's very end. `loss(outputs, targets)` is the mean over the batch of what is minimised; outputs
    have their classes in the last dimension.
    `distributions` names the installed packages that data and hosts come from, for the run's dependencies digest.

    Raises:
        UsageError: a part is empty, its lengths differ, inputs are not finite, or targets are not classes.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    hosts: Mapping[str, Callable[[], Host]]
    loss: Loss = cross_entropy
    batch_size: int = 64
    learning_rate: float = 3e-3
    epochs: int = 40
    distributions: tuple[str, ...] = field(default=())
    #: Hosts that come in any width: `sized["mlp"](16)` makes what the name "mlp:16" means.
    sized: Mapping[str, Callable[[int], Callable[[], Host]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part, split in self.parts().items():
            problem = _problem(split, classes=self.classes)
            if problem:
                raise UsageError(
                    f"the task {self.name!r} cannot be trained",
                    cause=f"its {part} part {problem}",
                    next_step="correct the factory that makes it",
                )
        problem = self._problem_of_numbers()
        if problem:
            raise UsageError(
                f"the task {self.name!r} cannot be trained",
                cause=problem,
                next_step="correct the factory that makes it",
            )
        if not self.hosts:
            raise UsageError(
                f"the task {self.name!r} cannot be trained", cause="it has no host", next_step="give it at least one"
            )

    def _problem_of_numbers(self) -> str:
        if self.batch_size < 1:
            return f"its batch_size is {self.batch_size}, it must be at least 1"
        if self.epochs < 1:
            return f"its epochs are {self.epochs}, they must be at least 1"
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            return f"its learning_rate is {self.learning_rate}, it must be a finite number above 0"
        return ""

    def parts(self) -> dict[str, Split]:
        """Return train, validation and test by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def arrays(self) -> dict[str, Tensor]:
        """Return every array by name ("train.inputs", ...): what the data digest is taken over."""
        return {
            f"{part}.{kind}": getattr(split, kind)
            for part, split in self.parts().items()
            for kind in ("inputs", "targets")
        }

    def host(self, name: str) -> Host:
        """Return a fresh host called `name`, initialised from torch's global random stream.

        Raises:
            UsageError: the task has no such host; the message lists those it has.
        """
        factory = self.hosts.get(name) or self._sized(name)
        if factory is None:
            raise unknown_host(self.name, name, self.hosts)
        return factory()

    def has_host(self, name: str) -> bool:
        """Return whether it has a host of this name, or of this name and width."""
        return name in self.hosts or self._sized(name) is not None

    def _sized(self, name: str) -> Callable[[], Host] | None:
        """Return the factory of "family:width"; None where the name is none, or no family or width that there is."""
        found = _SIZED_NAME.fullmatch(name)
        if found is None or found["family"] not in self.sized or int(found["width"]) > WIDTH_MAX:
            return None
        return self.sized[found["family"]](int(found["width"]))


def unknown_host(task: str, host: str, known: Iterable[str]) -> UsageError:
    """Return the error for a host that a task does not have."""
    return UsageError(
        f"the task {task!r} has no host {host!r}",
        cause=f"it has {', '.join(sorted(known))}",
        next_step="Name one of them",
    )


def _problem(split: Split, *, classes: int) -> str:
    """Return what makes a part unusable, or nothing."""
    if len(split.inputs) != len(split.targets) or split.targets.dim() not in _TARGET_DIMS:
        return f"has {tuple(split.inputs.shape)} inputs for {tuple(split.targets.shape)} targets"
    if split.predictions == 0:
        return "is empty"
    if split.targets.dtype != torch.int64:
        return f"has targets of {split.targets.dtype}, not class indices of torch.int64"
    if int(split.targets.min()) < 0 or int(split.targets.max()) >= classes:
        return f"has targets outside 0 .. {classes - 1}"
    if split.inputs.is_floating_point() and not bool(torch.isfinite(split.inputs).all()):
        return "has inputs that are not finite"
    return ""
