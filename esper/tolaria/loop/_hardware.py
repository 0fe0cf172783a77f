"""What the machine has and is doing, as evidence in the state packet; it steers nothing."""

from __future__ import annotations

from typing import Final

import psutil
import torch

from esper.leyline import messages as ly

_GIB: Final = 1024.0**3


def hardware_context(device: torch.device) -> ly.HardwareContext:
    """Return memory and load of `device` now.

    Memory is the device's own for CUDA, the machine's otherwise; utilisation is the processors' since the
    last call (0 at the first). What nothing here senses (temperature, a GPU's utilisation) stays 0.
    """
    if device.type == "cuda":
        return _cuda_context(device)
    memory = psutil.virtual_memory()
    return ly.HardwareContext(
        device_type=device.type,
        device_id=str(device),
        total_memory_gb=memory.total / _GIB,
        available_memory_gb=memory.available / _GIB,
        utilization_percent=psutil.cpu_percent(interval=None),
    )


def _cuda_context(device: torch.device) -> ly.HardwareContext:
    available, total = torch.cuda.mem_get_info(device)
    major, minor = torch.cuda.get_device_capability(device)
    return ly.HardwareContext(
        device_type=device.type,
        device_id=f"cuda:{torch.cuda.current_device() if device.index is None else device.index}",
        total_memory_gb=total / _GIB,
        available_memory_gb=available / _GIB,
        compute_capability=10 * major + minor,
    )
