"""The compiler: a request becomes the canonical artifact, or a refusal by name."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch

from esper.core.errors import IntegrityError
from esper.core.kernel import kernel_id, load_kernel, make_request, manifest_digest
from esper.karn import BlueprintError, KarnCatalog, catalogue
from esper.leyline import messages as ly
from esper.tezzeret import TezzeretCompiler
from esper.tezzeret._describe import Describer
from esper.tezzeret._faults import CompileRefused
from tests.karn.contract import CONTRACT, lowest


def request(blueprint_id: str, **changes: float) -> ly.KernelRequestSpec:
    """Return a request for a blueprint with its lowest parameters, or others as told."""
    parameters = lowest(blueprint_id) if blueprint_id in CONTRACT else {}
    return make_request(blueprint_id, parameters | changes, layout="vector", in_shape=[12], out_shape=[5])


@pytest.mark.parametrize("blueprint_id", sorted(CONTRACT))
def test_artifact_is_the_blueprint(blueprint_id: str) -> None:
    """What is compiled is what Karn builds: same names and shapes, drawn by the kernel's id, the same again."""
    compiler = TezzeretCompiler(KarnCatalog())
    wanted = request(blueprint_id)
    artifact = compiler.compile(wanted)
    seed = catalogue()[blueprint_id].build(
        layout="vector",
        shape=[12],
        out_shape=[5],
        parameters=lowest(blueprint_id),
        generator=torch.Generator().manual_seed(int(kernel_id(wanted)[:16], 16) >> 1),
    )
    kernel = load_kernel(artifact, quarantine=catalogue()[blueprint_id].quarantine_only)
    assert kernel.state_dict().keys() == seed.state_dict().keys()
    assert all(torch.equal(value, seed.state_dict()[name]) for name, value in kernel.state_dict().items())
    assert manifest_digest(compiler.compile(wanted).manifest) == manifest_digest(artifact.manifest)
    assert artifact.manifest.strategy == "eager"


def test_artifacts_of_blueprints_differ() -> None:
    """No two blueprints compile to the same thing: compare specs and weights of all."""
    manifests = [TezzeretCompiler(KarnCatalog()).compile(request(blueprint_id)).manifest for blueprint_id in CONTRACT]
    for field in ("spec_digest", "weights_digest", "kernel_id"):
        assert len({getattr(manifest, field) for manifest in manifests}) == len(CONTRACT), field


@pytest.mark.parametrize(
    "wanted", [request("BP998"), request("BP999"), request("BP002", scale=9.0), request("BP005", scale=1.0)]
)
def test_what_cannot_be_had_is_refused(wanted: ly.KernelRequestSpec) -> None:
    """Unknown blueprints and parameters out of bounds compile to nothing."""
    with pytest.raises(BlueprintError):
        TezzeretCompiler(KarnCatalog()).compile(wanted)


def test_builder_is_not_believed() -> None:
    """A builder that answers another request is refused: let it build for another size."""

    class Wrong:
        def build_spec(self, _request: ly.KernelRequestSpec) -> dict[str, object]:
            return catalogue()["BP005"].spec(layout="vector", shape=[13], out_shape=[5], parameters={})

    with pytest.raises(IntegrityError, match="asked for"):
        TezzeretCompiler(Wrong()).compile(request("BP005"))


class Rude:
    """A user's own blueprints: one hangs, one leaves the process, one raises."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.release = threading.Event()

    def build_spec(self, wanted: ly.KernelRequestSpec) -> dict[str, object]:
        """Do what the blueprint's name says."""
        self.asked.append(wanted.blueprint_id)
        if wanted.blueprint_id == "hang":
            self.release.wait()
        elif wanted.blueprint_id == "leave":
            sys.exit(3)
        raise LookupError("no such thing")


def test_a_blueprint_that_hangs_or_leaves_ends_no_forge() -> None:
    """Goal: somebody else's code costs its own request. Method: ask three that do not answer, one of them twice."""
    rude = Rude()
    describer = Describer(rude, seconds=0.05)
    try:
        for name, cause in (
            ("hang", "within 0.05 s"),
            ("hang", "before"),
            ("leave", "SystemExit"),
            ("x", "LookupError"),
        ):
            wanted = make_request(name, {}, layout="vector", in_shape=[12])
            with pytest.raises(CompileRefused, match=cause):
                describer.spec(wanted)
        assert rude.asked == ["hang", "leave", "x"]
    finally:
        rude.release.set()


def test_forge_starts_without_torch() -> None:
    """An idle forge stays small: import both kernel members in a fresh process and look for torch."""
    script = "import sys, esper.tezzeret, esper.urza; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"
