"""A kernel's first output: exactly zero, whatever its body yields, or the kernel is not made.

The end of every kernel begins at zero, but zero times an infinity is NaN: a body that overflows would spoil its host
at the first step. A spec does not show that; one small forward does.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from esper.core.kernel import Kernel
from esper.core.rng import derive_seed

#: One sample as normalised hosts have them, and one far above what a host that still trains has.
_SCALES: Final = (1.0, 1e3)


def birth_fault(kernel: Kernel) -> str:
    """Return what is wrong with a fresh kernel's first output; "" when every number of it is exactly zero.

    Two seeded samples on the CPU, in training and in evaluation; buffers change as training changes them, so the
    kernel is to be thrown away. The global generator stays where it was.
    """
    generator = torch.Generator().manual_seed(derive_seed(0, "birth"))
    dtype = next(kernel.parameters()).dtype
    inputs = torch.stack(
        [scale * torch.randn(kernel.plan.in_shape, generator=generator, dtype=dtype) for scale in _SCALES]
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(derive_seed(0, "birth-draws"))
        for training in (True, False):
            if fault := _fault(kernel.train(training)(inputs)):
                return f"its first output {'in training' if training else 'in evaluation'} {fault}"
    return ""


def _fault(output: Tensor) -> str:
    wrong = output[output != 0]  # NaN is unequal to zero, too
    if not len(wrong):
        return ""
    return f"is not exactly zero but in {len(wrong)} of {output.numel()} numbers another, {wrong[0].item():g} the first"
