"""The rehearsal of G1: what it compares, how often it waits for a device, and when its work is counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from esper.core.flops import count_multiply_adds
from esper.kasmina.bed._rehearsal import Precision
from esper.kasmina.grafting._contents import Contents, contents_of
from esper.kasmina.grafting._seed import PassFocus
from esper.kasmina.testing import InMemoryRuntime
from esper.leyline import messages as ly
from tests.kasmina.support import HOSTS, Loop, all_bytes, batch, seeded
from tests.kasmina.test_gate_faults import Trick, failed

LARGE = 40_000
TENSORS: dict[str, Callable[[], Tensor]] = {
    "small": lambda: torch.arange(7.0),
    "large": lambda: torch.arange(float(LARGE)),
    "large, not in words of 8 bytes": lambda: torch.arange(LARGE, dtype=torch.int16)[: LARGE - 1],
    "half": lambda: torch.ones(5, dtype=torch.bfloat16),
    "bool": lambda: torch.zeros(3, dtype=torch.bool),
    "no dimension": lambda: torch.tensor(3),
    "empty": lambda: torch.zeros(0),
    "strided": lambda: torch.arange(6.0).reshape(2, 3).t(),
}


def held() -> dict[str, Tensor]:
    return {name: make() for name, make in TENSORS.items()}


def test_contents_that_are_alike() -> None:
    """Goal: no false alarm. Method: the same values in other tensors."""
    assert Contents.of(held()).changes(Contents.of(held())) == 0
    assert Contents.of({}).changes(Contents.of({})) == 0


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", [name for name, make in TENSORS.items() if make().numel()])
def test_one_value_that_changed_is_counted_once(name: str, quick: bool) -> None:
    """Goal: every kind of tensor is compared. Method: write to the last value of one, through `.data`."""
    tensors = held()
    before = Contents.of(tensors)
    assert before.changes(Contents.of(tensors, like=before if quick else None)) == 0
    last = tensors[name].data.view(-1) if tensors[name].is_contiguous() else tensors[name].data[-1]
    last[-1] = ~last[-1] if last.dtype == torch.bool else last[-1] + 1
    assert before.changes(Contents.of(tensors, like=before if quick else None)) == 1


@pytest.mark.parametrize("name", ["small", "large", "half"])
def test_other_memory_behind_the_same_tensor_is_read(name: str) -> None:
    """Goal: what is kept from before hides nothing. Method: other memory, other values, another size."""
    changes: list[Callable[[Tensor], Tensor]] = [Tensor.clone, lambda each: each + 1, lambda each: each[:-1].clone()]
    for change, found in zip(changes, (0, 1, 1), strict=True):
        tensors = held()
        before = Contents.of(tensors)
        tensors[name].data = change(tensors[name])
        assert before.changes(Contents.of(tensors, like=before)) == found
    tensors = held()
    before = Contents.of(tensors)
    tensors[name].resize_(2)
    assert before.changes(Contents.of(tensors, like=before)) == 1


def test_what_is_new_gone_or_of_another_size_is_a_change() -> None:
    """Goal: a gradient that appears is seen. Method: one tensor less, one more, one that grew past what is copied."""
    tensors = held()
    before = Contents.of(tensors)
    del tensors["half"]
    tensors["new"] = torch.zeros(1)
    tensors["small"] = torch.zeros(LARGE)
    assert before.changes(Contents.of(tensors)) == 3


class Waits(TorchDispatchMode):
    """Counts operators that make the CPU wait for a device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # unannotated in torch
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        waiting = ("_local_scalar_dense", "equal", "nonzero", "is_nonzero", "item")
        self.count += getattr(func, "_overloadpacket", func).__name__ in waiting
        return func(*args, **(kwargs or {}))


def test_a_comparison_waits_once() -> None:
    """Goal: a germination does not wait for each tensor. Method: count what waits, on a host of three layers."""
    model = seeded(HOSTS["transformer"][0])
    functional.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
    with Waits() as waits:
        before = contents_of(model)
        after = contents_of(model)
    assert waits.count == 0
    with waits:
        assert before.changes(after) == 0
    assert waits.count == 1


def test_a_germination_waits_a_few_times_whatever_the_host() -> None:
    """Goal: the stall of a graft does not grow with the host. Method: count what waits in germinations on hosts of one
    layer and of four.
    """
    counts = []
    for layers in (1, 4):
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Linear(12, 12), nn.ReLU()) for _ in range(layers)]
        loop = Loop(nn.Sequential(*blocks, nn.Linear(12, 3)), ["0"])
        loop.step()
        with Waits() as waits:
            assert loop.germinate("0").result == ly.COMMAND_RESULT_APPLIED
        counts.append(waits.count)
    assert counts[0] == counts[1] <= 8


