"""The state digest: one name for one state, whatever carries it."""

from __future__ import annotations

import hashlib
import random
import struct
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from esper.core.digest import MAGIC, module_digest, module_state, state_digest
from esper.core.errors import UsageError

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@st.composite
def states(draw: st.DrawFn) -> dict[str, Tensor]:
    names = draw(st.lists(st.text("ab.é0", min_size=1, max_size=5), min_size=1, max_size=4, unique=True))
    state = {}
    for name in names:
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        state[name] = torch.randint(0, 2, shape, generator=generator).to(draw(st.sampled_from(DTYPES)))
    return state


def _scalar(value: float) -> dict[str, Tensor]:
    return {"w": torch.tensor(value)}


def test_the_canonical_layout_is_as_documented() -> None:
    """Goal: others can compute the digest. Method: write the layout out by hand for two tensors and compare."""
    state = {"b": torch.tensor([[1.5, -2.0]]), "a": torch.tensor(7, dtype=torch.int64)}
    first = b"\x01\x00\x00\x00a" + b"\x05\x00\x00\x00int64" + struct.pack("<IQq", 0, 8, 7)
    second = b"\x01\x00\x00\x00b" + b"\x07\x00\x00\x00float32" + struct.pack("<IQQQff", 2, 1, 2, 8, 1.5, -2.0)
    expected = hashlib.sha256(MAGIC + struct.pack("<Q", 2) + first + second).hexdigest()
    assert state_digest(state) == expected


@settings(deadline=None)
@given(states(), st.randoms())
def test_order_strides_and_gradients_do_not_matter(state: dict[str, Tensor], order: random.Random) -> None:
    """Goal: the digest names the values. Method: shuffle the names, store transposed, ask for gradients."""
    names = list(state)
    order.shuffle(names)
    other = {name: state[name].T.clone().T if state[name].dim() == 2 else state[name].clone() for name in names}
    for tensor in other.values():
        if tensor.is_floating_point():
            tensor.requires_grad_()
    assert state_digest(other) == state_digest(state)


@settings(deadline=None)
@given(states(), states())
def test_different_states_have_different_digests(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Goal: no collisions by construction. Method: random pairs; equal digests only for equal states."""
    same = left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and torch.equal(left[name], right[name])
        for name in left
    )
    assert (state_digest(left) == state_digest(right)) == same


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (_scalar(0.0), _scalar(-0.0)),
        ({"w": torch.zeros(2, 3)}, {"w": torch.zeros(3, 2)}),
        ({"w": torch.zeros(2)}, {"w": torch.zeros(2, 1)}),
        ({"w": torch.zeros(2)}, {"v": torch.zeros(2)}),
        ({"w": torch.zeros(1, dtype=torch.int32)}, {"w": torch.zeros(1, dtype=torch.float32)}),
        ({"a": torch.zeros(1), "b": torch.ones(1)}, {"a": torch.ones(1), "b": torch.zeros(1)}),
        ({}, {"w": torch.zeros(0)}),
    ],
    ids=["sign of zero", "shape", "dimensions", "name", "dtype", "swapped", "empty tensor"],
)
def test_close_states_are_told_apart(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Goal: nothing that differs is taken for the same. Method: pairs that differ in one respect only."""
    assert state_digest(left) != state_digest(right)


def test_every_bit_counts() -> None:
    """Goal: one changed bit shows. Method: flip each of 256 bits of a tensor in turn."""
    tensor = torch.arange(8, dtype=torch.int32)
    seen = {state_digest({"w": tensor})}
    for position in range(256):
        flipped = tensor.clone().view(torch.uint8)
        flipped[position // 8] ^= 1 << (position % 8)
        seen.add(state_digest({"w": flipped.view(torch.int32)}))
    assert len(seen) == 257


def test_complex_tensors_are_real_and_imaginary_parts_in_turn() -> None:
    """Goal: a defined form for complex numbers. Method: a lazily conjugated tensor against its plain copy."""
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    conjugated = tensor.conj()
    assert state_digest({"w": conjugated}) == state_digest({"w": torch.tensor([1 - 2j, 3 + 4j])})
    assert state_digest({"w": conjugated}) != state_digest({"w": tensor})


def test_a_module_is_its_parameters_and_persistent_buffers() -> None:
    """Goal: the digest covers what a checkpoint holds. Method: batch norm, a scratch buffer, and a changed buffer."""
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    module.register_buffer("scratch", torch.zeros(1), persistent=False)
    before = module_digest(module)
    assert set(module_state(module)) == {
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    }
    assert module_digest(module) == before
    module(torch.ones(4, 3))
    assert module_digest(module) != before


def test_a_state_without_canonical_bytes_is_refused() -> None:
    """Goal: no digest that means nothing. Method: a sparse tensor, and a module with state that is no tensor."""

    class Odd(nn.Module):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            raise AssertionError("never loaded here")

    with pytest.raises(UsageError, match=r"'w' has no state digest"):
        state_digest({"w": torch.eye(2).to_sparse()})
    with pytest.raises(UsageError, match=r"_extra_state.* is no tensor"):
        module_state(Odd())


def test_a_machine_of_the_other_byte_order_gives_the_same_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: digests hold across machines. Method: told that its memory is big-endian, the bytes are turned round."""
    value = 0x0102030405060708
    turned = int.from_bytes(value.to_bytes(8, "little"), "big")
    expected = state_digest({"w": torch.tensor([value, 1]), "b": torch.tensor([True, False])})
    monkeypatch.setattr(sys, "byteorder", "big")
    as_big_endian_memory_holds_it = {"w": torch.tensor([turned, 1 << 56]), "b": torch.tensor([True, False])}
    assert state_digest(as_big_endian_memory_holds_it) == expected
