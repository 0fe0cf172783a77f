"""The state digest: one SHA-256 that names the exact weights and buffers of a network.

Canonical layout (version 1), all integers little-endian and unsigned:

    magic      the 14 bytes "esper.state.1\\n"
    count      u64, number of tensors
    then for each tensor, in the order of its name's UTF-8 bytes:
      name     u32 length, then UTF-8
      dtype    u32 length, then ASCII as torch calls it without "torch.": "float32", "int64", "bool"
      shape    u32 number of dimensions, then u64 each
      bytes    u64 length, then the elements in row-major order, each little-endian

Every length comes before what it measures, so no two different states share an encoding. Neither
device, strides, `requires_grad` nor the memory order of the machine enters; the sign of zero and the
payload of a NaN do.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from esper.core.errors import UsageError
from esper.core.ids import Digest

MAGIC: Final = b"esper.state.1\n"


class _Sink(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...


def state_digest(tensors: Mapping[str, Tensor]) -> Digest:
    """Return the SHA-256 over the canonical layout of `tensors` as 64 hexadecimal digits.

    Any dense dtype and shape on any device; nothing is copied but what must leave its device or
    become contiguous.

    Raises:
        UsageError: a tensor is sparse or quantised, which has no canonical bytes.
    """
    sink = hashlib.sha256()
    sink.update(MAGIC)
    sink.update(len(tensors).to_bytes(8, "little"))
    for name, tensor in sorted(tensors.items(), key=lambda item: item[0].encode()):
        _feed(sink, name, tensor)
    return Digest(sink.hexdigest())


def module_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers of `module` by name: what a checkpoint of it holds.

    The tensors are the module's own, detached, not copies.

    Raises:
        UsageError: the module keeps extra state that is not a tensor, so that no digest could cover it.
    """
    state: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise UsageError(
                f"the state entry {name!r} of {type(module).__name__} is no tensor",
                cause=f"it is a {type(value).__name__}, and a state digest covers tensors only",
                next_step="keep it in a buffer (register_buffer), or leave it out of the module's state",
            )
        state[name] = value
    return state


def module_digest(module: nn.Module) -> Digest:
    """Return the state digest of `module`'s parameters and persistent buffers."""
    return state_digest(module_state(module))


def _feed(sink: _Sink, name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise UsageError(
            f"the tensor {name!r} has no state digest",
            cause=f"its layout is {tensor.layout} and its dtype {tensor.dtype}; only dense, plain tensors have one",
            next_step="convert it with .to_dense() or .dequantize()",
        )
    _feed_text(sink, name)
    _feed_text(sink, str(tensor.dtype).removeprefix("torch."))
    sink.update(tensor.dim().to_bytes(4, "little"))
    for size in tensor.shape:
        sink.update(size.to_bytes(8, "little"))
    content = _little_endian_bytes(tensor)
    sink.update(content.nbytes.to_bytes(8, "little"))
    sink.update(content)


def _feed_text(sink: _Sink, text: str) -> None:
    encoded = text.encode()
    sink.update(len(encoded).to_bytes(4, "little"))
    sink.update(encoded)


def _little_endian_bytes(tensor: Tensor) -> memoryview:
    """Return the row-major elements of a dense tensor as bytes, least significant byte first."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if plain.is_complex():
        plain = torch.view_as_real(plain).reshape(-1)
    content = plain.view(torch.uint8)
    if sys.byteorder == "big" and plain.element_size() > 1:
        content = content.reshape(-1, plain.element_size()).flip(1).reshape(-1).contiguous()
    return memoryview(content.numpy())  # type: ignore[arg-type]  # numpy exports the buffer protocol by PEP 3118