@pytest.mark.parametrize("name", HOSTS)
def test_the_work_is_counted_after_the_edge_and_is_the_same(name: str) -> None:
    """Goal: nobody waits at the edge for a count, and the figure does not depend on when it is read. Method: count what
    the edge itself runs; read the figure at the edge, after a step and after an epoch; compare with the pass itself.
    """
    factory, slot = HOSTS[name]
    figures = []
    for read in ("at the edge", "after a step", "after an epoch"):
        loop = Loop(seeded(factory), [slot])
        loop.step()
        loop.epoch = 1
        loop.manager.end_epoch(1)
        before, states = loop.manager.multiply_adds, torch.default_generator.get_state()
        loop.germinate(slot)
        bed = loop.manager._bed
        assert bed._uncounted is not None
        _, rehearsal = bed._uncounted
        weights = all_bytes(loop.model)
        if read == "at the edge":
            assert loop.manager.multiply_adds - before == count_multiply_adds(rehearsal.again)
            assert all_bytes(loop.model) == weights
            assert torch.equal(torch.default_generator.get_state(), states), "a count draws nothing"
        loop.step()
        assert bed._uncounted is None, "a step is the latest"
        after_step = loop.manager.multiply_adds
        loop.manager.end_epoch(2)
        figures.append((after_step, loop.manager.multiply_adds, all_bytes(loop.model)))
    assert figures[0] == figures[1] == figures[2]
    assert figures[0][0] > before


def test_a_batch_like_the_rehearsals_is_not_counted_twice() -> None:
    """Goal: one pass for the count of a shape. Method: a probe as large as the batches; the first shadow pass finds its
    cost known.
    """
    loop = Loop(seeded(HOSTS["mlp"][0]), ["1"], probe=[batch(-1)])
    loop.step()
    seed_id = loop.germinate("1").seed_id
    rehearsal = loop.manager.multiply_adds
    costs = dict(loop.manager._bed._costs)
    assert [key[:2] for key in costs if isinstance(key, tuple)] == [("shadow", seed_id)]
    loop.step()
    assert loop.manager._bed._costs == costs
    assert loop.manager.multiply_adds == 2 * rehearsal


def test_a_count_is_of_the_precision_of_the_edge() -> None:
    """Goal: autocast around a step changes no figure. Method: germinate without, count within, look at it."""
    seen: list[bool] = []

    class Looks(Trick):
        def forward(self, x_BF: Tensor) -> Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().forward(x_BF)

    runtime = InMemoryRuntime({"LOOKS": lambda request, _: Looks(request.in_shape[0], request.out_shape[0], "sound")})
    loop = Loop(seeded(HOSTS["mlp"][0]), ["1"], runtime=runtime)
    loop.germinate("1", "LOOKS")
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert Precision.now(()).kinds[0][1]
        loop.manager._bed.count_rehearsal()
        assert torch.is_autocast_enabled("cpu")
    assert seen == [False]


def test_who_reached_the_host_is_not_run_again() -> None:
    """Goal: a kernel that G1 refused for a write does not write twice. Method: one that writes and counts."""
    reached: list[nn.Module] = []
    writes: list[int] = []

    class Writes(Trick):
        def forward(self, x_BF: Tensor) -> Tensor:
            if reached and torch.is_grad_enabled():
                next(reached[0].parameters()).data.add_(1.0)
                writes.append(1)
            return super().forward(x_BF)

    runtime = InMemoryRuntime({"WRITES": lambda request, _: Writes(request.in_shape[0], request.out_shape[0], "sound")})
    loop = Loop(seeded(HOSTS["mlp"][0]), ["1"], runtime=runtime)
    reached.append(loop.model)
    assert "host_changed_by_seed" in failed(loop.germinate("1", "WRITES"), ly.SEED_GATE_G1_GRADIENT_HEALTH)
    loop.step()
    assert loop.manager.multiply_adds == 0
    assert writes == [1]


def test_a_pass_within_a_pass_gives_the_outer_one_back() -> None:
    """Goal: a count in the middle of a measurement leaves it alone. Method: nested focuses."""
    focus, one, other = PassFocus(), object(), object()
    with focus.on(muted=one):  # type: ignore[arg-type]  # only its identity is looked at
        with focus.on(shadowed=other, instead=True):  # type: ignore[arg-type]  # as above
            assert (focus.shadowed, focus.muted, focus.instead) == (other, None, True)
        assert (focus.shadowed, focus.muted, focus.instead) == (None, one, False)
    assert (focus.shadowed, focus.muted, focus.instead) == (None, None, False)
