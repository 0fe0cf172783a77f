"""From a request to an artifact, and from an artifact to its measurements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from esper.core.errors import IntegrityError
from esper.core.kernel import (
    KernelArtifact,
    canonical_json,
    check_request,
    kernel_id,
    manifest_bytes,
    parse_manifest,
    verify_artifact,
)
from esper.leyline import messages as ly
from esper.tezzeret._describe import BlueprintBuilder, Describer
from esper.tezzeret._faults import CompilerDied, NotZeroAtBirth
from esper.tezzeret._subprocess import CompilerProcess, Limits
from esper.tezzeret._wire import Frame

M = TypeVar("M", bound=Message)


class TezzeretCompiler:
    """Compiles blueprints into canonical artifacts: spec, first weights, manifest.

    With a `process` the work is done there, within `limits`, and what comes back is verified here before anybody
    sees it; without one it is done in this process, which is what a program of one's own wants. Measurements and
    compiled parts are of `device`.
    """

    def __init__(
        self,
        blueprints: BlueprintBuilder,
        *,
        process: CompilerProcess | None = None,
        limits: Limits | None = None,
        device: str = "cpu",
    ) -> None:
        self._describer = Describer(blueprints)
        self._process = process
        self._limits = limits or Limits()
        self._device = device

    def warm_up(self) -> None:
        """Import torch from now on: the first request must not wait for all of it while an epoch's edge waits.

        Raises:
            OSError: the subprocess does not start.
        """
        if self._process is not None:
            self._process.start()
        else:
            from esper.core.kernel import make_artifact  # noqa: F401 - looking it up is what imports torch

    def compile(self, request: ly.KernelRequestSpec, *, runs: bool = False) -> KernelArtifact:
        """Return the artifact of `request`: the same bytes whenever and wherever it is compiled.

        With `runs`, which is for kernels that may be run here, it is run once before anybody has it.

        Raises:
            NotZeroAtBirth: it was run, and its first output is not exactly zero.
            UsageError: the request is malformed, or its blueprint cannot be had like this.
            IntegrityError: the blueprint's spec is refused or answers another request.
            CompileRefused: it fails in a way that repeating it does not mend.
            CompilerFault: the subprocess failed; the same call may succeed.
        """
        check_request(request)
        spec = self._describer.spec(request)
        if self._process is None:
            return _made_here(request, spec, runs=runs)
        frame = Frame({"op": "make", "runs": runs}, [request.SerializeToString(), canonical_json(spec)])
        return _checked(self._process.call(frame, self._limits), request)

    def check_birth(self, artifact: KernelArtifact) -> None:
        """Run a kernel once that was made before it might be run.

        Raises:
            NotZeroAtBirth: its first output is not exactly zero.
            CompilerFault, CompileRefused, IntegrityError: it could not be run.
        """
        assert self._process is not None, "kernels are run in a subprocess only"
        self._process.call(Frame({"op": "birth"}, _parts(artifact)), self._limits)

    def measure(self, artifact: KernelArtifact, *, batch: int, samples: int) -> ly.BlueprintBenchmark:
        """Return how long eager calls of a kernel take on the compiler's device, each figure over real calls.

        Raises:
            CompilerFault, CompileRefused, IntegrityError: it could not be measured.
        """
        assert self._process is not None, "kernels are run in a subprocess only"
        frame = Frame({"op": "measure", "device": self._device, "batch": batch, "samples": samples}, _parts(artifact))
        answer = self._process.call(frame, self._limits)
        return _about(artifact, _parsed(ly.BlueprintBenchmark, answer, 0))

    def compile_part(self, artifact: KernelArtifact, *, trains: bool) -> tuple[list[bytes], float]:
        """Return the packages of a compiled part (forward, and backward where it trains) and the milliseconds it took.

        Raises:
            NoPart: the kernel keeps state or draws random numbers.
            CompilerFault, CompileRefused, IntegrityError: it could not be made.
        """
        assert self._process is not None, "machine code is made in a subprocess only"
        answer = self._process.call(
            Frame({"op": "compile_part", "device": self._device, "trains": trains}, _parts(artifact)), self._limits
        )
        taken = answer.header.get("compile_ms")
        if len(answer.parts) != 1 + trains or not isinstance(taken, float):
            raise CompilerDied(f"it sent {len(answer.parts)} packages")
        return list(answer.parts), taken

    def try_part(
        self, artifact: KernelArtifact, packages: Sequence[bytes], *, batch: int, samples: int
    ) -> tuple[ly.KernelPartCompiled, ly.BlueprintBenchmark]:
        """Return what a trial in the subprocess found of a part: parity, speed, time to open; and the latencies.

        Raises:
            CompilerFault, CompileRefused, IntegrityError: it could not be tried.
        """
        assert self._process is not None, "machine code is run in a subprocess only"
        frame = Frame(
            {"op": "try_part", "device": self._device, "batch": batch, "samples": samples},
            [*_parts(artifact), *packages],
        )
        answer = self._process.call(frame, self._limits)
        return _parsed(ly.KernelPartCompiled, answer, 0), _about(artifact, _parsed(ly.BlueprintBenchmark, answer, 1))

    def platform(self) -> ly.Platform:
        """Return the platform of the subprocess; raises CompilerFault."""
        assert self._process is not None, "the forge itself has no torch to ask"
        return _parsed(
            ly.Platform, self._process.call(Frame({"op": "platform", "device": self._device}), self._limits), 0
        )

    def close(self) -> None:
        """End the subprocess, if there is one."""
        if self._process is not None:
            self._process.close()


def _made_here(request: ly.KernelRequestSpec, spec: dict[str, object], *, runs: bool) -> KernelArtifact:
    from esper.core.kernel import load_kernel, make_artifact

    artifact = make_artifact(request, spec)
    if runs:
        from esper.tezzeret._birth import birth_fault

        if fault := birth_fault(load_kernel(artifact)):
            raise NotZeroAtBirth(fault)
    return artifact


def _parts(artifact: KernelArtifact) -> list[bytes]:
    return [manifest_bytes(artifact.manifest), artifact.spec, artifact.weights]


def _parsed(kind: type[M], answer: Frame, index: int) -> M:
    """Return a message that a subprocess sent; raises CompilerDied when it is none."""
    try:
        return kind.FromString(answer.parts[index])
    except (IndexError, DecodeError) as error:
        raise CompilerDied(f"it sent no {kind.__name__}: {error}") from error


def _about(artifact: KernelArtifact, benchmark: ly.BlueprintBenchmark) -> ly.BlueprintBenchmark:
    request = artifact.manifest.request
    benchmark.version = 1
    benchmark.blueprint_id = request.blueprint_id
    benchmark.kernel_id = artifact.manifest.kernel_id
    benchmark.layout = request.layout
    return benchmark


def _checked(answer: Frame, request: ly.KernelRequestSpec) -> KernelArtifact:
    """Return the artifact that a subprocess sent, after every check; raises IntegrityError, CompilerDied."""
    if len(answer.parts) != 3:
        raise CompilerDied(f"it sent {len(answer.parts)} parts where an artifact has 3")
    manifest, spec, weights = answer.parts
    artifact = KernelArtifact(parse_manifest(manifest), spec, weights)
    verify_artifact(artifact)
    if artifact.manifest.kernel_id != kernel_id(request):
        raise IntegrityError(
            f"the compiler made kernel {artifact.manifest.kernel_id}",
            cause=f"kernel {kernel_id(request)} was asked for",
            next_step="report this: the compiler subprocess answers the wrong question",
        )
    return artifact
