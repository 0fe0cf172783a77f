"""Shipped tasks with fewer samples, so that every kind of slot is grown in seconds."""

from __future__ import annotations

from dataclasses import replace

from esper.tolaria import Split, Task, load_task


def spirals() -> Task:
    """Return spirals with a slot of layout "vector" on host mlp."""
    return _cut("spirals", 480)


def lines() -> Task:
    """Return MNIST-1D with a slot of layout "map1d" on hosts cnn and cnn_bn."""
    return _cut("mnist1d", 640)


def squares() -> Task:
    """Return digits with a slot of layout "map2d" on hosts cnn and cnn_bn."""
    return _cut("digits", 640)


def characters() -> Task:
    """Return charlm with two slots of layout "sequence" on host transformer."""
    return _cut("charlm", 512)


def _cut(name: str, samples: int) -> Task:
    task = load_task(name)
    few = slice(samples // 4)
    return replace(
        task,
        train=Split(task.train.inputs[:samples], task.train.targets[:samples]),
        validation=Split(task.validation.inputs[few], task.validation.targets[few]),
        test=Split(task.test.inputs[few], task.test.targets[few]),
    )
