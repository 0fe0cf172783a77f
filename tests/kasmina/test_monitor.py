"""The isolation monitor and the ownership registry: each breach is seen when it happens, and only breaches are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from esper.core.errors import IntegrityError
from esper.kasmina import KasminaConfig, OwnershipRegistry
from esper.kasmina.isolation._ownership import HOST, TEACHER, seed_owner
from esper.leyline import EventMessage
from esper.leyline import messages as ly
from tests.kasmina.support import HOSTS, Loop, mlp, seeded

VIOLATIONS = "kasmina.isolation.violations"
BREAKER = "kasmina.isolation.breaker_open"


def a_loop(**options: int) -> Loop:
    """Return a host with two slots."""
    config = KasminaConfig(warmup_steps=5, blend_epochs=1.0, **options)
    return Loop(seeded(mlp), ["1", "2"], config=config)


def violations(loop: Loop) -> float:
    """Return what telemetry would say."""
    return loop.manager.figures()[VIOLATIONS]


def reasons(events: list[EventMessage]) -> set[str]:
    """Return why seeds moved."""
    return {event.reason for event in events if isinstance(event, ly.SeedStageChanged)}


@pytest.mark.parametrize("host", HOSTS)
def test_a_whole_life_is_free_of_breaches(host: str) -> None:
    """Goal: no false alarm. Method: seeds with dropout up to FOSSILIZED on every host, with gradients cleared early and
    late, and weights loaded between two steps, which is no step's doing.
    """
    factory, slot = HOSTS[host]
    loop = Loop(seeded(factory), [slot])
    loop.grow(slot, ly.SEED_STAGE_SHADOWING, steps=15)
    loop.model.load_state_dict(copy.deepcopy(loop.model.state_dict()))
    loop.model.train()
    for late in (True, False, True):
        loop.step(zero_late=late)
    assert loop.train_epoch(5) == []
    figures = loop.manager.figures()
    assert (figures[VIOLATIONS], figures[BREAKER]) == (0.0, 0.0)


#: What breaks the isolation of a seed in TRAINING, by a word.
BREACHES = ("no detach", "buffers shared", "stream shared", "host steps the seed", "host backward reaches the seed")


def breach(loop: Loop, how: str) -> None:
    """Break the isolation of seed 1.1 from now on."""
    bed = loop.manager._bed
    isolation = bed._isolation
    changes = {"no detach": "detach", "buffers shared": "clone_buffers", "stream shared": "fork_rng"}
    if how in changes:
        broken = type(isolation)(**{changes[how]: False, "eval_mode": how != "stream shared"})
        bed._passes._isolation = broken
        bed._focus.detach = broken.detach
        return
    parameter = next(bed.live["1.1"].seed.parameters())
    if how == "host steps the seed":
        loop.optimizer.register_step_post_hook(lambda *_: parameter.detach().add_(1e-4))
    else:
        head = loop.model.get_submodule("3")
        head.register_forward_hook(lambda _module, _args, output: output + 0.0 * parameter.sum())


@pytest.mark.parametrize("how", BREACHES)
def test_every_breach_is_counted_and_the_breaker_ends_it(how: str) -> None:
    """Goal: a broken isolation is seen at the step, and stopped. Method: break it in one way while a seed trains; the
    count rises, after three breaches no seed steps any more, and at the edge the seed is culled for it. Nothing
    germinates until the breaker has cooled down.
    """
    loop = a_loop(isolation_open_epochs=2)
    loop.germinate("1", "DROPPING")
    assert loop.train_epoch(3) == []
    assert violations(loop) == 0.0
    breach(loop, how)
    loop.model.train()
    loop.step()
    assert violations(loop) > 0.0
    events = loop.train_epoch(8)
    assert reasons(events) == {"fault:isolation"}
    assert loop.manager.figures()[BREAKER] == 1.0
    assert "1.1" not in loop.manager._bed.live
    assert loop.germinate("2").reason == "breaker_open:isolation"
    count = violations(loop)
    assert loop.train_epoch(3) == []
    assert violations(loop) == count, "nothing stepped, nothing leaked"


def test_one_breach_fails_g1_for_that_epoch_only() -> None:
    """Goal: a single breach bars BLENDING, and is not held against the seed for ever. Method: one foreign write."""
    loop = a_loop(isolation_breaches_max=3)
    seed_id = loop.germinate("1").seed_id
    for _ in range(3):
        loop.train_epoch(10)
    loop.model.train()
    loop.manager.before_step()
    with torch.no_grad():
        next(loop.manager._bed.live[seed_id].seed.parameters()).add_(1e-6)
    loop.manager.after_step(*loop.manager._bed.probe[0])  # type: ignore[index]  # the loop has a probe
    assert loop.train_epoch(10) == []
    refused = loop.order(ly.SEED_OP_START_GRAFTING, seed_id=seed_id)
    assert refused.reason == "gate:SEED_GATE_G1_GRADIENT_HEALTH"
    assert (violations(loop), loop.manager.figures()[BREAKER]) == (1.0, 0.0)
    loop.train_epoch(10)
    assert loop.order(ly.SEED_OP_START_GRAFTING, seed_id=seed_id).gate_verdicts["SEED_GATE_G1_GRADIENT_HEALTH"]


def test_the_breaker_cools_down_and_growth_goes_on() -> None:
    """Goal: the breaker closes again. Method: a breach that ends; after its epochs a seed germinates and trains."""
    loop = a_loop(isolation_open_epochs=2)
    loop.germinate("1")
    breach(loop, "no detach")
    assert reasons(loop.train_epoch(6)) == {"fault:isolation"}
    loop.manager._bed._passes._isolation = loop.manager._bed._isolation
    loop.manager._bed._focus.detach = True
    for _ in range(2):
        loop.train_epoch(2)
    assert loop.germinate("2").result == ly.COMMAND_RESULT_APPLIED
    assert loop.train_epoch(3) == []
    assert loop.state("2.1").metrics["shadow_steps"] == 3
    assert loop.manager.figures()[BREAKER] == 0.0


def test_a_host_optimizer_that_holds_a_seed_is_a_breach() -> None:
    """Goal: a parameter has one optimiser. Method: the seed's parameters as a group of the host's optimiser."""
    loop = a_loop()
    seed_id = loop.germinate("1").seed_id
    loop.optimizer.add_param_group({"params": list(loop.manager._bed.live[seed_id].seed.parameters())})
    loop.train_epoch(1)
    assert violations(loop) >= 4.0, "every parameter of the seed is counted"


def test_a_pass_that_changes_another_seed_is_a_breach() -> None:
    """Goal: seeds are apart from each other. Method: a seed whose backward writes to its neighbour's weights."""
    loop = a_loop(isolation_breaches_max=100)
    loop.germinate("1")
    loop.train_epoch(2)
    loop.germinate("2")
    neighbour = next(loop.manager._bed.live["1.1"].seed.parameters())
    optimizer = loop.manager._bed.live["2.1"].trainer.optimizer
    assert optimizer is not None
    optimizer.register_step_post_hook(lambda *_: neighbour.detach().add_(1e-4))
    loop.train_epoch(3)
    assert loop.manager._bed.monitor.leaks("2.1").host_changes == 3
    assert loop.manager._bed.monitor.leaks("1.1").total == 0, "the culprit is named, not the victim"


