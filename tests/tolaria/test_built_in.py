"""Hosts in any width, hosts that have kernels from their beginning, and learning rates that hold from an epoch on."""

from __future__ import annotations

import pytest
import torch

from esper.core.errors import UsageError
from esper.core.kernel import build_module, canonical_json, init_from_scratch
from esper.karn import catalogue
from esper.leyline import messages as ly
from esper.tolaria import SlotSpec, TrainingLoopConfig, load_task, prepared
from esper.tolaria.stack import prepared_stack


def _spec(blueprint: str = "BP021", *, inputs: int = 2, outputs: int = 6) -> bytes:
    offered = catalogue()[blueprint]
    parameters = {name: low for name, (low, _) in offered.parameters.items()}
    return canonical_json(offered.spec(layout="vector", shape=[inputs], out_shape=[outputs], parameters=parameters))


def _request(*specs: bytes, seed: int = 3, slot: str = "hidden", host: str = "mlp:6") -> ly.TrainingRunRequested:
    return ly.TrainingRunRequested(
        run_id=f"run-{seed}",
        task="spirals",
        host=host,
        policy="noop",
        epochs=2,
        seed=seed,
        device="cpu",
        re_executable=True,
        built_in=[ly.BuiltIn(slot=slot, spec=spec) for spec in specs],
    )


def test_a_host_has_the_width_that_its_name_says() -> None:
    """ "mlp:6" is the host of six units; a width that is none, or too large, is refused by name."""
    task = load_task("spirals")
    assert task.host("mlp:6").module.get_submodule("hidden.linear").weight.shape == (6, 2)
    for name in ("mlp:0", "mlp:4097", "mlp:x", "cnn:4", "mlp:"):
        with pytest.raises(UsageError, match="has no host"):
            task.host(name)


def test_the_host_of_a_final_shape_begins_as_its_pair_does() -> None:
    """The host's own first values are those of a run of the same seed without kernels, to the bit."""
    with prepared(_request()) as plain:
        own = {name: value.clone() for name, value in plain.model.state_dict().items()}
    with prepared(_request(_spec())) as setup:
        shaped = setup.model.state_dict()
        kernel = setup.model.get_submodule("hidden.1")
        with torch.no_grad():
            inputs = setup.train.inputs[:5]
            heard = setup.model.get_submodule("hidden")(inputs)
            apart = setup.model.get_submodule("hidden.0")(inputs) + kernel(inputs)
        cost = setup.multiply_adds_per_sample
    assert torch.equal(shaped["hidden.0.linear.weight"], own["hidden.linear.weight"])
    assert torch.equal(shaped["head.weight"], own["head.weight"])
    assert torch.equal(heard, apart)
    assert not torch.equal(heard, torch.zeros_like(heard))
    with prepared(_request()) as plain:
        assert cost > plain.multiply_adds_per_sample


def test_first_values_follow_from_the_seed_alone() -> None:
    """The same seed gives the same kernels, another gives others, and the end is not zero."""
    weights = []
    for seed in (3, 3, 4):
        with prepared(_request(_spec(), seed=seed)) as setup:
            weights.append(setup.model.get_submodule("hidden.1.end").weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert float(weights[0].abs().max()) > 0.0


@pytest.mark.parametrize("blueprint", sorted(name for name, each in catalogue().items() if "vector" in each.layouts))
def test_no_kernel_begins_silent(blueprint: str) -> None:
    """From scratch every blueprint's output depends on its input at once; a graft's does not."""
    offered = catalogue()[blueprint]
    parameters = {name: low for name, (low, _) in offered.parameters.items()}
    spec = offered.spec(layout="vector", shape=[8], parameters=parameters)
    kernel = build_module(spec, quarantine=True)
    init_from_scratch(kernel, torch.Generator().manual_seed(1))
    ends = [value for name, value in kernel.state_dict().items() if name.startswith("end.") and name != "end.bias"]
    assert all(float(value.abs().min()) > 0.0 for value in ends)


def test_a_stack_takes_such_a_host_apart() -> None:
    """Members of a stack begin with the bits of lone runs of their seeds, kernels included."""
    requests = [_request(_spec(), seed=seed) for seed in (3, 4)]
    for index, request in enumerate(requests):
        request.stack.CopyFrom(ly.StackPlace(stack_id="s", index=index, size=2))
    with prepared_stack(requests) as stack:
        found = stack.host.parameters.views(stack.host.parameters.flat_NP)
        rows = [{name: value[index].clone() for name, value in found.items()} for index in range(2)]
        assert "hidden.1.end" in stack.host.program.modules()
    for request, row in zip(requests, rows, strict=True):
        request.ClearField("stack")
        with prepared(request) as lone:
            assert all(torch.equal(row[name], value) for name, value in lone.model.named_parameters())


@pytest.mark.parametrize(
    ("spec", "slot", "says"),
    [
        (_spec(), "nowhere", "the slots are hidden"),
        (b"{}", "hidden", "keys"),
        (b"not json", "hidden", "JSON"),
        (_spec(inputs=3), "hidden", "does not take the samples"),
    ],
)
def test_what_cannot_be_built_in_is_refused(spec: bytes, slot: str, says: str) -> None:
    """A slot that there is not, a spec that is none, and one of other shapes are usage errors that say so."""
    with pytest.raises(UsageError, match=says), prepared(_request(spec, slot=slot)):
        pass


def test_learning_rates_hold_from_their_epochs_on() -> None:
    """Before the first the run's own counts; they must ascend, and a stack has none."""
    request = _request()
    request.learning_rates.add(epoch=2, learning_rate=0.1)
    request.learning_rates.add(epoch=5, learning_rate=0.2)
    config = TrainingLoopConfig.of(request, load_task("spirals"))
    assert [config.learning_rate_in(epoch) for epoch in (1, 2, 3, 5, 6)] == [3e-3, 3e-3, 0.1, 0.1, 0.2]
    request.stack.CopyFrom(ly.StackPlace(stack_id="s", index=0, size=1))
    with pytest.raises(UsageError, match="learning rate"), prepared_stack([request]):
        pass
    request.learning_rates.add(epoch=4, learning_rate=0.2)
    with pytest.raises(UsageError, match="ascending"):
        TrainingLoopConfig.of(request, load_task("spirals"))
    del request.learning_rates[:]
    request.learning_rates.add(epoch=4, learning_rate=-1.0)
    with pytest.raises(UsageError, match="learning_rate = -1"):
        TrainingLoopConfig.of(request, load_task("spirals"))


def test_a_residual_slot_reads_the_modules_output() -> None:
    """At a residual slot the kernel adds to what it reads."""
    from esper.tolaria.tasks._built_in import with_built_in

    host = load_task("spirals").host("mlp:6")
    slot = SlotSpec("hidden", "residual")
    spec = _spec(inputs=6, outputs=6)
    grown = with_built_in(host, [ly.BuiltIn(slot="hidden", spec=spec)], [slot], seed=1).module
    inputs = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    middle = grown.get_submodule("hidden.0")(inputs)
    expected = middle + grown.get_submodule("hidden.1.0")(middle)
    assert torch.equal(grown.get_submodule("hidden")(inputs), expected)
