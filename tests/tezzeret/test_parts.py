"""Compiled parts for real: made, opened by a process that has no compiler, and never in anybody's way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esper.core.kernel import (
    DirectoryBlobStore,
    build_module,
    load_kernel,
    make_request,
    manifest_digest,
    pack_part,
    put_artifact,
)
from esper.core.kernel._compiled import open_packages
from esper.karn import KarnCatalog
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.tezzeret import CompilerProcess, Limits, TezzeretCompiler, build_service
from esper.tezzeret._aot import check_compilable, compile_packages
from esper.tezzeret._faults import NoPart, fault_of, kind_of, reason_of
from esper.tezzeret._part_jobs import PartFacts, due_parts, fold_parts
from esper.tezzeret._trial import awake, measure_parity
from tests.conftest import StartBroker
from tests.integration.driver import REPOSITORY
from tests.karn.contract import lowest
from tests.urza.harness import Log, fresh_request, running

CPU = torch.device("cpu")
#: Channels and length of maps, so that a gradient comes back through a permuted view.
MAP = [4, 6]
HERE = ly.Platform(torch_version="t", device="cpu", isa="i", threads=1)


@pytest.mark.timeout(900)
def test_a_fresh_process_grafts_trains_and_prunes_with_a_part(tmp_path: Path) -> None:
    """Goal: no compiler and no recompilation where a part is used, and the training that eager gives.

    Method: compile a real part in the subprocess; in a fresh process open it, graft, blend, train with changing
    batches, prune, beside an eager twin; count child processes and what dynamo traced, compare outputs.
    """
    request = make_request("BP014", lowest("BP014"), layout="vector", in_shape=[12])
    compiler = TezzeretCompiler(KarnCatalog(), process=CompilerProcess(), limits=Limits(seconds=600))
    try:
        artifact = compiler.compile(request)
        packages, compile_ms = compiler.compile_part(artifact, trains=True)
        record, benchmark = compiler.try_part(artifact, packages, batch=64, samples=40)
    finally:
        compiler.close()
    assert record.parity.passed
    assert list(record.parity.batches) == [1, 2, 7, 64]
    assert 0 < record.parity.forward_abs_max + record.parity.backward_abs_max <= 1e-5
    assert record.warm_compile_ms < 0.5 * compile_ms
    assert record.speedup > 0
    assert [each.name for each in benchmark.profiles] == ["eager.train", "compiled.train"]
    store = DirectoryBlobStore(tmp_path)
    digest, ref = store.put(pack_part(packages)), put_artifact(store, artifact)
    assert ref == manifest_digest(artifact.manifest)
    command = [sys.executable, "-m", "benchmarks._fresh_part", str(tmp_path), ref, digest]
    found = json.loads(subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True, timeout=300).stdout)
    assert found["children"] == 0
    assert found["dynamo"] == 0
    assert found["reason"] == ""
    assert found["moved"] > 0.01, "the kernel was trained"
    assert found["worst"] <= 1e-5


@pytest.mark.timeout(600)
def test_the_backward_of_a_map_is_that_of_eager() -> None:
    """Goal: a part may be right forward and wrong backward; where a kernel permutes, strides are the trap.

    Method: compile a kernel on maps, whose output is a permuted view, and compare with eager at every batch size.
    """
    request = make_request("BP002", lowest("BP002"), layout="map1d", in_shape=MAP)
    kernel = load_kernel(TezzeretCompiler(KarnCatalog()).compile(request))
    packages = compile_packages(kernel, trains=True, device=CPU)
    eager = awake(kernel)
    parity = measure_parity(eager, open_packages(eager, packages, device=CPU), device=CPU, trains=True)
    assert parity.passed, parity
    assert parity.backward_abs_max <= 1e-5


@pytest.mark.timeout(900)
def test_a_part_that_cannot_be_made_costs_nobody_anything(start_broker: StartBroker) -> None:
    """Goal: eager on a fault, with the reason, while kernels go on being made.

    Method: a forge that compiles parts but gives each no more than half a second; ask for two kernels, on a log
    without other tests' kernels, whose parts would come first.
    """
    hasty = start_broker(compiled_parts=True, compile_part_seconds_max=0.5).settings
    with Fabric.open(hasty, member="test") as fabric:
        logs = [Log(fabric, fresh_request()) for _ in range(2)]
        for log in logs:
            log.ask_forge()
        with running(build_service(fabric, blueprints=KarnCatalog())):
            for log in logs:
                finished = log.wait(ly.CompileFinished)[0]
                assert finished.strategy == "eager"
            for log in logs:
                verdicts = log.wait(ly.KernelPartCompiled, 1)
                assert not verdicts[0].chosen
                assert verdicts[0].reason.startswith("compile_timeout: ")
                assert verdicts[0].forge == fabric.home.home_id
                assert verdicts[0].part_digest == ""


def test_what_keeps_state_or_draws_has_no_part() -> None:
    """Goal: a pure function never stands for what is none. Method: give a kernel a buffer, and one a dropout."""
    spec = KarnCatalog().build_spec(make_request("BP005", {}, layout="vector", in_shape=[4]))
    stateful, stochastic, plain = (build_module(spec) for _ in range(3))
    stateful.register_buffer("mean", torch.zeros(1))
    stochastic.body = torch.nn.Sequential(stochastic.body, torch.nn.Dropout(0.5))
    check_compilable(plain)
    for kernel, word in ((stateful, "stateful"), (stochastic, "stochastic")):
        with pytest.raises(NoPart, match=word) as caught:
            check_compilable(kernel)
        # What crosses from the subprocess is a kind and words; the verdict is the plain reason, no fault of anybody's.
        told = fault_of(kind_of(caught.value), f"NoPart: {caught.value}")
        assert reason_of(told).startswith(f"{word}: it ")


def test_every_part_is_judged_once() -> None:
    """Goal: a verdict in the log is not sought again; another platform's or home's is none. Method: fold, ask."""
    facts = fold_parts(PartFacts(), ly.CompileFinished(artifact_ref="a", kernel_id="k"))
    train, frozen = ly.COMPILED_KIND_AOT_TRAIN_PACKAGE, ly.COMPILED_KIND_AOT_PACKAGE
    assert due_parts(facts, forge="h", platform=HERE) == [("k", "a", train), ("k", "a", frozen)]
    judged = ly.KernelPartCompiled(artifact_ref="a", kind=train, forge="h", platform=HERE, reason="slow")
    facts = fold_parts(facts, judged)
    assert due_parts(facts, forge="h", platform=HERE) == [("k", "a", frozen)]
    assert len(due_parts(facts, forge="other", platform=HERE)) == 2
    assert len(due_parts(facts, forge="h", platform=ly.Platform(device="cuda"))) == 2
