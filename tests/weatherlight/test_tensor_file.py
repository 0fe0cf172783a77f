"""A file of tensors is a function of what it holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from esper.weatherlight._tensor_file import tensor_file
from esper.weatherlight._verify_runs import _write

FACTS = {"run_id": "run-1", "epoch": "4", "weights_digest": "ab\u00e9", "more": '"quoted"'}


def weights() -> dict[str, torch.Tensor]:
    """Return tensors of several kinds."""
    return {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(3), "c": torch.ones(5, dtype=torch.bfloat16)}


def test_equal_contents_give_equal_bytes() -> None:
    """Goal: the order of facts and tensors tells nothing. Method: write the same thirty times, in two orders."""
    turned = dict(reversed(FACTS.items()))
    files = {tensor_file(weights(), FACTS if turn % 2 else turned) for turn in range(30)}
    assert len(files) == 1


def test_any_reader_opens_it(tmp_path: Path) -> None:
    """Goal: what is written is safetensors. Method: read tensors and facts with the library's own reader."""
    path = tmp_path / "net.safetensors"
    path.write_bytes(tensor_file(weights(), FACTS))
    read = load_file(path)
    assert read.keys() == weights().keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in weights().items())
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt", **FACTS}


def test_a_restored_epoch_has_one_sum(tmp_path: Path) -> None:
    """Goal: who restores twice may compare the files. Method: write an epoch's weights eight times."""
    sums = set()
    for turn in range(8):
        _write(tmp_path / f"{turn}.safetensors", weights(), FACTS)
        sums.add(hashlib.sha256((tmp_path / f"{turn}.safetensors").read_bytes()).hexdigest())
    assert len(sums) == 1
