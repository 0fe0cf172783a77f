"""A kernel's first output is exactly zero, or the kernel is not made: what counts is the output, not the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
import torch

from esper.core.approvals import descriptor_digest
from esper.core.ids import new_event_id
from esper.core.kernel import load_kernel, make_artifact, make_request
from esper.karn import STATED_SHAPES, Blueprint, Body, KarnCatalog, catalogue, check_own, middle
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.tezzeret import TezzeretCompiler, build_service
from esper.tezzeret._birth import birth_fault
from esper.tezzeret._faults import NotZeroAtBirth
from esper.tezzeret._subprocess import CompilerProcess
from tests.karn.contract import highest, lowest
from tests.urza.harness import Log, running

_GROWTHS = 30


def _overflow(features: int, _parameters: Mapping[str, float]) -> Body:
    """Return a body that multiplies by 100 so often that nothing finite is left: 1e60 is no float32."""
    return Body({"op": "sequential", "children": [{"op": "scale", "factor": 100.0}] * _GROWTHS}, features)


def _mixed_overflow(features: int, parameters: Mapping[str, float]) -> Body:
    return replace(_overflow(features, parameters), mixed=True)


def overflowing(blueprint_id: str, **changes: object) -> Blueprint:
    """Return a blueprint of somebody's own that every check of its words passes."""
    fields: dict[str, object] = {
        "risk": 0.1,
        "stage": 1,
        "description": "Multiplies until nothing finite is left.",
        "bodies": {"vector": _overflow},
    }
    blueprint = Blueprint(blueprint_id, "overflow", **({"tier": "SAFE"} | fields | changes))  # type: ignore[arg-type]  # spread
    check_own(blueprint, ())
    return blueprint


def request(blueprint: Blueprint) -> ly.KernelRequestSpec:
    """Return the request for it at eight features."""
    return make_request(blueprint.blueprint_id, {}, layout="vector", in_shape=[8])


@pytest.mark.parametrize("body", [_overflow, _mixed_overflow])
def test_zero_times_infinity_is_found(body: object) -> None:
    """Goal: a zero end behind an infinity is no zero. Method: the first output of it, behind both kinds of end."""
    blueprint = overflowing("acme.over", bodies={"vector": body})
    spec = blueprint.spec(layout="vector", shape=[8], parameters={})
    fault = birth_fault(load_kernel(make_artifact(request(blueprint), spec)))
    assert fault == "its first output in training is not exactly zero but in 16 of 16 numbers another, nan the first"


def test_an_end_that_is_not_zero_is_found() -> None:
    """Goal: the output counts, whatever made it so. Method: a sound kernel, its end then a bit off zero."""
    blueprint = catalogue()["BP005"]
    spec = blueprint.spec(layout="vector", shape=[8], parameters={})
    kernel = load_kernel(make_artifact(make_request("BP005", {}, layout="vector", in_shape=[8]), spec))
    assert birth_fault(kernel) == ""
    with torch.no_grad():
        next(kernel.end.parameters()).fill_(1e-30)
    assert "is not exactly zero" in birth_fault(kernel)


@pytest.mark.parametrize("blueprint_id", sorted(catalogue()))
def test_every_shipped_blueprint_passes(blueprint_id: str) -> None:
    """Goal: nothing sound is refused, hazards, which are latent, among it. Method: every layout at its stated shape,
    with the lowest, the middle and the highest parameters; no random number of this process is spent.
    """
    blueprint = catalogue()[blueprint_id]
    before = torch.get_rng_state()
    for layout in blueprint.layouts:
        shape = STATED_SHAPES[layout]
        for parameters in (lowest(blueprint_id), middle(blueprint), highest(blueprint_id)):
            wanted = make_request(blueprint_id, parameters, layout=layout, in_shape=shape)
            spec = blueprint.spec(layout=layout, shape=shape, parameters=parameters)
            assert birth_fault(load_kernel(make_artifact(wanted, spec), quarantine=True)) == "", layout
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def process() -> Iterator[CompilerProcess]:
    """Return a compiler subprocess, ended afterwards."""
    process = CompilerProcess()
    yield process
    process.close()


def test_compiler_runs_what_may_be_run(process: CompilerProcess) -> None:
    """Goal: the same answer in the subprocess and here, and no run that nobody allowed. Method: compile it with and
    without `runs`, and run later what was made without.
    """
    blueprint = overflowing("acme.over")
    for compiler in (
        TezzeretCompiler(KarnCatalog({"acme.over": blueprint})),
        TezzeretCompiler(KarnCatalog({"acme.over": blueprint}), process=process),
    ):
        with pytest.raises(NotZeroAtBirth, match="nan the first"):
            compiler.compile(request(blueprint), runs=True)
        made = compiler.compile(request(blueprint))
    with pytest.raises(NotZeroAtBirth, match="nan the first"):
        compiler.check_birth(made)
    assert process.starts == 1, "a refusal costs no new process"


def test_forge_makes_no_kernel_that_is_not_zero(fabric: Fabric) -> None:
    """Goal: nobody can graft it. Method: ask the forge for a SAFE one on the real broker: it fails by name, for good,
    and the catalogue does not hold it.
    """
    blueprint = overflowing(f"acme.{new_event_id()[:12]}")
    log = Log(fabric, request(blueprint))
    log.ask_forge()
    with running(build_service(fabric, blueprints=KarnCatalog({blueprint.blueprint_id: blueprint}))):
        failed = log.wait(ly.CompileFailed)[0]
    assert failed.reason.startswith("not_zero_at_birth: ")
    assert not failed.retried
    assert log.words() == ["CompileStarted", "CompileFailed"]


def test_kernel_made_before_its_approval_is_run_after_it(fabric: Fabric) -> None:
    """Goal: what was made as data for quarantine is looked at before it may be grafted. Method: ask for an
    EXPERIMENTAL one, which is made and not run; approve it, ask again.
    """
    blueprint = overflowing(f"acme.{new_event_id()[:12]}", tier="EXPERIMENTAL", approval_required=True)
    name = blueprint.blueprint_id
    log = Log(fabric, request(blueprint))
    log.ask_forge()
    with running(build_service(fabric, blueprints=KarnCatalog({name: blueprint}))):
        assert log.wait(ly.CompileFinished)[0].fallback_reason.startswith("approval_required: ")
        digest = descriptor_digest(blueprint.descriptor())
        with fabric.publisher("karn") as karn:
            karn.publish(ly.BlueprintRegistered(descriptor=blueprint.descriptor(), descriptor_digest=digest), key=name)
        with fabric.publisher("cli") as cli:
            approval = ly.BlueprintApproved(blueprint_id=name, descriptor_digest=digest, approved_by="me")
            cli.publish(approval, key=name)
        log.ask_forge()
        assert log.wait(ly.CompileFailed)[0].reason.startswith("not_zero_at_birth: ")
    assert log.words() == ["CompileStarted", "KernelCatalogUpdate", "CompileFinished", "CompileFailed"]
    assert log.of(ly.BenchmarkReport) == []
