"""What a kernel is asked for by, and the digest that names the request."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from esper.core.errors import UsageError
from esper.core.ids import Digest, sha256_hex
from esper.core.kernel._canonical import canonical_json
from esper.leyline import messages as ly

#: Layouts that kernels are built for, with the number of dimensions of one sample.
#: vector (F), sequence (L, F), map1d (C, L), map2d (C, H, W).
LAYOUTS: Final[Mapping[str, int]] = {"vector": 1, "sequence": 2, "map1d": 2, "map2d": 3}
#: Layouts that have their features first, as channels; all others have them last.
CHANNELS_FIRST: Final = frozenset({"map1d", "map2d"})
#: Element types of parameters, with their size in bytes.
DTYPES: Final[Mapping[str, int]] = {"float32": 4, "float64": 8}
FEATURES_MAX: Final = 65_536
_NAME_CHARACTERS_MAX: Final = 128
_PARAMETERS_MAX: Final = 32


def make_request(
    blueprint_id: str,
    parameters: Mapping[str, float],
    *,
    layout: str,
    in_shape: Sequence[int],
    out_shape: Sequence[int] | None = None,
    dtype: str = "float32",
) -> ly.KernelRequestSpec:
    """Return the request for one kernel; without `out_shape` it keeps the shape of its input.

    Shapes are those of one sample, without the batch dimension.

    Raises:
        UsageError: a field is malformed (`check_request`).
    """
    out = in_shape if out_shape is None else out_shape
    try:
        request = ly.KernelRequestSpec(
            blueprint_id=blueprint_id,
            parameters=parameters,
            layout=layout,
            in_shape=in_shape,
            out_shape=out,
            dtype=dtype,
        )
    except (TypeError, ValueError) as error:
        raise _malformed(str(blueprint_id), str(error)) from error
    check_request(request)
    return request


def check_request(request: ly.KernelRequestSpec) -> None:
    """Refuse a request that no kernel could answer, whatever its blueprint.

    Raises:
        UsageError: no blueprint, an unknown layout or element type, an impossible shape, positions that
            differ between input and output, or a parameter that is not finite.
    """
    name = request.blueprint_id
    if not 0 < len(name) <= _NAME_CHARACTERS_MAX:
        raise _malformed(name[:_NAME_CHARACTERS_MAX], "a blueprint is named by 1 to 128 characters")
    if request.layout not in LAYOUTS:
        raise _malformed(name, f"layout {request.layout!r} is none of {sorted(LAYOUTS)}")
    if request.dtype not in DTYPES:
        raise _malformed(name, f"dtype {request.dtype!r} is none of {sorted(DTYPES)}")
    for side, shape in (("in_shape", request.in_shape), ("out_shape", request.out_shape)):
        if len(shape) != LAYOUTS[request.layout] or not all(0 < size <= FEATURES_MAX for size in shape):
            raise _malformed(
                name,
                f"{side} {list(shape)} is not {LAYOUTS[request.layout]} size(s) of 1 to {FEATURES_MAX} "
                f"as {request.layout!r} has it",
            )
    if positions(request.layout, request.in_shape) != positions(request.layout, request.out_shape):
        raise _malformed(name, f"a kernel keeps positions: {list(request.in_shape)} to {list(request.out_shape)}")
    if len(request.parameters) > _PARAMETERS_MAX:
        raise _malformed(name, f"{len(request.parameters)} parameters, at most {_PARAMETERS_MAX}")
    for parameter, value in request.parameters.items():
        if not math.isfinite(value) or len(parameter) > _NAME_CHARACTERS_MAX:
            raise _malformed(name, f"parameter {parameter[:_NAME_CHARACTERS_MAX]!r} = {value} is not finite")


def positions(layout: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of a sample's shape without that of its features."""
    return tuple(shape[1:] if layout in CHANNELS_FIRST else shape[:-1])


def features_of(layout: str, shape: Sequence[int]) -> int:
    """Return the number of features, or channels, in a sample's shape."""
    return shape[0] if layout in CHANNELS_FIRST else shape[-1]


def request_fields(request: ly.KernelRequestSpec) -> dict[str, object]:
    """Return the request field by field, ready for `canonical_json`; -0.0 is written as 0.0."""
    return {
        "blueprint_id": request.blueprint_id,
        "dtype": request.dtype,
        "in_shape": list(request.in_shape),
        "layout": request.layout,
        "out_shape": list(request.out_shape),
        "parameters": {name: value + 0.0 for name, value in request.parameters.items()},
    }


def kernel_id(request: ly.KernelRequestSpec) -> Digest:
    """Return the name of the kernel that `request` asks for: SHA-256 over its canonical form.

    Raises:
        UsageError: the request is malformed (`check_request`).
    """
    check_request(request)
    return sha256_hex(canonical_json(request_fields(request)))


def guard_digest(request: ly.KernelRequestSpec) -> Digest:
    """Return the SHA-256 over what the kernel accepts: shape and layout of its input, and its element type."""
    accepted = {"dtype": request.dtype, "in_shape": list(request.in_shape), "layout": request.layout}
    return sha256_hex(canonical_json(accepted))


def _malformed(name: str, cause: str) -> UsageError:
    return UsageError(
        f"kernel request for blueprint {name!r} is malformed", cause=cause, next_step="correct the request"
    )
