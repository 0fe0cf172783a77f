"""Opening a compiled part: a kernel whose forward, and backward, are machine code made ahead of time.

Packages are made by AOTInductor for any batch size and hold no weights: parameters are arguments. So nothing is
traced, guarded or recompiled where a kernel is grafted, and what trains a kernel trains the same tensors as without.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from esper.core.kernel._module import TORCH_DTYPES, Kernel
from esper.core.kernel._parts import check_part, unpack_part
from esper.leyline import messages as ly

_logger = logging.getLogger("esper.kernel")

#: Batches that packages are made for.
BATCH_MAX: Final = 1 << 16


def platform_of(device: torch.device) -> ly.Platform:
    """Return torch's version, the device, its instruction set or compute capability, and the threads in use here."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name, isa = f"cuda: {torch.cuda.get_device_name(device)}", f"sm_{major}{minor}"
    else:
        name, isa = device.type, torch.backends.cpu.get_cpu_capability()
    return ly.Platform(torch_version=torch.__version__, device=name, isa=isa, threads=torch.get_num_threads())


class CompiledKernel(Kernel):
    """A kernel that computes by a compiled part where it can and eagerly where it cannot; parameters are the kernel's.

    Eager are: a batch of 0 or above 65,536, another device than that of the part, and a backward where the part
    has none. A part that fails is not used again; `reason` says why, and the call is answered eagerly.
    """

    def __init__(self, kernel: Kernel, packages: Sequence[Package], device: torch.device) -> None:
        super().__init__(kernel.plan, kernel.body, kernel.end)
        self._packages = tuple(packages)
        self._device_type = device.type
        # Looked up at every call, so that a parameter that is replaced is seen; walking the modules costs more.
        self._owners = tuple((module._parameters, name) for module in self.modules() for name in module._parameters)  # noqa: SLF001 - see above
        #: Why the part is not used any more; "" while it is.
        self.reason = ""

    def forward(self, x_B: Tensor) -> Tensor:
        parameters = [each for owner, name in self._owners if (each := owner[name]) is not None]
        trains = torch.is_grad_enabled() and (x_B.requires_grad or any(each.requires_grad for each in parameters))
        if self.reason or not self._fits(x_B) or (trains and len(self._packages) < 2):
            return super().forward(x_B)
        try:
            if trains:
                out: Tensor = _Train.apply(self, x_B, *parameters)
                return out
            return self.run(0, x_B, *parameters)[0]
        # What a package raises is a RuntimeError of torch; the kernel answers all the same.
        except RuntimeError as error:
            self.reason = f"{type(error).__name__}: {error}"[:500]
            _logger.warning("a compiled part failed, its kernel goes on eagerly: %s", self.reason)
            return super().forward(x_B)

    def run(self, which: int, *arguments: Tensor) -> list[Tensor]:
        """Run a package; it takes contiguous arguments, as parameters always are."""
        return self._packages[which].run([each if each.is_contiguous() else each.contiguous() for each in arguments])

    def _fits(self, x_B: Tensor) -> bool:
        plan = self.plan
        return (
            tuple(x_B.shape[1:]) == plan.in_shape
            and 0 < x_B.shape[0] <= BATCH_MAX
            and x_B.device.type == self._device_type
            and x_B.dtype == TORCH_DTYPES[plan.dtype]
        )


class Package:
    """One AOTInductor package, loaded."""

    def __init__(self, content: bytes, device: torch.device) -> None:
        # The loader reads a file and unpacks it into a folder of its own; a private one may go as soon as it has.
        with tempfile.TemporaryDirectory(prefix="esper-part-") as folder:
            path = Path(folder) / "part.pt2"
            path.write_bytes(content)
            index = -1 if device.index is None else device.index
            # `aoti_load_package` would start a compiler merely to phrase a warning; this is the loader beneath it.
            self._loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, index)  # noqa: SLF001 - see above

    def run(self, arguments: list[Tensor]) -> list[Tensor]:
        """Return what the package computes of tensors that it may not change."""
        return list(self._loader.boxed_run(arguments))


class _Train(torch.autograd.Function):
    """Forward by the first package, backward by the second, which computes the forward again."""

    @staticmethod
    def forward(ctx: Any, compiled: CompiledKernel, x_B: Tensor, *parameters: Tensor) -> Tensor:  # noqa: ANN401 - torch's own
        ctx.compiled = compiled
        ctx.save_for_backward(x_B, *parameters)
        return compiled.run(0, x_B, *parameters)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's own
        return (None, *ctx.compiled.run(1, grad_B, *ctx.saved_tensors))


def open_part(
    kernel: Kernel,
    record: ly.KernelPartCompiled,
    content: bytes,
    *,
    artifact_ref: str,
    home_id: str,
    device: torch.device | None = None,
) -> CompiledKernel:
    """Return `kernel` with its compiled part: the same parameters, the same names, computed by machine code.

    `record` must come from a verified record of the forge's topic, `artifact_ref` names what `kernel` was loaded
    from. No compiler and no other process is started.

    Raises:
        ArtifactRefused: `check_part`; nothing was opened.
        RuntimeError: torch cannot load it.
    """
    device = device or torch.device("cpu")
    check_part(record, content, artifact_ref=artifact_ref, home_id=home_id, platform=platform_of(device))
    return open_packages(kernel, unpack_part(content, record.kind), device=device)


def open_packages(kernel: Kernel, packages: Sequence[bytes], *, device: torch.device) -> CompiledKernel:
    """Return `kernel` computing by packages that this process made itself or has checked."""
    return CompiledKernel(kernel, [Package(each, device) for each in packages], device)
