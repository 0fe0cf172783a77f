"""Tasks: honest splits, made offline, and clear words for what is wrong with a user's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from esper.core.errors import UsageError
from esper.core.numerics import data_digest
from esper.tolaria import Host, SlotSpec, Split, Task, check_task, load_task, task_names
from tests.tolaria.small import TASK, rings

SIZES = {"mnist1d": (3500, 500, 1000, 40), "digits": (1197, 200, 400, 64), "spirals": (1500, 300, 600, 2)}
FRESH = """
import json, socket, sys, warnings
warnings.simplefilter("error")
def refuse(*arguments, **keywords):
    raise OSError("the network was touched")
socket.socket.connect = refuse
socket.create_connection = refuse
socket.getaddrinfo = refuse
from esper.core.numerics import data_digest
from esper.tolaria import load_task
print(json.dumps({name: data_digest(load_task(name).arrays()) for name in ("digits", "mnist1d", "spirals")}))
"""


def test_the_shipped_tasks_are_listed() -> None:
    """Goal: a name for each shipped task. Method: ask."""
    assert task_names() == sorted([*SIZES, "charlm"])


@pytest.mark.parametrize("name", sorted(SIZES))
def test_the_three_parts_are_disjoint_and_complete(name: str) -> None:
    """Goal: nothing of the test part was trained on. Method: no two rows of the whole set coincide across parts."""
    task = load_task(name)
    sizes = SIZES[name]
    assert (len(task.train), len(task.validation), len(task.test)) == sizes[:3]
    rows = {
        part: {tuple(row) for row in split.inputs.tolist()} | {("size", len(split))}
        for part, split in task.parts().items()
    }
    assert not rows["train"] & rows["validation"]
    assert not rows["train"] & rows["test"]
    assert not rows["validation"] & rows["test"]
    for split in task.parts().values():
        assert split.inputs.shape[1:] == sizes[3:]
        assert split.inputs.dtype == torch.float32
        assert set(split.targets.tolist()) == set(range(task.classes))


def test_tasks_are_made_offline_without_a_warning_and_alike_in_every_process() -> None:
    """Goal: no download, no noise, one data digest. Method: a fresh process that refuses sockets and warnings."""
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True, timeout=180)
    assert done.stderr == ""
    assert json.loads(done.stdout) == {name: data_digest(load_task(name).arrays()) for name in SIZES}


def test_making_data_leaves_the_global_streams_alone() -> None:
    """Goal: a task does not reseed its caller. Method: numpy's stream goes on as if nothing had been made."""
    from esper.tolaria.tasks._mnist1d import mnist1d

    np.random.seed(5)
    expected = np.random.rand(3).tolist()
    np.random.seed(5)
    mnist1d()
    assert np.random.rand(3).tolist() == expected


@pytest.mark.parametrize("name", sorted(SIZES))
def test_the_shipped_hosts_have_a_branch_slot_past_the_bottleneck(name: str) -> None:
    """Goal: hosts that can be grown, and names that are known early. Method: make each; a forward through it."""
    task = load_task(name)
    for host_name in task.hosts:
        check_task(name, host_name)
        host = task.host(host_name)
        assert [(spec.name, spec.placement) for spec in host.slots] == [
            ("hidden" if host_name == "mlp" else "body", "branch")
        ]
        assert host.module(task.train.inputs[:5]).shape == (5, task.classes)
    with pytest.raises(UsageError, match=rf"has no host 'vast': it has {', '.join(sorted(task.hosts))}\. Name one"):
        check_task(name, "vast")


@pytest.mark.parametrize(("name", "package"), [("mnist1d", "mnist1d.data"), ("digits", "sklearn.datasets")])
def test_a_missing_data_package_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a light installation says what to add. Method: hide the package."""
    from esper.tolaria.tasks._digits import digits
    from esper.tolaria.tasks._mnist1d import mnist1d

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"the task '{name}' cannot be made: .*esper-grow\[tasks\]"):
        {"mnist1d": mnist1d, "digits": digits}[name]()


def test_a_users_own_task_is_loaded() -> None:
    """Goal: package.module:factory works. Method: load the task that stands beside this test."""
    assert load_task(TASK).name == "rings"
    check_task(TASK, "mlp")
    with pytest.raises(UsageError, match="it has breaking, deaf, doomed, exploding, failing"):
        check_task(TASK, "huge")


def test_a_module_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a script of the user's needs no installation. Method: a module in a folder that is made current."""
    (tmp_path / "my_own_task.py").write_text("from tests.tolaria.small import rings as factory\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert load_task("my_own_task:factory").name == "rings"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mnist2d", r"there is no task 'mnist2d': the shipped tasks are charlm, digits, mnist1d, spirals\. Name one"),
        (":factory", "there is no task"),
        ("tests.tolaria.small:", "there is no task"),
        ("no_such_package.tasks:make", "importing no_such_package.tasks failed with ModuleNotFoundError: No module"),
        ("no_such_package.tasks:make", "looks in its working directory, .*: start `esper serve` in the module's fold"),
        ("tests.tolaria.small:missing", "the module tests.tolaria.small has no 'missing'"),
        ("tests.tolaria.small:NOT_CALLABLE", "the named object is a str, not a function"),
        ("tests.tolaria.small:not_a_task", "its factory returned a int"),
        ("tests.tolaria.small:failing", "its factory failed with ZeroDivisionError: in the user's factory"),
    ],
)
def test_a_task_that_cannot_be_had_is_named_with_the_cause(name: str, words: str) -> None:
    """Goal: one clear message for each mistake. Method: make each mistake."""
    with pytest.raises(UsageError, match=words):
        load_task(name)


def test_a_module_that_leaves_the_process_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a script that exits on import stops no worker. Method: import one."""
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match="failed with SystemExit: 3"):
        load_task("leaving:factory")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: Split(s.inputs[:-1], s.targets), "inputs for"),
        (lambda s: Split(s.inputs[:0], s.targets[:0]), "is empty"),
        (lambda s: Split(s.inputs, s.targets.float()), "not class indices"),
        (lambda s: Split(s.inputs, s.targets + 1), "outside 0 .. 1"),
        (lambda s: Split(s.inputs * float("nan"), s.targets), "not finite"),
    ],
    ids=["lengths", "empty", "dtype", "classes", "nan"],
)
def test_unusable_data_are_refused(change: Callable[[Split], Split], words: str) -> None:
    """Goal: bad data are caught before training. Method: spoil one part in each way."""
    task = rings()
    with pytest.raises(UsageError, match=f"its validation part .*{words}"):
        replace(task, validation=change(task.validation))


def test_a_task_without_hosts_is_refused() -> None:
    """Goal: a task can be trained. Method: take its hosts away."""
    with pytest.raises(UsageError, match="it has no host"):
        replace(rings(), hosts={})


def test_a_slot_must_name_a_module() -> None:
    """Goal: a misspelt slot is caught. Method: name a module that the host lacks."""
    with pytest.raises(UsageError, match="no module 'trunk' for a slot: its modules are 0, 1"):
        Host(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), (SlotSpec("trunk"),))
    assert isinstance(rings(), Task)
