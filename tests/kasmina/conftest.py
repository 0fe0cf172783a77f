"""Torch on one thread: equal bits do not depend on how many cores the machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

#: Without the device there is nothing to test: absent, then, and not skipped.
collect_ignore = [] if torch.cuda.is_available() else ["test_cuda_memory.py"]


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Run these tests, and what they share, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def own_random_stream() -> Iterator[None]:
    """Give each test torch's random stream from 0, and set it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
