"""The training steps of a trial, as the process in quarantine takes them; it measures and judges nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.core.digest import module_state, state_digest
from esper.core.kernel import load_kernel
from esper.core.quarantine._trial import Settings, Trial

# Legend: x_B... is a batch of B samples of the slot's shape.

#: One line of what is said about a trial: its kind, then plain numbers and words.
Line = Mapping[str, float | str]
Say = Callable[[Line], None]

#: Changes of the input whose effects are compared, as shares of its root mean square.
_SMALL_CHANGE: Final = 1e-4
_LARGE_CHANGE: Final = 1e-2
#: A change of the output below this share of it may be rounding.
_ROUNDING_SHARE: Final = 1e-5
_BETA_1: Final = 0.9
_BETA_2: Final = 0.999
_EPSILON: Final = 1e-8


def run_steps(trial: Trial, settings: Settings, say: Say) -> None:
    """Train the trial's kernel to come near its targets, saying of each step what was measured.

    Ends early at the first number that is not finite. The same trial says the same, unless the kernel does not.

    Raises:
        IntegrityError: the artifact is not what its manifest says.
        RuntimeError: what torch makes of the kernel fails, memory that is refused included.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(trial.seed)
        kernel = load_kernel(trial.artifact, quarantine=True).train()
        x_B, target_B = _batch(trial, next(kernel.parameters()).dtype)
        optimizer = Adam(kernel.parameters(), settings.learning_rate)
        first_norm = _norm(kernel.parameters())
        for _ in range(settings.steps):
            not_finite, gain = train_step(kernel, optimizer, x_B, target_B)
            growth = 0.0 if not_finite else _norm(kernel.parameters()) / (first_norm + 1.0)
            say({"kind": "step", "not_finite": not_finite, "backward_gain": gain, "weight_growth": growth})
            if not_finite:
                return
        small, large = (sensitivity(kernel, x_B, change, seed=trial.seed) for change in (_SMALL_CHANGE, _LARGE_CHANGE))
        digest = state_digest({**module_state(kernel), "output": _output(kernel, x_B)})
        say({"kind": "done", "digest": digest, "sensitivity_small": small, "sensitivity_large": large})


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1) with its customary numbers.

    Written out, because the first step of `torch.optim` loads torch's compiler, which takes as long as torch itself.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> None:
        self._parameters = list(parameters)
        self._learning_rate = learning_rate
        self._moments = [(torch.zeros_like(each), torch.zeros_like(each)) for each in self._parameters]
        self._steps = 0

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        self._steps += 1
        for parameter, (first, second) in zip(self._parameters, self._moments, strict=True):
            if parameter.grad is None:
                continue
            first.mul_(_BETA_1).add_(parameter.grad, alpha=1.0 - _BETA_1)
            second.mul_(_BETA_2).addcmul_(parameter.grad, parameter.grad, value=1.0 - _BETA_2)
            root = (second / (1.0 - _BETA_2**self._steps)).sqrt_().add_(_EPSILON)
            parameter.addcdiv_(first, root, value=-self._learning_rate / (1.0 - _BETA_1**self._steps))


def train_step(kernel: nn.Module, optimizer: Adam, x_B: Tensor, target_B: Tensor) -> tuple[str, float]:
    """Take one step down the mean squared error; return what was not finite, and the backward gain.

    The gain is the largest of: the norm of the input's gradient, and that of each trained tensor of the body over
    the input's norm (at least 1); all over the norm of the gradient at the output.
    """
    optimizer.zero_grad()
    source_B = x_B.clone().requires_grad_(True)
    out_B: Tensor = kernel(source_B)
    if not _finite([out_B]):
        return "output", 0.0
    out_B.retain_grad()
    loss = functional.mse_loss(out_B, target_B)
    if not _finite([loss]):
        return "loss", 0.0
    torch.autograd.backward(loss)
    gradients = [source_B.grad, *(parameter.grad for parameter in kernel.parameters())]
    if not _finite(gradient for gradient in gradients if gradient is not None):
        return "gradient", 0.0
    gain = _backward_gain(kernel, source_B, out_B)
    optimizer.step()
    return ("", gain) if _finite(_state(kernel)) else ("weight", gain)


def sensitivity(kernel: nn.Module, x_B: Tensor, change: float, *, seed: int) -> float:
    """Return how much the kernel's output moves for its size when every number of its input moves a little.

    `change` is a share of the input's root mean square; 0 where what moves may be rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    direction_B = torch.randn(x_B.shape, generator=generator, dtype=x_B.dtype)
    step = change * max(_rms(x_B), 1e-12)
    before_B, after_B = _output(kernel, x_B), _output(kernel, x_B + step * direction_B)
    moved = _rms(after_B - before_B)
    return moved / step if moved > _ROUNDING_SHARE * _rms(before_B) else 0.0


def _backward_gain(kernel: nn.Module, source_B: Tensor, out_B: Tensor) -> float:
    arriving = 0.0 if out_B.grad is None else float(out_B.grad.norm())
    if arriving == 0.0:
        return 1.0  # Nothing came in, so nothing can be said of what goes on.
    size = max(1.0, float(source_B.detach().norm()))
    body = [parameter.grad for name, parameter in kernel.named_parameters() if name.startswith("body.")]
    inner = max((float(gradient.norm()) / size for gradient in body if gradient is not None), default=0.0)
    outer = 0.0 if source_B.grad is None else float(source_B.grad.norm())
    return max(inner, outer) / arriving


def _batch(trial: Trial, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return inputs and targets; the targets with a root mean square of 1, and noise where they say nothing."""
    tensors = safetensors.torch.load(trial.batch)  # Names, shapes and numbers; the format can hold no code.
    x_B, target_B = tensors["inputs"].to(dtype), tensors["targets"].to(dtype)
    rms = _rms(target_B)
    if rms == 0.0:
        generator = torch.Generator().manual_seed(trial.seed)
        return x_B, torch.randn(target_B.shape, generator=generator, dtype=dtype)
    return x_B, target_B / rms


def _output(kernel: nn.Module, x_B: Tensor) -> Tensor:
    """Return the kernel's output in eval mode, as nothing random should change it."""
    training = kernel.training
    kernel.eval()
    with torch.no_grad():
        out_B: Tensor = kernel(x_B)
    kernel.train(training)
    return out_B


def _state(kernel: nn.Module) -> Iterator[Tensor]:
    yield from kernel.parameters()
    yield from (buffer for buffer in kernel.buffers() if buffer.is_floating_point())


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor.detach()).all()) for tensor in tensors)


def _norm(parameters: Iterable[Tensor]) -> float:
    return float(torch.stack([parameter.detach().norm() for parameter in parameters]).norm())


def _rms(tensor: Tensor) -> float:
    return float(tensor.detach().square().mean().sqrt())
