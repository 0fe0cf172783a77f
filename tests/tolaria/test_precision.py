"""What a request may ask of a step: clipping per owner, bfloat16, a budget; recorded, and repeated from the record."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from esper.core.digest import module_digest
from esper.core.rng import derive_seed
from esper.kasmina import KasminaSeedManager
from esper.kasmina.testing import InMemoryRuntime, bypass
from esper.leyline import messages as ly
from esper.tolaria import (
    EpochStats,
    MemoryJournal,
    StaticController,
    TolariaTrainer,
    TrainingLoopConfig,
    prepared,
    re_execute,
)
from esper.tolaria._config import learning_rate_at
from esper.tolaria.loop._packet import epoch_telemetry
from esper.tolaria.loop._trainer import clip_owner
from tests.tolaria.small import command, request, rings, scripted
from tests.tolaria.test_growth import grown, schedule

ALL = {"bfloat16": 1.0, "clip_norm": 0.05, "gradient_accumulation": 2.0}


def trained(**hyperparameters: float) -> MemoryJournal:
    """Train the small task without growth and return its journal."""
    journal = MemoryJournal(policy=scripted())
    with prepared(request(hyperparameters=hyperparameters)) as setup:
        TolariaTrainer(setup, StaticController(), journal).run()
    return journal


def digests(journal: MemoryJournal) -> list[str]:
    return [packet.weights_digest for packet in journal.packets]


def test_a_request_asks_for_them_by_name() -> None:
    """Goal: hyperparameters reach the loop. Method: none, and each."""
    plain = TrainingLoopConfig.of(request(), rings())
    assert (plain.clip_norm, plain.bfloat16, plain.epoch_budget_seconds) == (None, False, None)
    asked = request(hyperparameters={"clip_norm": 0.5, "bfloat16": 1, "epoch_budget_seconds": 2.5})
    config = TrainingLoopConfig.of(asked, rings())
    assert (config.clip_norm, config.bfloat16, config.epoch_budget_seconds) == (0.5, True, 2.5)
    assert not TrainingLoopConfig.of(request(hyperparameters={"bfloat16": 0}), rings()).bfloat16


def test_a_clip_that_no_gradient_reaches_changes_nothing() -> None:
    """Goal: clipping only ever scales down. Method: digests under a vast norm are those without one."""
    assert digests(trained(clip_norm=1e9)) == digests(trained())


def test_a_clip_bounds_the_gradient_of_every_step() -> None:
    """Goal: the norm asked for is the norm applied. Method: the reported norm with and without a small bound."""
    free, bound = trained(), trained(clip_norm=0.01)
    assert digests(free) != digests(bound)
    assert all(packet.training_metrics["gradient_norm"] > 0.011 for packet in free.packets)
    assert all(packet.training_metrics["gradient_norm"] == pytest.approx(0.01, rel=1e-3) for packet in bound.packets)


def test_each_owner_is_clipped_by_its_own_norm() -> None:
    """Goal: a seed's gradient does not shrink the host's. Method: a submodule that another optimiser trains, with a
    gradient a thousand times the host's."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    host = torch.optim.SGD(model.parameters(), lr=0.1)
    model.append(nn.Linear(2, 2, bias=False))
    first, second = (layer.weight for layer in model if isinstance(layer, nn.Linear))
    first.grad, second.grad = torch.full((2, 2), 3.0), torch.full((2, 2), 3000.0)
    clip_owner(host, 1.0)
    assert float(first.grad.norm()) == pytest.approx(1.0, rel=1e-5)
    assert second.grad.eq(3000.0).all()
    clip_owner(host, 2.0)
    assert float(first.grad.norm()) == pytest.approx(1.0, rel=1e-5)


def _plain_loop(hyperparameters: dict[str, float]) -> str:
    """Return the digest of a loop that knows nothing of Esper's trainer, under the same numbers."""
    with prepared(request(hyperparameters=hyperparameters)) as setup:
        model, config, train = setup.model, setup.config, setup.train
        order = torch.Generator().manual_seed(derive_seed(config.seed, "order"))
        step, steps = 0, config.epochs * setup.steps_per_epoch
        for epoch in range(1, config.epochs + 1):
            torch.manual_seed(derive_seed(config.seed, "epoch", epoch))
            model.train()
            for chosen in torch.randperm(len(train), generator=order).split(config.batch_size):
                setup.optimizer.param_groups[0]["lr"] = learning_rate_at(step, steps=steps, top=config.learning_rate)
                setup.optimizer.zero_grad()
                for part in chosen.split(math.ceil(len(chosen) / config.gradient_accumulation)):
                    with torch.autocast("cpu", torch.bfloat16) if config.bfloat16 else contextlib.nullcontext():
                        loss = nn.functional.cross_entropy(model(train.inputs[part]), train.targets[part])
                    torch.autograd.backward(loss * (len(part) / len(chosen)))
                if config.clip_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
                setup.optimizer.step()
                step += 1
        return str(module_digest(model))


