"""MNIST-1D, generated on this machine (Greydanus and Kobak, "Scaling Down Deep Learning with MNIST-1D", 2020)."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from esper.core.errors import UsageError
from esper.tolaria.tasks._cnn import cnn1d_host
from esper.tolaria.tasks._mlp import mlp_host
from esper.tolaria.tasks._tasks import Split, Task

_VALIDATION_SAMPLES = 500


def mnist1d() -> Task:
    """Return MNIST-1D: inputs [N, 40] float32, 10 classes, 3500 train, 500 validation, 1000 test.

    Train and test are the standard split (4000/1000 of 5000, generator seed 42); the last 500 of the
    train part, which the generator shuffled, are held out as validation. Needs no network.

    Raises:
        UsageError: the package `mnist1d` is not installed.
    """
    arrays = _generate()
    inputs = torch.from_numpy(arrays["x"].astype(np.float32))
    targets = torch.from_numpy(arrays["y"].astype(np.int64))
    cut = len(targets) - _VALIDATION_SAMPLES
    return Task(
        name="mnist1d",
        train=Split(inputs[:cut].clone(), targets[:cut].clone()),
        validation=Split(inputs[cut:].clone(), targets[cut:].clone()),
        test=Split(
            torch.from_numpy(arrays["x_test"].astype(np.float32)), torch.from_numpy(arrays["y_test"].astype(np.int64))
        ),
        classes=10,
        hosts={
            "mlp": mlp_host(inputs=inputs.shape[1], hidden=8, classes=10),
            "cnn": cnn1d_host(length=inputs.shape[1], channels=4, classes=10, batch_norm=False),
            "cnn_bn": cnn1d_host(length=inputs.shape[1], channels=4, classes=10, batch_norm=True),
        },
        sized={
            "mlp": lambda width: mlp_host(inputs=inputs.shape[1], hidden=width, classes=10),
            "cnn": lambda width: cnn1d_host(length=inputs.shape[1], channels=width, classes=10, batch_norm=False),
        },
        epochs=40,
        distributions=("mnist1d",),
    )


def _generate() -> dict[str, NDArray[Any]]:
    with warnings.catch_warnings():
        # The package imports matplotlib and requests, whose own deprecations are not ours to show.
        warnings.simplefilter("ignore")
        try:
            from mnist1d.data import get_dataset_args, make_dataset
        except ImportError as error:
            raise UsageError(
                "the task 'mnist1d' cannot be made",
                cause=str(error),
                next_step="install the extra: pip install 'esper-grow[tasks]'",
            ) from error
    with _global_streams_kept():
        made: dict[str, NDArray[Any]] = make_dataset(get_dataset_args())
    return made


@contextmanager
def _global_streams_kept() -> Iterator[None]:
    """Put back the global random streams, which the generator seeds for itself."""
    before_random, before_numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(before_random)
        np.random.set_state(before_numpy)
