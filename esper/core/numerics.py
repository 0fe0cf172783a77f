"""What a run's arithmetic depends on besides its request, and the set-up that makes it repeatable."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from esper.core.digest import state_digest
from esper.core.errors import UsageError
from esper.core.ids import Digest, sha256_hex
from esper.core.rng import derive_seed
from esper.leyline import messages as ly

#: Distributions whose code computes what a run computes; a task adds its own.
TRAINING_DISTRIBUTIONS: Final = ("numpy", "safetensors", "torch")

#: cuBLAS is repeatable only with a fixed workspace (PyTorch notes on reproducibility).
_CUBLAS_WORKSPACE: Final = ":4096:8"
_GIT_SECONDS_MAX: Final = 10.0
_REQUIREMENT_NAME: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*")
#: A requirement of an extra ("; extra == 'test'") is a wish of its developers, not a need of its users.
_EXTRA_MARKER: Final = re.compile(r";.*\bextra\b")


@contextmanager
def deterministic(*, seed: int, threads: int = 1) -> Iterator[None]:
    """Make torch repeatable inside the block: equal inputs give equal bits, whatever else the machine does.

    One thread by default, because the order of a threaded reduction depends on the number of threads.
    Torch's global random stream starts from `seed`; what was set before is set again at the end.
    Holds for one build of torch on one kind of processor (see `numerics_fingerprint`).

    Raises:
        UsageError: `threads` is below 1.
    """
    if threads < 1:
        raise UsageError(f"{threads} threads cannot compute", next_step="give at least 1")
    before_threads = torch.get_num_threads()
    before_algorithms = torch.are_deterministic_algorithms_enabled()
    before_benchmark = torch.backends.cudnn.benchmark
    before_precision = torch.get_float32_matmul_precision()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _CUBLAS_WORKSPACE)
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(mode=True)
            torch.backends.cudnn.benchmark = False
            torch.set_float32_matmul_precision("highest")
            torch.manual_seed(derive_seed(seed, "torch"))
            yield
        finally:
            torch.set_num_threads(before_threads)
            torch.use_deterministic_algorithms(mode=before_algorithms)
            torch.backends.cudnn.benchmark = before_benchmark
            torch.set_float32_matmul_precision(before_precision)


def numerics_fingerprint(device: torch.device, *, world_size: int = 1, collective: str = "") -> ly.NumericsFingerprint:
    """Return what decides the bits of a computation on `device` in this process as it is set up now.

    Two runs of one request under equal fingerprints give equal digests; under different ones they may not.
    """
    return ly.NumericsFingerprint(
        torch=torch.__version__,
        python=platform.python_version(),
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        device=_device_name(device),
        world_size=world_size,
        collective=collective,
        deterministic_algorithms=torch.are_deterministic_algorithms_enabled(),
        blas=_blas(),
    )


@functools.cache
def code_version() -> str:
    """Return esper's version; in a checkout with "+g<commit>", and ".dirty" where tracked files differ from it.

    A commit is named only when the git work tree is esper's own, not one that merely contains the environment.
    """
    version = _version("esper-grow") or "unknown"
    package_parent = Path(__file__).resolve().parents[2]
    commit = _git(package_parent, "rev-parse", "--show-toplevel", "HEAD").split("\n")
    if len(commit) != 2 or Path(commit[0]).resolve() != package_parent:
        return version
    changed = _git(package_parent, "status", "--porcelain", "--untracked-files=no")
    return f"{version}+g{commit[1][:12]}{'.dirty' if changed else ''}"


@functools.cache
def dependencies_digest(distributions: tuple[str, ...] = TRAINING_DISTRIBUTIONS) -> Digest:
    """Return the SHA-256 over "name==version" lines of `distributions` and all they require, as installed here.

    Names are normalised (PEP 503) and sorted; what is not installed has no line.
    """
    return sha256_hex("".join(f"{line}\n" for line in installed_closure(distributions)).encode())


def installed_closure(distributions: Iterable[str]) -> list[str]:
    """Return "name==version" of the installed distributions reachable from `distributions`, sorted."""
    found: dict[str, str] = {}
    waiting = [_normalised(name) for name in distributions]
    seen = set(waiting)
    while waiting:  # ends: every name is queued at most once
        name = waiting.pop()
        version = _version(name)
        if version is None:
            continue
        found[name] = version
        lines = importlib.metadata.requires(name) or ()
        required = {_normalised(_requirement_name(line)) for line in lines if not _EXTRA_MARKER.search(line)}
        waiting.extend(required - seen)
        seen |= required
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def data_digest(arrays: Mapping[str, Tensor]) -> Digest:
    """Return the state digest of a task's arrays by name ("train.inputs", ...)."""
    return state_digest(arrays)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return f"cuda: {torch.cuda.get_device_name(device)} sm_{capability[0]}{capability[1]}"
    return f"{device.type}: {_processor()}"


@functools.cache
def _processor() -> str:
    """Return the processor's model: its BLAS picks kernels by cache sizes and vendor too, not by ISA alone."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
            return next(names, platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


@functools.cache
def _blas() -> str:
    """Return the library behind matrix products and its version, from torch's own build report."""
    report = torch.__config__.show()
    name = re.search(r"BLAS_INFO=(\w+)", report)
    versions = re.findall(r"(?:Math Kernel Library Version|MKL-DNN|OpenBLAS) v?(\d[\w.]*)", report)
    return " ".join([name[1] if name else "unknown", *versions])


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _requirement_name(requirement: str) -> str:
    match = _REQUIREMENT_NAME.match(requirement)
    return match[0] if match else requirement


def _git(folder: Path, *arguments: str) -> str:
    """Return what git prints in `folder`, stripped; empty where there is no git, no work tree or no answer."""
    git = shutil.which("git")
    if git is None:
        return ""
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command without a shell
            [git, "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS_MAX,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