def test_a_teacher_may_not_learn() -> None:
    """Goal: the teacher stays as it is. Method: a teacher that is looked at, then one that is written to."""
    loop = a_loop()
    teacher = nn.Linear(12, 3)
    loop.manager.watch_teacher(teacher)
    loop.train_epoch(2)
    assert violations(loop) == 0.0
    with torch.no_grad():
        teacher.weight.add_(1.0)
    loop.train_epoch(2)
    assert violations(loop) == 1.0
    with pytest.raises(IntegrityError, match="belongs to host"):
        loop.manager.watch_teacher(loop.model)


def test_the_monitor_goes_on_from_a_checkpoint() -> None:
    """Goal: a restored run counts on. Method: breaches, a checkpoint, a fresh manager."""
    loop = a_loop(isolation_breaches_max=100)
    loop.germinate("1")
    breach(loop, "no detach")
    loop.train_epoch(2)
    again = Loop(seeded(mlp), ["1", "2"], runtime=loop.manager._examiner._runtime)  # type: ignore[arg-type]  # its own
    again.manager.restore(loop.manager.checkpoint())
    restored, counted = again.manager.figures(), loop.manager.figures()
    assert [restored[name] for name in (VIOLATIONS, BREAKER)] == [counted[name] for name in (VIOLATIONS, BREAKER)]
    assert again.manager._bed.monitor.leaks("1.1") == loop.manager._bed.monitor.leaks("1.1")
    assert violations(again) > 0.0


def test_registry_knows_owners_and_sees_writes() -> None:
    """Goal: who owns what, and who wrote. Method: two owners; a write by an optimiser, one by hand, a transfer."""
    registry, host, seed = OwnershipRegistry(), nn.Linear(2, 2), nn.Linear(2, 2)
    registry.register(HOST, dict(host.named_parameters()))
    registry.register(seed_owner("s.1"), dict(seed.named_parameters()))
    assert registry.owner_of(host.weight) == HOST
    assert str(registry.owner_of(seed.bias)) == "seed s.1"
    assert registry.owner_of(torch.zeros(1)) is None
    with pytest.raises(IntegrityError, match="belongs to host"):
        registry.register(seed_owner("s.2"), {"weight": host.weight})
    optimizer = torch.optim.SGD([*host.parameters(), seed.weight], lr=0.1)
    assert registry.foreign(HOST, optimizer) == ["seed s.1's weight"]
    (host(torch.ones(1, 2)).sum() + seed(torch.ones(1, 2)).sum()).backward()
    assert registry.changed(HOST) == registry.changed(seed_owner("s.1")) == [], "a gradient is no write"
    optimizer.step()
    assert registry.changed(HOST) == ["weight", "bias"]
    assert registry.changed(seed_owner("s.1")) == ["weight"]
    registry.accept(HOST)
    assert registry.changed(HOST) == []
    registry.transfer(seed_owner("s.1"), HOST)
    assert registry.owner_of(seed.weight) == HOST
    assert registry.foreign(HOST, optimizer) == []
    registry.release(HOST)
    assert registry.owner_of(host.weight) is None
    assert registry.changed(TEACHER) == []
