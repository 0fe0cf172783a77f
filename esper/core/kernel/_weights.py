"""The tensors of a kernel out of a safetensors file, read as narrowly as our own forge writes it.

The format (https://github.com/huggingface/safetensors) is eight bytes of length, a JSON header, and the tensors' bytes.
Here the header must name exactly the tensors that the spec asks for, each once, and their bytes must lie side by
side from the first to the last: no gap that could hide something, no overlap, no metadata, no name twice. And it must
be written as the forge's writer does (compact JSON in the order of the bytes, filled up with spaces to a multiple of
eight), so that a kernel has one file and one digest.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from esper.core.errors import IntegrityError
from esper.core.kernel._canonical import nesting
from esper.core.kernel._manifest import WEIGHTS_HEADER_BYTES_MAX
from esper.core.kernel._request import DTYPES
from esper.core.kernel._spec import KernelPlan

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]

_DTYPES: Final[Mapping[str, tuple[str, str]]] = {"float32": ("F32", "<f4"), "float64": ("F64", "<f8")}
_LENGTH_BYTES: Final = 8
_HEADER_ALIGNED_BYTES: Final = 8
#: A tensor's entry in a list of shapes in an object of entries.
_NESTING_MAX: Final = 3


def read_weights(content: bytes, plan: KernelPlan) -> Arrays:
    """Return the tensors of `plan` by name, read-only views of `content`; all of them are finite, the end is zero.

    Raises:
        IntegrityError: the file is not as this module says, or a value is not.
    """
    length = _header_length(content, plan)
    header = content[_LENGTH_BYTES : _LENGTH_BYTES + length]
    entries = _header(header)
    asked = {name: list(tensor.shape) for name, tensor in plan.tensors.items()}
    if {name: entry[:2] for name, entry in entries.items()} != {
        name: (_DTYPES[plan.dtype][0], shape) for name, shape in asked.items()
    }:
        raise _refused("the weights hold other tensors than the spec asks for")
    _check_layout(entries, plan)
    if header != _canonical_header(plan):
        raise _no_safetensors("its header is written in another way")
    arrays = {
        name: np.frombuffer(
            content, _DTYPES[plan.dtype][1], plan.tensors[name].elements, _LENGTH_BYTES + length + begin
        ).reshape(plan.tensors[name].shape)
        for name, (_, _, (begin, _)) in entries.items()
    }
    _check_values(arrays)
    return arrays


def _header_length(content: bytes, plan: KernelPlan) -> int:
    """Hold the file's size against the plan before anything is allocated for it; return the length of its header."""
    length: int | None = struct.unpack("<Q", content[:8])[0] if len(content) >= _LENGTH_BYTES else None
    if length is None or length > WEIGHTS_HEADER_BYTES_MAX:
        raise _refused(f"the weights announce a header of {length} bytes, at most {WEIGHTS_HEADER_BYTES_MAX} are read")
    data_bytes = plan.elements * DTYPES[plan.dtype]
    if len(content) != _LENGTH_BYTES + length + data_bytes:
        raise _refused(f"the weights have {len(content)} bytes, the spec asks for {data_bytes} and a header")
    return length


def _header(content: bytes) -> dict[str, tuple[str, list[int], tuple[int, int]]]:
    """Return dtype, shape and place of each tensor that the header names."""
    if nesting(content) > _NESTING_MAX:
        raise _no_safetensors("its header is nested deeper than one is")
    try:
        header = json.loads(content.decode("utf-8"), object_pairs_hook=_once)
    except ValueError as error:
        raise _no_safetensors(str(error)) from error
    if not isinstance(header, dict):
        raise _no_safetensors("its header is no object")
    return {name: _entry(name, entry) for name, entry in header.items()}


def _entry(name: str, entry: object) -> tuple[str, list[int], tuple[int, int]]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _no_safetensors(f"{name[:80]!r} has other fields than a tensor has")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(dtype, str) and _counts(shape) and _counts(offsets) and len(offsets) == 2):
        raise _no_safetensors(f"{name[:80]!r} has a field of another kind")
    return dtype, shape, (offsets[0], offsets[1])


def _counts(value: object) -> bool:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)


def _check_layout(entries: Mapping[str, tuple[str, list[int], tuple[int, int]]], plan: KernelPlan) -> None:
    """Refuse tensors whose bytes overlap, leave a gap, or are not as many as their shapes say."""
    reached = 0
    for name, (_, _, (begin, end)) in sorted(entries.items(), key=lambda entry: (entry[1][2], entry[0])):
        size = plan.tensors[name].elements * DTYPES[plan.dtype]
        if (begin, end) != (reached, reached + size):
            raise _no_safetensors(f"{name} lies at {begin} to {end}, not at {reached} to {reached + size}")
        reached = end


def _canonical_header(plan: KernelPlan) -> bytes:
    """Return the header of the one file that holds the tensors of `plan`, which are in name order."""
    entries, reached = {}, 0
    for name, tensor in plan.tensors.items():
        end = reached + tensor.elements * DTYPES[plan.dtype]
        dtype, shape = _DTYPES[plan.dtype][0], list(tensor.shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [reached, end]}
        reached = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % _HEADER_ALIGNED_BYTES)


def _check_values(arrays: Arrays) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise _refused(f"{name} holds a value that is not finite")
        # A kernel that acts before it was trained would change the host at the moment it is grafted.
        if name.startswith("end.") and array.any():
            raise _refused(f"{name} is not zero")


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _no_safetensors(cause: str) -> IntegrityError:
    return _refused(f"the weights are no safetensors as a forge writes them: {cause}")


def _refused(cause: str) -> IntegrityError:
    return IntegrityError("kernel artifact is refused", cause=cause, next_step="have the kernel compiled again")
