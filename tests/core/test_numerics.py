"""What repeats a computation, and what names the machine that did it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

from esper.core import numerics
from esper.core.errors import UsageError
from esper.core.numerics import (
    code_version,
    data_digest,
    dependencies_digest,
    deterministic,
    installed_closure,
    numerics_fingerprint,
)


def test_the_set_up_is_made_and_undone() -> None:
    """Goal: deterministic inside, untouched outside. Method: look at torch's switches and stream around it."""
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state())
    with deterministic(seed=3):
        inside = torch.rand(4)
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
        fingerprint = numerics_fingerprint(torch.device("cpu"))
        assert (fingerprint.threads, fingerprint.deterministic_algorithms) == (1, True)
    after = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state())
    assert after[:2] == before[:2]
    assert torch.equal(after[2], before[2])
    with deterministic(seed=3):
        assert torch.equal(torch.rand(4), inside)
    with deterministic(seed=4):
        assert not torch.equal(torch.rand(4), inside)


def test_the_set_up_is_undone_after_an_error() -> None:
    """Goal: a failed run leaves no trace on the next. Method: raise inside, look outside."""
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())

    def fail() -> None:
        with deterministic(seed=0, threads=2):
            raise KeyError("inside")

    with pytest.raises(KeyError):
        fail()
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_no_threads_are_refused() -> None:
    """Goal: a clear message for a senseless number. Method: ask for none."""
    with pytest.raises(UsageError, match="0 threads"), deterministic(seed=0, threads=0):
        pass


def test_the_fingerprint_names_what_decides_the_bits() -> None:
    """Goal: every field is filled in from the real machine. Method: compare with torch's own word."""
    fingerprint = numerics_fingerprint(torch.device("cpu"), world_size=2)
    assert fingerprint.torch == torch.__version__
    assert fingerprint.instruction_set == torch.backends.cpu.get_cpu_capability()
    assert fingerprint.threads == torch.get_num_threads()
    assert fingerprint.device.startswith("cpu: ")
    assert len(fingerprint.device) > len("cpu: ")
    assert fingerprint.world_size == 2
    assert fingerprint.blas != "unknown"


def test_the_code_version_names_the_commit_of_a_checkout() -> None:
    """Goal: the log says which code ran. Method: compare with git's own answer, where this is a checkout."""
    root = Path(__file__).parents[2]
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    version = code_version()
    if head.returncode == 0:
        assert re.fullmatch(rf"[0-9][^+]*\+g{head.stdout[:12]}(\.dirty)?", version)
    else:
        assert re.fullmatch(r"[0-9][^+]*", version)


def test_a_surrounding_repository_is_not_taken_for_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: installed in another project's environment, no commit is claimed. Method: a git tree around a copy."""
    package = tmp_path / "project" / ".venv" / "site-packages"
    core = package / "esper" / "core"
    core.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(tmp_path / "project")], check=True)
    monkeypatch.setattr(numerics, "__file__", str(core / "numerics.py"))
    assert "+g" not in code_version.__wrapped__()


def test_without_git_the_version_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: no git, no error. Method: hide the program."""
    monkeypatch.setenv("PATH", "")
    assert "+g" not in code_version.__wrapped__()


def test_a_git_that_does_not_answer_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: the version never fails a run. Method: a git that cannot be started."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("git")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert "+g" not in code_version.__wrapped__()


def test_where_the_system_does_not_tell_its_processor_python_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a fingerprint on every system. Method: hide /proc."""

    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError("/proc/cpuinfo")

    monkeypatch.setattr(Path, "open", refuse)
    assert numerics._processor.__wrapped__()


def test_dependencies_are_named_with_all_they_need() -> None:
    """Goal: a change of any library below shows. Method: numpy comes with mnist1d; extras and the absent do not."""
    closure = installed_closure(["mnist1d", "no-such-distribution"])
    names = [line.split("==")[0] for line in closure]
    assert "mnist1d" in names
    assert "numpy" in names
    assert "no-such-distribution" not in names
    assert "pytest" not in names
    assert closure == sorted(closure)
    assert dependencies_digest(("torch",)) != dependencies_digest(("torch", "mnist1d"))
    assert dependencies_digest(("torch", "numpy")) == dependencies_digest(("numpy", "torch"))


def test_the_data_digest_covers_names_and_values() -> None:
    """Goal: other data, other digest. Method: change one value, then one name."""
    arrays = {"train.inputs": torch.ones(2, 2)}
    changed = {"train.inputs": torch.tensor([[1.0, 1.0], [1.0, 2.0]])}
    assert data_digest(arrays) == data_digest({"train.inputs": torch.ones(2, 2)})
    assert len({data_digest(arrays), data_digest(changed), data_digest({"test.inputs": torch.ones(2, 2)})}) == 3
