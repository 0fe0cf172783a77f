"""The manifest of an artifact as bytes: written out field by field, digested, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from esper.core.errors import IntegrityError, UsageError
from esper.core.ids import Digest, sha256_hex
from esper.core.kernel._canonical import canonical_json, parse_canonical
from esper.core.kernel._request import guard_digest, kernel_id, make_request, request_fields
from esper.core.kernel._spec import FORMAT_VERSION, PARAMETERS_MAX
from esper.leyline import messages as ly

MANIFEST_BYTES_MAX: Final = 64 * 1024
SPEC_BYTES_MAX: Final = 64 * 1024
WEIGHTS_HEADER_BYTES_MAX: Final = 128 * 1024
#: Eight bytes a parameter at most, the header, and the eight bytes that give its length.
WEIGHTS_BYTES_MAX: Final = 8 * PARAMETERS_MAX + WEIGHTS_HEADER_BYTES_MAX + 8
#: How the artifact is run. Compiled parts are derived from it and never shipped, so this is the only one.
STRATEGY: Final = "eager"

_TEXTS: Final = ("guard_digest", "kernel_id", "spec_digest", "strategy", "weights_digest")
_COUNTS: Final = ("format_version", "multiply_adds_per_sample", "parameters", "spec_bytes", "weights_bytes")


def manifest_bytes(manifest: ly.ArtifactManifest) -> bytes:
    """Return the manifest in canonical form: the bytes whose digest names the artifact.

    Protobuf is not canonical (field order, maps, unknown fields), hence JSON written out field by field.
    """
    fields: dict[str, object] = {name: getattr(manifest, name) for name in (*_TEXTS, *_COUNTS)}
    fields["request"] = request_fields(manifest.request)
    return canonical_json(fields)


def manifest_digest(manifest: ly.ArtifactManifest) -> Digest:
    """Return the SHA-256 over `manifest_bytes`: the `artifact_ref` of the kernel everywhere."""
    return sha256_hex(manifest_bytes(manifest))


def parse_manifest(content: bytes) -> ly.ArtifactManifest:
    """Return the manifest that `manifest_bytes` wrote; compare its digest before you call this.

    Raises:
        IntegrityError: the bytes are no manifest, or one that contradicts itself.
    """
    fields = parse_canonical(content, what="kernel manifest", bytes_max=MANIFEST_BYTES_MAX)
    if set(fields) != {*_TEXTS, *_COUNTS, "request"}:
        raise _refused(f"its fields are {sorted(fields)}")
    if not all(isinstance(fields[name], str) for name in _TEXTS) or not all(_count(fields[name]) for name in _COUNTS):
        raise _refused("a field has the wrong type")
    manifest = ly.ArtifactManifest(request=_parse_request(fields["request"]))
    for name in (*_TEXTS, *_COUNTS):
        setattr(manifest, name, fields[name])
    check_manifest(manifest)
    return manifest


def check_manifest(manifest: ly.ArtifactManifest) -> None:
    """Refuse a manifest that contradicts itself or names more bytes than a loader may open.

    Raises:
        IntegrityError: another format or strategy, sizes beyond the limits, or digests of another request.
    """
    if (manifest.format_version, manifest.strategy) != (FORMAT_VERSION, STRATEGY):
        raise _refused(f"format {manifest.format_version}, strategy {manifest.strategy[:64]!r} are not read here")
    if manifest.spec_bytes > SPEC_BYTES_MAX or manifest.weights_bytes > WEIGHTS_BYTES_MAX:
        raise _refused(f"it names {manifest.spec_bytes} bytes of spec and {manifest.weights_bytes} of weights")
    try:
        expected = kernel_id(manifest.request), guard_digest(manifest.request)
    except UsageError as error:
        raise _refused(str(error)) from error
    if (manifest.kernel_id, manifest.guard_digest) != expected:
        raise _refused("its kernel_id or guard_digest is not that of its request")


def _parse_request(value: object) -> ly.KernelRequestSpec:
    keys = {"blueprint_id", "dtype", "in_shape", "layout", "out_shape", "parameters"}
    if not isinstance(value, Mapping) or set(value) != keys:
        raise _refused("its request has other fields")
    if not all(isinstance(value[name], str) for name in ("blueprint_id", "dtype", "layout")):
        raise _refused("a word of its request is no text")
    if not all(isinstance(value[name], list) and all(map(_count, value[name])) for name in ("in_shape", "out_shape")):
        raise _refused("a shape of its request is no list of sizes")
    parameters = value["parameters"]
    if not isinstance(parameters, Mapping) or not all(isinstance(number, float) for number in parameters.values()):
        raise _refused("a parameter of its request is no number")
    try:
        return make_request(
            value["blueprint_id"],
            parameters,
            layout=value["layout"],
            in_shape=value["in_shape"],
            out_shape=value["out_shape"],
            dtype=value["dtype"],
        )
    except UsageError as error:
        raise _refused(str(error)) from error


def _count(value: object) -> bool:
    # Protobuf would refuse more than 64 bits, and no count of ours comes near 32.
    return type(value) is int and 0 <= value < 1 << 32


def _refused(cause: str) -> IntegrityError:
    return IntegrityError("kernel manifest is refused", cause=cause, next_step="have the kernel compiled again")
