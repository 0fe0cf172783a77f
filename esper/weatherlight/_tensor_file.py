"""Tensors and facts as the bytes of one safetensors file, which depend on both and on nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from safetensors.torch import save
from torch import Tensor

_LENGTH_BYTES: Final = 8
#: Where the tensors begin is a multiple of this, as the format's own writer has it.
_ALIGNMENT: Final = 8


def tensor_file(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> bytes:
    """Return the file that holds `tensors` by name and `facts` as its metadata, beside the framework's name.

    Equal contents give equal bytes, in every process. Any reader of safetensors opens it.
    """
    content = save({**tensors}, metadata={"format": "pt", **facts})
    # The library writes its metadata in the order of a hash table, which is another one each time.
    begin = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    header = json.loads(content[_LENGTH_BYTES:begin])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + content[begin:]
