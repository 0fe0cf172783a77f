"""The compiler subprocess: what it makes, how it is held to its limits, and what it is not told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import IntegrityError
from esper.core.kernel import kernel_id, make_request, manifest_digest
from esper.karn import KarnCatalog
from esper.leyline import messages as ly
from esper.tezzeret import CompilerProcess, Limits, TezzeretCompiler
from esper.tezzeret._faults import CompilerDied, CompilerOutOfMemory, CompileTimeout
from esper.tezzeret._subprocess import child_environment
from esper.tezzeret._wire import BadFrame, Frame, pack, unpack
from tests.karn.contract import lowest


def request(blueprint_id: str = "BP003") -> ly.KernelRequestSpec:
    """Return a request for a small kernel."""
    return make_request(blueprint_id, lowest(blueprint_id), layout="vector", in_shape=[12], out_shape=[5])


@pytest.fixture
def process() -> Iterator[CompilerProcess]:
    """Return a compiler subprocess, ended afterwards."""
    process = CompilerProcess()
    yield process
    process.close()


def test_makes_what_this_process_would_make(process: CompilerProcess) -> None:
    """Goal: where it is compiled changes no byte. Method: compile in the subprocess and here, compare digests."""
    isolated = TezzeretCompiler(KarnCatalog(), process=process)
    for blueprint_id in ("BP003", "BP014"):
        made = isolated.compile(request(blueprint_id))
        assert manifest_digest(made.manifest) == manifest_digest(
            TezzeretCompiler(KarnCatalog()).compile(request(blueprint_id)).manifest
        )
    assert process.starts == 1, "torch is imported once for many kernels"


def test_figures_are_of_many_real_calls(process: CompilerProcess) -> None:
    """Goal: percentiles of many samples, not of one. Method: measure a kernel, read the profiles."""
    compiler = TezzeretCompiler(KarnCatalog(), process=process)
    benchmark = compiler.measure(compiler.compile(request()), batch=7, samples=50)
    assert {each.name for each in benchmark.profiles} == {"eager.forward", "eager.train"}
    for each in benchmark.profiles:
        assert each.latency.samples == 50
        assert each.latency.batch == 7
        assert 0 < each.latency.p50_ms <= each.latency.p95_ms
        assert each.throughput_samples_per_s == pytest.approx(7 / each.latency.p50_ms * 1e3)
    assert benchmark.kernel_id == kernel_id(request())
    assert benchmark.platform.torch_version
    assert benchmark.platform.isa


def test_a_refusal_keeps_the_process(process: CompilerProcess) -> None:
    """Goal: what is refused costs no new process. Method: send bytes that are no spec, then a good request."""
    compiler = TezzeretCompiler(KarnCatalog(), process=process)
    with pytest.raises(IntegrityError, match="kernel spec"):
        process.call(Frame({"op": "make"}, [request().SerializeToString(), b"{}"]), Limits())
    compiler.compile(request())
    assert process.starts == 1


def test_a_hanging_process_is_replaced(process: CompilerProcess) -> None:
    """Goal: a hang costs its limit and no more. Method: SIGSTOP the process, compile within a second, compile again."""
    quick = TezzeretCompiler(KarnCatalog(), process=process, limits=Limits(seconds=1.0))
    quick.compile(request())
    hanging = process.pid
    assert hanging is not None
    os.kill(hanging, signal.SIGSTOP)
    with pytest.raises(CompileTimeout, match="within 1 seconds"):
        quick.compile(request())
    assert not psutil.pid_exists(hanging)
    quick.compile(request())
    assert process.starts == 2


def test_a_killed_process_is_a_fault_that_passes(process: CompilerProcess) -> None:
    """Goal: a death is named and the next call works. Method: SIGKILL and SIGTERM the process, compile twice each."""
    compiler = TezzeretCompiler(KarnCatalog(), process=process)
    for number, (signal_number, error) in enumerate(
        [(signal.SIGKILL, CompilerOutOfMemory), (signal.SIGTERM, CompilerDied)]
    ):
        compiler.compile(request())
        assert process.pid is not None
        os.kill(process.pid, signal_number)
        with pytest.raises(error):
            compiler.compile(request())
        assert process.starts == number + 1
        compiler.compile(request())


def test_too_much_memory_ends_the_process(process: CompilerProcess) -> None:
    """Goal: memory is bounded. Method: allow 16 MiB, in which not even torch fits."""
    with pytest.raises(CompilerOutOfMemory, match="may hold 16 MiB"):
        TezzeretCompiler(KarnCatalog(), process=process, limits=Limits(memory_bytes=16 << 20)).compile(request())
    assert process.pid is None


def test_it_is_told_no_secret(process: CompilerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: the subprocess never sees a setting. Method: set a secret, read the environment of the real process."""
    monkeypatch.setenv("ESPER_LEYLINE_SECRET", "0123456789abcdef0123456789abcdef")
    monkeypatch.setenv("KAFKA_PASSWORD", "hush")
    TezzeretCompiler(KarnCatalog(), process=process).compile(request())
    environment = Path(f"/proc/{process.pid}/environ").read_bytes()
    assert b"ESPER_" not in environment
    assert b"hush" not in environment
    assert b"PATH=" in environment
    assert child_environment({"HOME": "h", "AWS_SECRET": "s"}, Path("f")).keys() == {
        "HOME",
        "PYTHONPATH",
        "TMPDIR",
        "TORCHINDUCTOR_CACHE_DIR",
    }


def test_it_dies_with_the_forge() -> None:
    """Goal: no orphan is left. Method: SIGKILL a process that runs a compiler; wait for the compiler's end."""
    script = (
        "import time; from esper.tezzeret import CompilerProcess; p = CompilerProcess(); p.start(); "
        "print(p.pid, flush=True); time.sleep(600)"
    )
    forge = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert forge.stdout is not None
    compiler = int(forge.stdout.readline())
    deadline = Deadline(60.0)
    # Its own watch begins once Python has started: kill the forge when the command is Python's.
    while "hangup" not in _threads(compiler) and not deadline.expired:
        SYSTEM_CLOCK.sleep(0.05)
    forge.kill()
    forge.communicate()
    while psutil.pid_exists(compiler) and not deadline.expired:
        SYSTEM_CLOCK.sleep(0.05)
    assert not psutil.pid_exists(compiler) or psutil.Process(compiler).status() == psutil.STATUS_ZOMBIE


def _threads(pid: int) -> str:
    """Return something that names the watching thread once a process has more than one thread."""
    return "hangup" if psutil.pid_exists(pid) and psutil.Process(pid).num_threads() > 1 else ""


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xff\xff\xff{}",
        b"\0\0\0\2[]",
        b"\0\0\0\2{}",
        b'\0\0\0\x11{"parts": [-1000]}'[:21],
        b'\0\0\0\x0d{"parts": []}x',
        b'\0\0\0\x1c{"parts": [99999999999999]} ',
    ],
)
def test_nonsense_is_no_frame(content: bytes) -> None:
    """Goal: bytes from a broken compiler are refused. Method: headers that are too long, no object, lying, trailing."""
    with pytest.raises(BadFrame):
        unpack(content)


def test_a_frame_comes_back_whole() -> None:
    """Goal: every cut of a frame is unfinished, the whole is the frame. Method: cut it everywhere."""
    frame = Frame({"op": "x", "n": 3}, [b"", b"abc", bytes(1000)])
    content = pack(frame)
    assert all(unpack(content[:length]) is None for length in range(len(content)))
    assert unpack(content) == frame
