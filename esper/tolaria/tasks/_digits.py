"""Handwritten digits of 8 x 8 pixels, inside scikit-learn (Alpaydin and Kaynak, UCI, 1998)."""

from __future__ import annotations

import numpy as np
import torch

from esper.core.errors import UsageError
from esper.core.rng import derive_seed
from esper.tolaria.tasks._cnn import cnn2d_host
from esper.tolaria.tasks._mlp import mlp_host
from esper.tolaria.tasks._tasks import Split, Task

_TEST_SAMPLES = 400
_VALIDATION_SAMPLES = 200
_SIDE = 8
#: Pixels count ink in 0 .. 16.
_INK_MAX = 16.0


def digits() -> Task:
    """Return digits: inputs [N, 64] float32 in 0..1, 10 classes, 1197 train, 200 validation, 400 test.

    The three parts are cut from one fixed permutation, the same for every run.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError(
            "the task 'digits' cannot be made",
            cause=str(error),
            next_step="install the extra: pip install 'esper-grow[tasks]'",
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    inputs = torch.from_numpy(pixels.astype(np.float32)) / _INK_MAX
    targets = torch.from_numpy(labels.astype(np.int64))
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(derive_seed(0, "digits", "split")))
    test, validation, train = torch.split(
        order, [_TEST_SAMPLES, _VALIDATION_SAMPLES, len(order) - _TEST_SAMPLES - _VALIDATION_SAMPLES]
    )
    return Task(
        name="digits",
        train=Split(inputs[train], targets[train]),
        validation=Split(inputs[validation], targets[validation]),
        test=Split(inputs[test], targets[test]),
        classes=10,
        hosts={
            "mlp": mlp_host(inputs=inputs.shape[1], hidden=4, classes=10),
            "cnn": cnn2d_host(side=_SIDE, channels=2, classes=10, batch_norm=False),
            "cnn_bn": cnn2d_host(side=_SIDE, channels=2, classes=10, batch_norm=True),
        },
        sized={
            "mlp": lambda width: mlp_host(inputs=inputs.shape[1], hidden=width, classes=10),
            "cnn": lambda width: cnn2d_host(side=_SIDE, channels=width, classes=10, batch_norm=False),
        },
        epochs=40,
        distributions=("scikit-learn",),
    )
