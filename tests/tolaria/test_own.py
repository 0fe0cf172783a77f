"""Tasks and hosts of other packages: offered by entry point, checked, and counted among what a run depends on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

from esper.core.errors import UsageError
from esper.core.plugins import Offers, offers
from esper.tolaria import Host, SlotSpec, Task, check_slots, check_task, load_task, prepared, task_names, with_host
from tests.tolaria.small import TASK, request, rings

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"
SCRIPT = """
import json
from esper.core.numerics import dependencies_digest
from esper.leyline import messages as ly
from esper.tamiyo import known_policies, make_policy
from esper.tolaria import MemoryJournal, StaticController, TolariaTrainer, check_task, prepared, re_execute, task_names

found = {"tasks": task_names(), "policies": known_policies(), "policy": make_policy("still").name, "runs": {}}
for task, host in (("signs", "tiny"), ("signs", "wide"), ("spirals", "wide"), ("spirals", "mlp")):
    check_task(task, host)
    request = ly.TrainingRunRequested(run_id="own", task=task, host=host, epochs=2, seed=3, re_executable=True)
    journal = MemoryJournal(policy=lambda _: None)
    with prepared(request) as setup:
        TolariaTrainer(setup, StaticController(), journal).run()
        digest = dependencies_digest(("torch", *setup.task.distributions))
    again = re_execute(request, journal.outcomes, journal.packets, lambda _: StaticController())
    found["runs"][f"{task} {host}"] = [list(setup.task.distributions), digest, again.epochs, again.equal]
print(json.dumps(found))
"""


def installed(folder: Path, *, version: str) -> dict[str, object]:
    """Install the package in a folder, and return what a fresh process makes of it."""
    folder.mkdir()
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (folder / "acme_grow.py").write_text(code)
    metadata = folder / f"acme_grow-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-grow\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(
        "[esper.tasks]\nsigns = acme_grow:signs\nmnist1d = acme_grow:signs\n"
        "[esper.hosts]\nwide = acme_grow:wide\n[esper.policies]\nstill = acme_grow:Still\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={"PYTHONPATH": str(folder), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "esper.tasks: entry point 'mnist1d = acme_grow:signs' is not offered: the name mnist1d is" in done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_an_installed_package_brings_tasks_hosts_and_policies(tmp_path: Path) -> None:
    """Goal: an entry point is all it takes, and a run names its package's version. Method: docs/plugins.md as a
    package of two versions, each on the path of a fresh process; train, re-execute, compare what the runs depend on.
    """
    first, second = installed(tmp_path / "one", version="1.2"), installed(tmp_path / "two", version="1.3")
    assert first["tasks"] == ["charlm", "digits", "mnist1d", "signs", "spirals"]
    assert first["policies"] == ["fixed", "heuristic", "learned", "noop", "random", "still"]
    assert first["policy"] == "still"
    runs, others = first["runs"], second["runs"]
    assert isinstance(runs, dict)
    assert isinstance(others, dict)
    assert {name: run[0] for name, run in runs.items()} == {
        "signs tiny": ["acme-grow"],
        "signs wide": ["acme-grow"],
        "spirals wide": ["acme-grow"],
        "spirals mlp": [],
    }
    assert all(run[2:] == [2, True] for run in (*runs.values(), *others.values()))
    assert {name for name, run in runs.items() if run[1] != others[name][1]} == set(runs) - {"spirals mlp"}


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a module that the entry points `thing = acme_grow_test:thing` of both groups name, and offer them."""
    module = ModuleType("acme_grow_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def found(group: str, reserved: frozenset[str]) -> Offers:
        return offers([EntryPoint("thing", "acme_grow_test:thing", group)], reserved)

    monkeypatch.setattr("esper.tolaria.tasks._registry.installed", found)
    return module


def _fails(*_arguments: object) -> Task:
    raise ZeroDivisionError("a bug of the plugin")


_UNUSABLE: Mapping[str, tuple[object, str]] = {
    "number": (7, "it names a int, not a function"),
    "fails": (_fails, "its function failed with ZeroDivisionError: a bug of the plugin"),
    "nothing": (lambda *_: None, "its function returned a NoneType, not an esper.tolaria."),
}


@pytest.mark.parametrize("name", [*_UNUSABLE, "misnamed"])
def test_a_broken_task_is_named_with_its_package_and_cause(plugin: ModuleType, name: str) -> None:
    """Goal: one clear error, before a run. Method: each mistake; the shipped tasks go on working beside it."""
    plugin.thing, words = {**_UNUSABLE, "misnamed": (rings, "the task that it makes is called 'rings'")}[name]
    assert task_names() == ["charlm", "digits", "mnist1d", "spirals", "thing"]
    with pytest.raises(UsageError, match=f"the task 'thing' of an unnamed package cannot be used: .*{words}"):
        check_task("thing", "mlp")
    assert load_task("spirals").name == "spirals"
    with pytest.raises(UsageError, match="the shipped tasks are charlm, digits, mnist1d, spirals; installed packages"):
        load_task("thin")


@pytest.mark.parametrize("name", _UNUSABLE)
def test_a_broken_host_is_named_with_its_package_and_cause(plugin: ModuleType, name: str) -> None:
    """Goal: one clear error, when the host is made. Method: each mistake; the task's own hosts go on working."""
    plugin.thing, words = _UNUSABLE[name]
    with (
        pytest.raises(UsageError, match=f"the host 'thing' of an unnamed package cannot be used: .*{words}"),
        prepared(request(host="thing")),
    ):
        pass
    with prepared(request()) as setup:
        assert setup.task.distributions == ()
    with pytest.raises(UsageError, match=r"it has breaking, deaf, doomed, exploding, .*raising, thing\. Name"):
        check_task(TASK, "things")


def test_a_host_of_a_package_fits_the_task_that_it_is_asked_for(plugin: ModuleType) -> None:
    """Goal: one function serves any task. Method: a host made from the task's shapes; its slots can be asked for."""

    def thing(task: Task) -> Host:
        linear = nn.Linear(task.train.inputs.shape[1], task.classes)
        return Host(nn.Sequential(linear, nn.Identity()), (SlotSpec("0"),))

    plugin.thing = thing
    for task in (TASK, "spirals"):
        check_task(task, "thing")
        check_slots(task, "thing", ["0"])
        with pytest.raises(UsageError, match="no module '7' for a slot"):
            check_slots(task, "thing", ["7"])
        with prepared(request(task=task, host="thing")) as setup:
            assert setup.multiply_adds_per_sample == 2 * setup.task.classes
    assert with_host(rings(), "mlp").hosts.keys() == rings().hosts.keys()
    with (
        pytest.raises(UsageError, match="the host 'thing' does not take the samples of 'charlm'"),
        prepared(request(task="charlm", host="thing")),
    ):
        pass
