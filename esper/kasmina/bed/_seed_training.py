"""How one seed learns: its own optimiser with warm-up and clipping, in shadow first, with the host later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from esper.core.checkpoint import Saved, named, optimizer_state, refused, restore_optimizer
from esper.core.inputs import Output, Targets
from esper.core.ranks import ALONE, Ranks
from esper.kasmina._config import KasminaConfig
from esper.kasmina.gates._gradients import NO_GRADIENTS, GradientRecord

LossFunction = Callable[[Output, Targets], Tensor]

#: Keeps the clip factor finite where the gradient is zero (as torch.nn.utils.clip_grad_norm_ does).
_CLIP_EPSILON = 1e-6


@dataclass(frozen=True)
class ShadowRecord:
    """Mean shadow loss of each epoch of TRAINING in which the seed was trained, oldest first."""

    epoch_losses: tuple[float, ...] = ()
    steps: int = 0


class _RunningNorms:
    """Counts norms and keeps the lowest and the highest, on their device; one that is NaN makes both NaN."""

    def __init__(self) -> None:
        self._steps = 0
        self._lowest: Tensor | None = None
        self._highest: Tensor | None = None

    def add(self, norm: Tensor) -> None:
        self._steps += 1
        self._lowest = norm if self._lowest is None else torch.minimum(self._lowest, norm)
        self._highest = norm if self._highest is None else torch.maximum(self._highest, norm)

    def record(self) -> GradientRecord:
        if self._lowest is None or self._highest is None:
            return NO_GRADIENTS
        return GradientRecord(self._steps, float(self._lowest), float(self._highest))


class SeedTrainer:
    """Trains the parameters of one seed; the host's optimiser never sees them before FOSSILIZED.

    A gradient that is not finite is replaced by zero, so that the weights stay finite, and `sound` is cleared.
    """

    def __init__(self, seed: nn.Module, *, sound: Tensor, config: KasminaConfig, ranks: Ranks = ALONE) -> None:
        self.parameters: list[nn.Parameter] = list(seed.parameters())
        self.optimizer: torch.optim.AdamW | None = (
            torch.optim.AdamW(
                self.parameters,
                lr=config.learning_rate,
                betas=config.betas,
                weight_decay=config.weight_decay,
                foreach=False,
            )
            if self.parameters
            else None
        )
        self.shadow = ShadowRecord()
        #: Norms of the epoch that was closed last.
        self.gradients = NO_GRADIENTS
        self._config = config
        self._sound = sound
        self._ranks = ranks
        self._steps = 0
        self._loss_sum: Tensor | None = None
        self._loss_count = 0
        self._norm: Tensor | None = None
        #: Share of its own rate that the seed learns with now, in 0..1.
        self.rate_share = 1.0
        #: What a fine-tuning multiplies its own rate by; 1.0 where none is under way.
        self.rate_factor = 1.0
        self._norms = _RunningNorms()

    @property
    def steps(self) -> int:
        """Steps that the seed's own optimiser took."""
        return self._steps

    @property
    def learning_rate(self) -> float:
        """The rate of the next step: its own, after a linear warm-up constant, times `rate_share` and `rate_factor`."""
        warmup = self._config.warmup_steps
        share = min(1.0, (self._steps + 1) / warmup) if warmup else 1.0
        return self._config.learning_rate * share * self.rate_share * self.rate_factor

    @property
    def gradient_norm(self) -> float | None:
        """L2 norm of the gradient at the last step, before clipping; None before the first. Waits for the device."""
        return None if self._norm is None else float(self._norm)

    def zero_grad(self) -> None:
        """Forget the seed's gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def scale_gradients(self, factor: float) -> None:
        """Multiply the gradients that the parameters hold, where the seed's own optimiser is to apply them."""
        if self.optimizer is None:
            return
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def learn_from(self, loss: Tensor) -> None:
        """Take one step down a shadow loss (0-d)."""
        self.zero_grad()
        if loss.requires_grad:
            torch.autograd.backward(loss)
        detached = loss.detach().double()
        self._loss_sum = detached if self._loss_sum is None else self._loss_sum + detached
        self._loss_count += 1
        self._sound.logical_and_(torch.isfinite(detached))
        self.step()

    def step(self) -> None:
        """Clip the gradients that the parameters hold and apply them; without any, nothing happens."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if self.optimizer is None or not gradients:
            return
        self._ranks.average_gradients(self.parameters)
        self._clip(gradients)
        self.optimizer.param_groups[0]["lr"] = self.learning_rate
        self.optimizer.step()
        self._steps += 1
        self.zero_grad()

    def _clip(self, gradients: Sequence[Tensor]) -> None:
        self._norm = get_total_norm(gradients, foreach=False)
        self._norms.add(self._norm)
        finite = torch.isfinite(self._norm)
        self._sound.logical_and_(finite)
        scale = (self._config.clip_norm / (self._norm + _CLIP_EPSILON)).clamp(max=1.0)
        for gradient in gradients:
            gradient.copy_(torch.where(finite, gradient * scale, torch.zeros_like(gradient)))

    def close_epoch(self) -> None:
        """Turn the epoch's shadow losses into one mean, its gradient norms into their record. Waits for the device."""
        self.gradients, self._norms = self._norms.record(), _RunningNorms()
        if self._loss_sum is None:
            return
        (mean,) = self._ranks.means([float(self._loss_sum) / self._loss_count])
        self.shadow = ShadowRecord((*self.shadow.epoch_losses, mean), self.shadow.steps + self._loss_count)
        self._loss_sum, self._loss_count = None, 0

    def checkpoint(self, names: Mapping[Tensor, str]) -> Saved:
        """Return what training has come to; `names` names the parameters. To be called when the epoch is closed."""
        assert self._loss_sum is None, "a checkpoint is taken after close_epoch"
        facts = {
            "steps": self._steps,
            "rate_share": self.rate_share,
            "rate_factor": self.rate_factor,
            "epoch_losses": list(self.shadow.epoch_losses),
            "shadow_steps": self.shadow.steps,
            "own_optimizer": self.optimizer is not None,
            "gradients": asdict(self.gradients) if self.gradients.steps else None,
        }
        tensors = {} if self._norm is None else {"gradient_norm": self._norm}
        if self.optimizer is not None:
            tensors |= named("optimizer/", optimizer_state(self.optimizer, names))
        return Saved(facts, tensors)

    def restore(self, saved: Saved, names: Mapping[Tensor, str]) -> None:
        """Go on from what `checkpoint` returned.

        Raises:
            IntegrityError: it is of other parameters.
        """
        facts = saved.facts
        if facts["own_optimizer"] != (self.optimizer is not None):
            raise refused("a seed's optimiser is there and not here, or the other way round")
        self._steps, self.rate_share = int(facts["steps"]), float(facts["rate_share"])
        self.rate_factor = float(facts.get("rate_factor", 1.0))
        self.shadow = ShadowRecord(tuple(facts["epoch_losses"]), int(facts["shadow_steps"]))
        self.gradients = NO_GRADIENTS if facts["gradients"] is None else GradientRecord(**facts["gradients"])
        norm = saved.tensors.get("gradient_norm")
        self._norm = None if norm is None else norm.to(self._sound.device)
        if self.optimizer is not None:
            restore_optimizer(self.optimizer, names, saved.under("optimizer/"))

    def hand_over(self, host: torch.optim.Optimizer, *, beside: Sequence[nn.Parameter]) -> None:
        """Move parameters and their optimiser state into `host`: into the group that holds one of `beside`.

        A group that exists already, so that learning-rate schedulers, which count groups, go on working. The
        moments go along where the host's optimiser is of the Adam family; another kind starts afresh.
        """
        if self.optimizer is None:
            return
        group = _group_of(host, beside)
        known = {id(parameter) for parameter in group["params"]}
        group["params"].extend(parameter for parameter in self.parameters if id(parameter) not in known)
        if isinstance(host, torch.optim.Adam):
            for parameter in self.parameters:
                if parameter in self.optimizer.state:
                    host.state[parameter] = _adam_state(self.optimizer.state[parameter], group)
        self.optimizer = None


def release(host: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Take `parameters` and all that `host` knows of them out of it; its groups stay, for schedulers count them."""
    gone = {id(parameter): parameter for parameter in parameters}
    for group in host.param_groups:
        group["params"][:] = [parameter for parameter in group["params"] if id(parameter) not in gone]
    for parameter in gone.values():
        host.state.pop(parameter, None)


def _group_of(host: torch.optim.Optimizer, beside: Sequence[nn.Parameter]) -> dict[str, Any]:
    wanted = {id(parameter) for parameter in beside}
    for group in host.param_groups:
        if any(id(parameter) in wanted for parameter in group["params"]):
            return group
    return host.param_groups[0]


def _adam_state(state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
    """Return the moments as a group with these options expects them."""
    moved = dict(state)
    if group.get("capturable") or group.get("fused"):
        moved["step"] = state["step"].to(state["exp_avg"].device)
    if group.get("amsgrad"):
        moved["max_exp_avg_sq"] = state["exp_avg_sq"].clone()
    return moved
