"""Making compiled parts: a kernel's forward and backward as AOTInductor packages for any batch size.

`torch.compile` was measured and not taken for kernels that train (docs/adr/0042): what it caches holds no machine
code on a CPU, so that a fresh process starts a compiler again, it specialises a batch of one, and its guards cost a
tiny kernel more than it gains. Here forward and backward are traced to plain operations (the backward computes the
forward again), exported with a free batch size, and compiled with the parameters as arguments.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch
import torch._inductor
import torch._inductor.config
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from esper.core.kernel import Kernel
from esper.core.kernel._compiled import BATCH_MAX
from esper.tezzeret._faults import NoPart
from esper.tezzeret._measure import example

#: Any batch but 0 and 1, which tracing would take for constants.
_TRACED_BATCH: Final = 7

_Function = Callable[..., Sequence[Tensor]]


def check_compilable(kernel: Kernel) -> None:
    """Refuse a kernel that a pure function of input and parameters cannot stand for.

    Raises:
        NoPart: it keeps state of its own (buffers), or draws random numbers.
    """
    if next(kernel.buffers(), None) is not None:
        raise NoPart("stateful: it keeps running statistics")
    inputs = example(kernel, 64, device=torch.device("cpu"))
    before = torch.get_rng_state()
    with torch.no_grad():
        kernel(inputs)
    if not torch.equal(before, torch.get_rng_state()):
        raise NoPart("stochastic: it draws random numbers in training")


def compile_packages(kernel: Kernel, *, trains: bool, device: torch.device) -> list[bytes]:
    """Return the forward package of a kernel, and its backward package where it trains.

    Raises:
        NoPart: `check_compilable`.
        RuntimeError: torch cannot trace or compile it.
    """
    check_compilable(kernel)
    kernel = kernel.to(device)
    names = [name for name, _ in kernel.named_parameters()]
    parameters = [parameter.detach() for parameter in kernel.parameters()]
    inputs = example(kernel, _TRACED_BATCH, device=device)

    def forward(x_B: Tensor, *weights: Tensor) -> list[Tensor]:
        return [functional_call(kernel, dict(zip(names, weights, strict=True)), (x_B,))]

    def backward(grad_B: Tensor, x_B: Tensor, *weights: Tensor) -> Sequence[Tensor]:
        with torch.enable_grad():
            leaves = [each.detach().requires_grad_() for each in (x_B, *weights)]
            grads = torch.autograd.grad(forward(*leaves)[0], leaves, grad_B, allow_unused=True)
        # An input that a kernel does not look at has the gradient zero.
        return [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(grads, leaves, strict=True)]

    packages = [_package(forward, [inputs, *parameters], batched=1)]
    if trains:
        with torch.no_grad():
            # A package takes contiguous arguments; an output that is a permuted view would hand its strides on.
            grad_B = torch.ones_like(kernel(inputs), memory_format=torch.contiguous_format)
        packages.append(_package(backward, [grad_B, inputs, *parameters], batched=2))
    return packages


def _package(function: _Function, arguments: list[Tensor], *, batched: int) -> bytes:
    """Return an AOTInductor package of `function`; the first `batched` arguments have a batch in front."""
    traced = make_fx(function, tracing_mode="symbolic")(*arguments)
    batch = torch.export.Dim("batch", min=1, max=BATCH_MAX)
    shapes = [{0: batch} if index < batched else None for index in range(len(arguments))]
    with tempfile.TemporaryDirectory(prefix="aot-") as folder, torch.no_grad():
        exported = torch.export.export(_Flat(traced), (arguments,), dynamic_shapes=(shapes,), strict=False)
        path = Path(folder) / "part.pt2"
        # No pool of compiler processes beside this one, which is limited.
        with torch._inductor.config.patch(compile_threads=1):  # noqa: SLF001 - torch documents it under this name
            torch._inductor.aoti_compile_and_package(exported, package_path=str(path))  # noqa: SLF001 - likewise
        return path.read_bytes()


class _Flat(nn.Module):
    """What export wants: a module, of one list of tensors."""

    def __init__(self, traced: torch.fx.GraphModule) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, arguments: list[Tensor]) -> list[Tensor]:
        return list(self.traced(*arguments))
