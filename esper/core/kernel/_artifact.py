"""A kernel as bytes, and every check between those bytes and a module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from esper.core.crash_points import crash_point
from esper.core.errors import IntegrityError
from esper.core.ids import sha256_hex
from esper.core.kernel._blobs import BlobStore
from esper.core.kernel._canonical import parse_canonical
from esper.core.kernel._integrity import CATALOGUE_ENTRY, MANIFEST, SPEC, WEIGHTS, ArtifactRefused, refused_as
from esper.core.kernel._manifest import (
    MANIFEST_BYTES_MAX,
    SPEC_BYTES_MAX,
    WEIGHTS_BYTES_MAX,
    check_manifest,
    manifest_bytes,
    parse_manifest,
)
from esper.core.kernel._spec import KernelPlan, plan_spec
from esper.leyline import messages as ly

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class KernelArtifact:
    """A kernel in transit: what it is made of (canonical JSON), its weights (safetensors), and what vouches for both.

    The manifest is vouched for by whoever handed it over: the signature of the record it came in, or the
    digest it was fetched by.
    """

    manifest: ly.ArtifactManifest
    spec: bytes
    weights: bytes


@dataclass(frozen=True)
class VerifiedKernel:
    """What an artifact was found to hold: its plan, and the arrays of its tensors by name."""

    plan: KernelPlan
    arrays: Mapping[str, np.ndarray[Any, np.dtype[Any]]]


def verify_artifact(artifact: KernelArtifact) -> VerifiedKernel:
    """Check all of `artifact` and return what it holds; builds no module and runs nothing of it.

    Order: the manifest against itself, sizes and digests of the bytes, and only then their contents.

    Raises:
        ArtifactRefused: anything at all is not what the manifest says; the message names the first such thing.
    """
    # Whoever only lists or moves kernels starts without numpy.
    from esper.core.kernel._weights import read_weights

    manifest = artifact.manifest
    with refused_as(MANIFEST):
        check_manifest(manifest)
    with refused_as(SPEC):
        _check_bytes("spec", artifact.spec, manifest.spec_digest, manifest.spec_bytes, SPEC_BYTES_MAX)
    with refused_as(WEIGHTS):
        _check_bytes("weights", artifact.weights, manifest.weights_digest, manifest.weights_bytes, WEIGHTS_BYTES_MAX)
    with refused_as(SPEC):
        plan = plan_spec(parse_canonical(artifact.spec, what="kernel spec", bytes_max=SPEC_BYTES_MAX))
        check_agreement(plan, manifest.request)
    with refused_as(MANIFEST):
        _check_counts(manifest, plan)
    with refused_as(WEIGHTS):
        arrays = read_weights(artifact.weights, plan)
    return VerifiedKernel(plan, arrays)


def _check_counts(manifest: ly.ArtifactManifest, plan: KernelPlan) -> None:
    if (manifest.parameters, manifest.multiply_adds_per_sample) != (plan.parameters, plan.multiply_adds_per_sample):
        raise _refused(f"the manifest counts {manifest.parameters} parameters, the spec {plan.parameters}")


def check_agreement(plan: KernelPlan, request: ly.KernelRequestSpec) -> None:
    """Refuse a spec that answers another request than the one it stands for.

    Raises:
        IntegrityError: layout, dtype or a shape differs.
    """
    asked = (request.layout, request.dtype, tuple(request.in_shape), tuple(request.out_shape))
    given = (plan.layout, plan.dtype, plan.in_shape, plan.out_shape)
    if asked != given:
        raise _refused(f"the spec describes {given}, the request asked for {asked}")


def put_artifact(store: BlobStore, artifact: KernelArtifact) -> str:
    """Store spec, weights and then the manifest, so that a stored manifest has its parts; return its digest."""
    store.put(artifact.spec)
    crash_point("store.spec")
    store.put(artifact.weights)
    crash_point("store.weights")
    return store.put(manifest_bytes(artifact.manifest))


def get_artifact(store: BlobStore, artifact_ref: str) -> KernelArtifact:
    """Return the artifact of this digest; the bytes were compared with their digests, not yet read further.

    Raises:
        BlobMissing: the store lacks a part of it.
        ArtifactRefused: what is stored is something else.
    """
    with refused_as(MANIFEST):
        manifest = parse_manifest(store.get(artifact_ref, bytes_max=MANIFEST_BYTES_MAX))
    with refused_as(SPEC):
        spec = store.get(manifest.spec_digest, bytes_max=SPEC_BYTES_MAX)
    with refused_as(WEIGHTS):
        weights = store.get(manifest.weights_digest, bytes_max=WEIGHTS_BYTES_MAX)
    return KernelArtifact(manifest, spec, weights)


def check_kernel(artifact: KernelArtifact, artifact_ref: str, name: str | None) -> None:
    """Refuse an artifact that is another kernel's than `name`; None stands for any.

    Raises:
        ArtifactRefused: it is another's.
    """
    if name not in (None, artifact.manifest.kernel_id):
        raise ArtifactRefused(
            f"artifact {artifact_ref} is not kernel {name}",
            part=CATALOGUE_ENTRY,
            cause=f"it is kernel {artifact.manifest.kernel_id}",
            next_step="have the kernel compiled again",
        )


def _check_bytes(name: str, content: bytes, digest: str, size: int, size_max: int) -> None:
    if len(content) > size_max or len(content) != size:
        raise _refused(f"the {name} has {len(content)} bytes, the manifest says {size}")
    if sha256_hex(content) != digest:
        raise _refused(f"the {name} has another SHA-256 than the manifest says")


def _refused(cause: str) -> IntegrityError:
    return IntegrityError("kernel artifact is refused", cause=cause, next_step="have the kernel compiled again")
