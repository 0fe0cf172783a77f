"""Shipped hosts and tasks beyond the perceptron: convolutions, a causal transformer, spirals and characters."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.core.digest import module_digest
from esper.core.errors import UsageError
from esper.core.numerics import data_digest
from esper.leyline import messages as ly
from esper.tolaria import MemoryJournal, Split, Task, TolariaTrainer, evaluate, load_task, prepared
from esper.tolaria._environment import Environment, differences
from esper.tolaria.tasks import _registry
from esper.tolaria.tasks._charlm import CLASSES, LENGTH, charlm
from esper.tolaria.tasks._tasks import cross_entropy
from esper.tolaria.tasks._transformer import CausalTransformer, transformer_host
from tests.tolaria.small import request, scripted, static

#: Every shipped host besides the perceptron: task, host, layout of its slots, multiply-adds of a sample's forward.
HOSTS = [
    ("mnist1d", "cnn", 4 * 20 * 3 + 4 * 20 * 12 + 4 * 10 * 12 + 40 * 10),
    ("mnist1d", "cnn_bn", 4 * 20 * 3 + 4 * 20 * 12 + 4 * 10 * 12 + 40 * 10),
    ("digits", "cnn", 2 * 16 * 9 + 2 * 16 * 18 + 2 * 4 * 18 + 8 * 10),
    ("digits", "cnn_bn", 2 * 16 * 9 + 2 * 16 * 18 + 2 * 4 * 18 + 8 * 10),
    # Two blocks of four projections, two products of attention and two of the feed-forward network; and the head.
    ("charlm", "transformer", 2 * (4 * 64 * 32 * 32 + 2 * 64 * 64 * 32 + 2 * 64 * 32 * 32) + 64 * 32 * CLASSES),
]


@pytest.mark.parametrize(("task", "host", "multiply_adds"), HOSTS, ids=lambda value: str(value))
def test_a_host_takes_its_task_and_costs_what_its_shapes_say(task: str, host: str, multiply_adds: int) -> None:
    """Goal: hosts fit, are counted right, and are made alike from a seed. Method: by hand; two makes, another seed."""
    with prepared(request(task=task, host=host)) as setup:
        first = module_digest(setup.model)
        outputs = setup.model(setup.train.inputs[:3])
        assert outputs.shape == (*setup.train.targets[:3].shape, setup.task.classes)
        assert setup.multiply_adds_per_sample == multiply_adds
    with prepared(request(task=task, host=host)) as setup:
        assert module_digest(setup.model) == first
    with prepared(request(task=task, host=host, seed=12)) as setup:
        assert module_digest(setup.model) != first


@pytest.mark.parametrize("task", ["mnist1d", "digits"])
def test_only_the_one_with_batch_norm_has_it(task: str) -> None:
    """Goal: a pair of hosts that differ in batch norm alone. Method: count the norms, and their parameters."""
    plain, normed = load_task(task).host("cnn").module, load_task(task).host("cnn_bn").module
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    assert sum(isinstance(part, kinds) for part in plain.modules()) == 0
    norms = [part for part in normed.modules() if isinstance(part, kinds)]
    assert len(norms) == 3
    extra = sum(parameter.numel() for norm in norms for parameter in norm.parameters())
    assert _size(normed) == _size(plain) + extra


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_no_position_of_the_transformer_sees_a_later_one() -> None:
    """Goal: a language model that cannot cheat. Method: change a token; no output before it moves by a bit."""
    torch.manual_seed(1)
    host = transformer_host(classes=11, length=12, width=8, heads=2, depth=2, inner=8)().module.eval()
    tokens = torch.randint(0, 11, (4, 12), generator=torch.Generator().manual_seed(2))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 11
    before, after = host(tokens), host(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])
    assert torch.allclose(host(tokens[:, :5]), before[:, :5], atol=1e-6), "a shorter window is read as its beginning"


def test_attention_is_that_of_torch() -> None:
    """Goal: attention written out is the usual one. Method: against torch's own on the same projections."""
    torch.manual_seed(3)
    attention = transformer_host(classes=5, length=6, width=8, heads=2, depth=1, inner=8)().module.eval()
    assert isinstance(attention, CausalTransformer)
    block = attention.blocks[0].attention
    x = torch.randn(3, 6, 8)
    query, key, value = block.project_in(x).view(3, 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
    heard = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    expected = block.project_out(heard.transpose(1, 2).reshape(3, 6, 8))
    assert torch.allclose(block(x), expected, atol=1e-6)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    """Goal: a clear word for an impossible host. Method: three heads for eight features."""
    with pytest.raises(UsageError, match="a transformer of width 8 cannot have 3 heads: each head has an equal part"):
        transformer_host(classes=5, length=6, width=8, heads=3, depth=1, inner=8)()


def test_the_default_loss_of_sequences_is_the_mean_over_all_positions() -> None:
    """Goal: [N, L] targets need no loss of their own. Method: against torch's loss with classes in the second place."""
    generator = torch.Generator().manual_seed(4)
    outputs = torch.randn(6, 5, 3, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (6, 5), generator=generator)
    assert torch.allclose(cross_entropy(outputs, targets), F.cross_entropy(outputs.transpose(1, 2), targets))
    flat, first = outputs[:, 0], targets[:, 0]
    assert torch.equal(cross_entropy(flat, first), F.cross_entropy(flat, first))


class _Table(nn.Module):
    """Names for every token the class that the table gives it."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table[tokens]


def test_accuracy_of_sequences_counts_positions() -> None:
    """Goal: accuracy is the share of predictions, however samples are chunked. Method: a table that is right on 3 of 4
    tokens, on more windows than one evaluation batch holds."""
    inputs = torch.arange(4).repeat(1500, 1)
    split = Split(inputs, inputs.clone())
    table = torch.eye(4) * 9.0
    table[3] = table[0]
    found = evaluate(_Table(table), split, cross_entropy)
    assert found.accuracy == 0.75
    expected = F.cross_entropy(table[torch.arange(4)], torch.arange(4))
    assert found.loss == pytest.approx(float(expected), rel=1e-6)


def test_characters_are_cut_from_files_that_no_other_part_has() -> None:
    """Goal: an honest split of text. Method: no window of one part stands in another; a target is the next input."""
    task = load_task("charlm")
    rows = {part: {tuple(row) for row in split.inputs.tolist()} for part, split in task.parts().items()}
    assert not rows["validation"] & rows["test"]
    assert not rows["train"] & (rows["validation"] | rows["test"])
    for split in task.parts().values():
        assert split.inputs.shape == split.targets.shape == (len(split), LENGTH)
        assert split.inputs.dtype == torch.int64
        assert torch.equal(split.inputs[:, 1:], split.targets[:, :-1])
        assert 0 <= int(split.targets.min()) <= int(split.targets.max()) < task.classes
    assert [len(split) for split in task.parts().values()] == [2048, 256, 512]


def test_another_standard_library_is_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a re-execution on another Python's text names the difference. Method: one character changed in one module
    after a run's start was recorded; then a module that is missing.
    """
    library = Path(sysconfig.get_path("stdlib"))
    for module in library.glob("*.py"):
        (tmp_path / module.name).write_bytes(module.read_bytes())
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    here = data_digest(load_task("charlm").arrays())
    assert data_digest(charlm().arrays()) == here
    text = (tmp_path / "pathlib.py").read_text(encoding="utf-8")
    (tmp_path / "pathlib.py").write_text("#" + text, encoding="utf-8")
    there = data_digest(charlm().arrays())
    asked = request(task="charlm", host="transformer")
    with prepared(asked) as setup:
        recorded = Environment.here(setup)
    started = ly.TrainingRunStarted(
        attempt=1,
        numerics=recorded.numerics,
        code_version=recorded.code_version,
        dependencies_digest=recorded.dependencies_digest,
        data_digest=recorded.data_digest,
    )
    monkeypatch.setitem(_registry._SHIPPED, "charlm", charlm)
    with prepared(asked) as setup:
        (difference,) = differences((started,), Environment.here(setup))
    assert str(difference) == f"data_digest was {here} in attempt 1 and is {there} here"
    (tmp_path / "shutil.py").unlink()
    with pytest.raises(UsageError, match=r"this Python brings no source of shutil\.py: No such file"):
        charlm()


def test_the_tasks_are_alike_in_every_process() -> None:
    """Goal: no task depends on the process. Method: digests of a fresh one with another hash seed and no site."""
    code = (
        "import json; from esper.core.numerics import data_digest; from esper.tolaria import load_task\n"
        "print(json.dumps({n: data_digest(load_task(n).arrays()) for n in ('charlm', 'spirals')}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=180)
    assert json.loads(done.stdout) == {n: data_digest(load_task(n).arrays()) for n in ("charlm", "spirals")}


@pytest.mark.parametrize(
    ("task", "host", "floor"),
    [("spirals", "mlp", 0.37), ("mnist1d", "cnn", 0.15), ("digits", "cnn_bn", 0.2), ("charlm", "transformer", 0.17)],
)
def test_a_host_learns_and_repeats_to_the_bit(task: str, host: str, floor: float) -> None:
    """Goal: each kind of host learns its task, repeatably. Method: train twice in memory; digests and accuracy."""
    epochs = 1 if task == "charlm" else 4
    asked = request(task=task, host=host, epochs=epochs)
    runs = []
    for _ in range(2):
        journal = MemoryJournal(policy=scripted())
        with prepared(asked) as setup:
            result = TolariaTrainer(setup, static(setup), journal).run()
        runs.append((result, [packet.weights_digest for packet in journal.packets]))
    assert runs[0] == runs[1]
    assert runs[0][0].test.accuracy > floor


def test_a_split_counts_its_predictions() -> None:
    """Goal: positions are predictions. Method: a part of each kind."""
    assert Split(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)).predictions == 3
    assert Split(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64)).predictions == 6


def test_targets_of_three_dimensions_are_refused() -> None:
    """Goal: what nothing here measures is refused. Method: targets [N, 2, 2]."""
    split = Split(torch.zeros(4, 2), torch.zeros(4, 2, 2, dtype=torch.int64))
    with pytest.raises(UsageError, match=r"its train part has \(4, 2\) inputs for \(4, 2, 2\) targets"):
        Task(name="maps", train=split, validation=split, test=split, classes=2, hosts={})
