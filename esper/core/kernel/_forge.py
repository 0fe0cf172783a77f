"""Making artifacts and opening them: the two places where bytes and torch modules meet."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
import torch

from esper.core.ids import sha256_hex
from esper.core.kernel._artifact import KernelArtifact, VerifiedKernel, check_agreement, verify_artifact
from esper.core.kernel._canonical import canonical_json
from esper.core.kernel._manifest import STRATEGY
from esper.core.kernel._module import Kernel, assemble, build_module, init_module
from esper.core.kernel._request import guard_digest, kernel_id
from esper.core.kernel._spec import FORMAT_VERSION
from esper.leyline import messages as ly


def make_artifact(request: ly.KernelRequestSpec, spec: Mapping[str, object]) -> KernelArtifact:
    """Return the canonical artifact of `spec`, which answers `request`: the same bytes for the same arguments.

    First weights are drawn from a generator seeded by the kernel's id, in name order.

    Raises:
        UsageError: the request is malformed.
        IntegrityError: the spec is refused, or answers another request.
    """
    name = kernel_id(request)
    # A hazard may be written down: it is only what it would do in training that needs containment.
    module = build_module(spec, quarantine=True)
    check_agreement(module.plan, request)
    init_module(module, torch.Generator().manual_seed(int(name[:16], 16) >> 1))
    spec_bytes = canonical_json(spec)
    weights = safetensors.torch.save(dict(sorted(module.state_dict().items())))
    manifest = ly.ArtifactManifest(
        request=request,
        kernel_id=name,
        spec_digest=sha256_hex(spec_bytes),
        spec_bytes=len(spec_bytes),
        weights_digest=sha256_hex(weights),
        weights_bytes=len(weights),
        guard_digest=guard_digest(request),
        parameters=module.plan.parameters,
        multiply_adds_per_sample=module.plan.multiply_adds_per_sample,
        format_version=FORMAT_VERSION,
        strategy=STRATEGY,
    )
    return KernelArtifact(manifest, spec_bytes, weights)


def load_kernel(artifact: KernelArtifact, *, quarantine: bool = False) -> Kernel:
    """Return a fresh module on the CPU with the artifact's weights, after every check of `verify_artifact`.

    Every call gives a module with parameters of its own. Touches no random number generator. One that holds a
    hazard is loaded only where the caller says that it is for `quarantine`.

    Raises:
        IntegrityError: the artifact is not what its manifest says, or holds a hazard; nothing was built.
    """
    return load_verified(verify_artifact(artifact), quarantine=quarantine)


def load_verified(verified: VerifiedKernel, *, quarantine: bool = False) -> Kernel:
    """Return a fresh module of what `verify_artifact` found, as `load_kernel` does; checks nothing again.

    Raises:
        IntegrityError: it holds a hazard, and it is not for quarantine; nothing was built.
    """
    kernel = assemble(verified.plan, quarantine=quarantine)
    state = {name: torch.from_numpy(array.copy()) for name, array in verified.arrays.items()}
    kernel.load_state_dict(state, strict=True, assign=True)
    return kernel
