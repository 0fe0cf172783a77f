"""Kernels: what a blueprint becomes. A declarative spec, weights in safetensors, and a manifest that names both.

What needs torch is imported when it is first asked for, so that whoever only checks, lists or moves
kernels starts without it.
"""

from typing import TYPE_CHECKING

from esper.core.kernel._artifact import (
    KernelArtifact,
    VerifiedKernel,
    check_kernel,
    get_artifact,
    put_artifact,
    verify_artifact,
)
from esper.core.kernel._blobs import BlobMissing, BlobStore, DirectoryBlobStore
from esper.core.kernel._canonical import canonical_json
from esper.core.kernel._manifest import manifest_bytes, manifest_digest, parse_manifest
from esper.core.kernel._request import (
    DTYPES,
    FEATURES_MAX,
    LAYOUTS,
    check_request,
    guard_digest,
    kernel_id,
    make_request,
)
from esper.core.kernel._spec import FORMAT_VERSION, KernelPlan, TensorPlan, plan_spec

if TYPE_CHECKING:
    from esper.core.kernel._forge import load_kernel, make_artifact
    from esper.core.kernel._module import Kernel, build_module, init_module

_NEEDS_TORCH = {
    "Kernel": "_module",
    "build_module": "_module",
    "init_module": "_module",
    "load_kernel": "_forge",
    "make_artifact": "_forge",
}


def __getattr__(name: str) -> object:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_NEEDS_TORCH[name]}"), name)


__all__ = [
    "DTYPES",
    "FEATURES_MAX",
    "FORMAT_VERSION",
    "LAYOUTS",
    "BlobMissing",
    "BlobStore",
    "DirectoryBlobStore",
    "Kernel",
    "KernelArtifact",
    "KernelPlan",
    "TensorPlan",
    "VerifiedKernel",
    "build_module",
    "canonical_json",
    "check_kernel",
    "check_request",
    "get_artifact",
    "guard_digest",
    "init_module",
    "kernel_id",
    "load_kernel",
    "make_artifact",
    "make_request",
    "manifest_bytes",
    "manifest_digest",
    "parse_manifest",
    "plan_spec",
    "put_artifact",
    "verify_artifact",
]
