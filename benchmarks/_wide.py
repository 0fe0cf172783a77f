"""The shipped tasks with the MLP host in every width: what growth is to be compared with is a size, not a name."""

from __future__ import annotations

from dataclasses import replace

from esper.tolaria import Task, load_task
from esper.tolaria.tasks._mlp import mlp_host

_WIDTHS = range(1, 1025)


def _per_unit(task: Task) -> int:
    """Return the parameters that one hidden unit adds: its weights and bias, and its weights in the head."""
    return int(task.train.inputs.shape[1]) + 1 + task.classes


def wide_host(name: str, parameters: int) -> str:
    """Return the host whose number of parameters comes nearest to `parameters`."""
    task = load_task(name)
    return f"mlp_{round((parameters - task.classes) / _per_unit(task))}"


def _widened(name: str) -> Task:
    task = load_task(name)
    inputs = int(task.train.inputs.shape[1])
    hosts = {f"mlp_{width}": mlp_host(inputs=inputs, hidden=width, classes=task.classes) for width in _WIDTHS}
    return replace(task, name=f"{name}-wide", hosts=hosts)


def mnist1d() -> Task:
    """Return MNIST-1D."""
    return _widened("mnist1d")


def digits() -> Task:
    """Return the digits."""
    return _widened("digits")
