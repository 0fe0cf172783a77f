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
from esper.core.kernel._blobs import BlobMissing, BlobStore, DirectoryBlobStore, StoredBlob, Stray
from esper.core.kernel._canonical import canonical_json, parse_canonical
from esper.core.kernel._integrity import (
    CATALOGUE_ENTRY,
    COMPILED_PART,
    MANIFEST,
    SPEC,
    WEIGHTS,
    ArtifactRefused,
    RefusalTeller,
    part_of,
    refused_as,
)
from esper.core.kernel._manifest import SPEC_BYTES_MAX, manifest_bytes, manifest_digest, parse_manifest
from esper.core.kernel._parts import check_part, choose_part, pack_part, unpack_part, why_eager
from esper.core.kernel._request import (
    CHANNELS_FIRST,
    DTYPES,
    FEATURES_MAX,
    LAYOUTS,
    check_request,
    features_of,
    guard_digest,
    kernel_id,
    make_request,
)
from esper.core.kernel._spec import FORMAT_VERSION, KernelPlan, plan_spec
from esper.core.kernel._word import TensorPlan

if TYPE_CHECKING:
    from esper.core.kernel._compiled import CompiledKernel, open_packages, open_part, platform_of
    from esper.core.kernel._forge import load_kernel, load_verified, make_artifact
    from esper.core.kernel._module import Kernel, build_module, init_from_scratch, init_module

_NEEDS_TORCH = {
    "CompiledKernel": "_compiled",
    "Kernel": "_module",
    "build_module": "_module",
    "init_from_scratch": "_module",
    "init_module": "_module",
    "load_kernel": "_forge",
    "load_verified": "_forge",
    "make_artifact": "_forge",
    "open_packages": "_compiled",
    "open_part": "_compiled",
    "platform_of": "_compiled",
}


def __getattr__(name: str) -> object:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_NEEDS_TORCH[name]}"), name)


__all__ = [
    "CATALOGUE_ENTRY",
    "CHANNELS_FIRST",
    "COMPILED_PART",
    "DTYPES",
    "FEATURES_MAX",
    "FORMAT_VERSION",
    "LAYOUTS",
    "MANIFEST",
    "SPEC",
    "SPEC_BYTES_MAX",
    "WEIGHTS",
    "ArtifactRefused",
    "BlobMissing",
    "BlobStore",
    "CompiledKernel",
    "DirectoryBlobStore",
    "Kernel",
    "KernelArtifact",
    "KernelPlan",
    "RefusalTeller",
    "StoredBlob",
    "Stray",
    "TensorPlan",
    "VerifiedKernel",
    "build_module",
    "canonical_json",
    "check_kernel",
    "check_part",
    "check_request",
    "choose_part",
    "features_of",
    "get_artifact",
    "guard_digest",
    "init_from_scratch",
    "init_module",
    "kernel_id",
    "load_kernel",
    "load_verified",
    "make_artifact",
    "make_request",
    "manifest_bytes",
    "manifest_digest",
    "open_packages",
    "open_part",
    "pack_part",
    "parse_canonical",
    "parse_manifest",
    "part_of",
    "plan_spec",
    "platform_of",
    "put_artifact",
    "refused_as",
    "unpack_part",
    "verify_artifact",
    "why_eager",
]