@pytest.mark.parametrize(
    "hyperparameters",
    [{"bfloat16": 1.0}, {"clip_norm": 0.05}, ALL],
    ids=["bfloat16", "clip", "bfloat16, clip and accumulation"],
)
def test_the_trainer_is_the_plain_loop_to_the_bit(hyperparameters: dict[str, float]) -> None:
    """Goal: what is asked for is what torch's own tools do. Method: a plain loop with them; equal weights at the end.
    The host has dropout and batch norm, so its random stream and buffers take part."""
    journal = trained(**hyperparameters)
    assert journal.packets[-1].weights_digest == _plain_loop(hyperparameters)
    assert digests(journal) != digests(trained())
    assert digests(journal) == digests(trained(**hyperparameters))


def test_bfloat16_leaves_weights_and_evaluation_in_single_precision() -> None:
    """Goal: only the training forward is coarse. Method: dtypes that the loss and the model see."""
    seen: list[tuple[bool, torch.dtype]] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append((outputs.requires_grad, outputs.dtype))
        return nn.functional.cross_entropy(outputs, targets)

    with prepared(request(hyperparameters={"bfloat16": 1}, epochs=1)) as setup:
        changed = replace(setup, task=replace(setup.task, loss=loss))
        TolariaTrainer(changed, StaticController(), MemoryJournal(policy=scripted())).run()
        assert {parameter.dtype for parameter in setup.model.parameters()} == {torch.float32}
    assert set(seen) == {(True, torch.bfloat16), (False, torch.float32)}


def _host_after(*, germinate: bool) -> tuple[dict[str, Tensor], int]:
    """Return the host's state after 220 steps with or without a seed in TRAINING, and how many seeds there were."""

    def policy(packet: ly.SystemStatePacket) -> ly.AdaptationCommand:
        if packet.current_epoch == 1 and germinate:
            ordered = command(packet, ly.COMMAND_SEED)
            ordered.seed_operation.operation = ly.SEED_OP_GERMINATE
            ordered.seed_operation.blueprint_id = "BYPASS"
            ordered.seed_operation.slot = packet.slots[0].slot
            return ordered
        return command(packet, ly.COMMAND_CONTINUE)

    factory = grown(InMemoryRuntime({"BYPASS": bypass(width=16, dropout=0.1)}))
    with prepared(_asked(4)) as setup:
        controller = factory(setup)
        assert isinstance(controller, KasminaSeedManager)
        TolariaTrainer(setup, controller, MemoryJournal(policy=policy)).run()
        stages = [seed.stage for seed in controller.summaries()]
        assert stages == [ly.SEED_STAGE_TRAINING] * germinate
        return {name: tensor.clone() for name, tensor in setup.model.state_dict().items()}, len(stages)


def _asked(epochs: int) -> ly.TrainingRunRequested:
    return request(task="mnist1d", host="mlp", epochs=epochs, seed=3, hyperparameters=ALL)


def test_a_seed_in_training_leaves_the_host_alone_under_all_of_them() -> None:
    """Goal: isolation holds under autocast, clipping and accumulation. Method: host bytes after 220 steps, with a seed
    in TRAINING from the 55th on and without."""
    alone, none = _host_after(germinate=False)
    beside, one = _host_after(germinate=True)
    assert (none, one) == (0, 1)
    assert alone.keys() == beside.keys()
    assert all(torch.equal(alone[name], beside[name]) for name in alone)


def test_a_run_that_grows_under_all_of_them_repeats_from_its_record() -> None:
    """Goal: the log is the model here too. Method: a seed from germination to fossil; re-execute, and again with the
    clip left out of the request, which must show."""
    runtime = InMemoryRuntime({"BYPASS": bypass(width=16)})
    journal, asked = MemoryJournal(policy=schedule), _asked(12)
    with prepared(asked) as setup:
        result = TolariaTrainer(setup, grown(runtime)(setup), journal).run()
    assert [seed.stage for seed in result.seeds] == [ly.SEED_STAGE_FOSSILIZED]
    assert re_execute(asked, journal.outcomes, journal.packets, grown(runtime)).equal
    del asked.hyperparameters["clip_norm"]
    difference = re_execute(asked, journal.outcomes, journal.packets, grown(runtime)).first_difference
    assert difference is not None
    assert difference.epoch == 1


@pytest.mark.parametrize(("seconds", "warned"), [(2.0, False), (2.01, True)])
def test_an_epoch_over_its_budget_is_warned_of(seconds: float, warned: bool) -> None:
    """Goal: the budget is watched and steers nothing. Method: an epoch at it, and one above."""
    stats = EpochStats(
        1, steps=2, samples=64, loss=1.0, accuracy=0.5, gradient_norm=1.0, learning_rate=0.1, seconds=seconds
    )
    packet = ly.SystemStatePacket(training_run_id="run-1")
    with prepared(request(hyperparameters={"epoch_budget_seconds": 2.0})) as setup:
        telemetry = epoch_telemetry(setup, stats, packet, hook_latency_ms=1.0, now_ns=1)
    words = ["the epoch's steps took 2.01 s, the budget asked for is 2 s"] if warned else []
    assert [event.description for event in telemetry.events] == words
    assert (telemetry.level == ly.TELEMETRY_LEVEL_WARNING) == warned
