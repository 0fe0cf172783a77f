"""What a host's tensors hold, before and after a pass that may change none of it; compared where the tensors lie.

A tensor of a few kilobytes is kept as a copy, all of them of a device in one; of a larger one the sum of its words is
kept, modulo 2^64. Neither is brought to the CPU: a comparison waits once for each device, not once for each tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

#: A launch costs more than copying so many bytes does.
_COPIED_BYTES_MAX: Final = 16 * 1024


@dataclass(frozen=True)
class _Flat:
    """A tensor seen in one row of integers, which shares its memory wherever that is in one piece."""

    tensor: Tensor
    pointer: int
    words: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> _Flat:
        return cls(tensor, tensor.data_ptr(), _words_of(tensor.detach().reshape(-1)))

    def is_still(self, tensor: Tensor) -> bool:
        """Whether it shows what this very tensor holds now, too: nobody gave the tensor other memory."""
        return (
            tensor is self.tensor
            and tensor.data_ptr() == self.pointer == self.words.data_ptr()
            and tensor.nbytes == self.words.nbytes
        )


@dataclass
class _Gathered:
    """What one device holds of some tensors, while it is gathered."""

    copied: list[tuple[str, Tensor]] = field(default_factory=list)
    summed: list[tuple[str, Tensor]] = field(default_factory=list)

    def add(self, name: str, words: Tensor) -> None:
        if words.dtype == torch.uint8:
            self.copied.append((name, words))
        else:
            self.summed.append((name, words.sum(dtype=torch.int64)))


@dataclass(frozen=True)
class _Held:
    """What one device holds of some tensors: names, and their bytes and sums in the names' order."""

    copied: tuple[tuple[str, int], ...]
    summed: tuple[str, ...]
    bytes_N: Tensor | None
    sums_M: Tensor | None

    @classmethod
    def of(cls, gathered: _Gathered) -> _Held:
        copies, sums = ([tensor for _, tensor in each] for each in (gathered.copied, gathered.summed))
        return cls(
            tuple((name, len(flat)) for name, flat in gathered.copied),
            tuple(name for name, _ in gathered.summed),
            torch.cat(copies) if copies else None,
            torch.stack(sums) if sums else None,
        )

    def is_like(self, other: _Held) -> bool:
        return (self.copied, self.summed) == (other.copied, other.summed)

    def differs(self, other: _Held) -> Tensor | None:
        """Return whether anything differs from another one that is like this, 0-d; None where nothing is held."""
        pairs = ((self.bytes_N, other.bytes_N), (self.sums_M, other.sums_M))
        found = [(ours != theirs).any() for ours, theirs in pairs if ours is not None and theirs is not None]
        return torch.stack(found).any() if found else None

    def by_name(self) -> dict[str, bytes | int]:
        found: dict[str, bytes | int] = {}
        if self.bytes_N is not None:
            parts = torch.split(self.bytes_N.cpu(), [size for _, size in self.copied])
            found |= {name: bytes(part.tolist()) for (name, _), part in zip(self.copied, parts, strict=True)}
        if self.sums_M is not None:
            found |= dict(zip(self.summed, self.sums_M.tolist(), strict=True))
        return found


@dataclass(frozen=True)
class Contents:
    """What tensors held when `of` was called; kept on their devices."""

    held: Mapping[torch.device, _Held]
    flats: Mapping[str, _Flat]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], *, like: Contents | None = None) -> Contents:
        """Take what `tensors` hold now, by name. Waits for nothing, and sees writes that raise no version too.

        Quicker with the contents of before, where most tensors lie where they lay then.
        """
        known = {} if like is None else like.flats
        flats = {
            name: flat if (flat := known.get(name)) is not None and flat.is_still(tensor) else _Flat.of(tensor)
            for name, tensor in tensors.items()
        }
        gathered: dict[torch.device, _Gathered] = {}
        for name, flat in flats.items():
            gathered.setdefault(flat.words.device, _Gathered()).add(name, flat.words)
        return cls({device: _Held.of(each) for device, each in gathered.items()}, flats)

    def changes(self, later: Contents) -> int:
        """Return how many tensors are others, are new or are gone. Waits once for each device."""
        devices = self.held.keys()
        if devices == later.held.keys() and all(self.held[at].is_like(later.held[at]) for at in devices):
            flags = [self.held[at].differs(later.held[at]) for at in devices]
            if not any(bool(flag) for flag in flags if flag is not None):
                return 0
        before, after = self._by_name(), later._by_name()
        return sum(before.get(name) != after.get(name) for name in before | after)

    def _by_name(self) -> dict[str, bytes | int]:
        return {name: what for held in self.held.values() for name, what in held.by_name().items()}


def contents_of(model: nn.Module, *, like: Contents | None = None) -> Contents:
    """Take what every parameter, buffer and gradient of `model` holds now; `like` as for `Contents.of`."""
    parameters = dict(model.named_parameters())
    gradients = {f"{name} (gradient)": each.grad for name, each in parameters.items() if each.grad is not None}
    return Contents.of({**parameters, **dict(model.named_buffers()), **gradients}, like=like)


def _words_of(flat: Tensor) -> Tensor:
    """Return the content as integers: bytes of what is copied, else of 8 bytes, which are summed faster, or of one."""
    if flat.nbytes <= _COPIED_BYTES_MAX:
        return flat.view(torch.uint8)
    size = flat.element_size()
    whole = flat.numel() * size % 8 == 0 and flat.storage_offset() * size % 8 == 0
    return flat.view(torch.int64 if whole else torch.int8)
