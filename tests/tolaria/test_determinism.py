"""The promise: one request gives the same digests epoch by epoch, in any process, whatever else the machine does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from esper.leyline import messages as ly
from esper.tolaria import MemoryJournal, TolariaTrainer, prepared
from tests.tolaria.small import TASK, NudgingController, request, scripted

#: Keeps a core busy, and its caches as well.
BURN = "import random\nprint('burning', flush=True)\nwhile True: sorted(random.random() for _ in range(50000))"
IN_A_FRESH_PROCESS = """
import json, torch
torch.set_num_threads(2)
torch.manual_seed(99)
from tests.tolaria.test_determinism import TASK, digests
print(json.dumps(digests(TASK)))
"""


def digests(task: str = "mnist1d", *, seed: int = 7) -> list[str]:
    """Train 4 epochs with a seed commanded at epoch 2 and return each epoch's digest."""
    journal = MemoryJournal(policy=scripted(None, ly.COMMAND_SEED))
    asked = request(task=task, epochs=4, seed=seed)
    with prepared(asked) as setup:
        TolariaTrainer(setup, NudgingController(setup), journal).run()
    return [packet.weights_digest for packet in journal.packets]


@contextmanager
def machine_under_load(processes: int) -> Iterator[None]:
    """Keep every core busy inside the block."""
    burning = [
        subprocess.Popen([sys.executable, "-c", BURN], stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    try:
        for process in burning:
            assert process.stdout is not None
            assert process.stdout.readline() == "burning\n"
        yield
    finally:
        for process in burning:
            process.kill()
            process.communicate()


def test_digests_repeat_while_other_processes_load_the_machine() -> None:
    """Goal: load changes time, not numbers. Method: once in peace, three times beside busy processes."""
    expected = digests()
    assert len(set(expected)) == 4
    with machine_under_load(2):
        assert [digests() for _ in range(3)] == [expected] * 3


def test_digests_repeat_in_another_process() -> None:
    """Goal: nothing of a process's past enters. Method: a host with dropout, other threads and another stream."""
    done = subprocess.run([sys.executable, "-c", IN_A_FRESH_PROCESS], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == digests(TASK)


def test_another_seed_gives_other_digests() -> None:
    """Goal: the seed decides. Method: no epoch of another seed coincides."""
    assert not set(digests(seed=8)) & set(digests(seed=7))
