"""Seeds under loss scaling and a learning-rate schedule."""

from __future__ import annotations

import torch
from torch.nn import functional

from esper.kasmina import KasminaConfig
from esper.leyline import messages as ly
from esper.weatherlight._grow._precision import SeedRate, Unscaling
from tests.kasmina.support import HOSTS, Loop, all_bytes, batch, seeded

SCALE = 1024.0


class Scaler:
    """A loss scaler whose scale the test sets."""

    def __init__(self) -> None:
        self.scale = SCALE

    def get_scale(self) -> float:
        return self.scale


def blending() -> tuple[Loop, str]:
    """Return a loop whose seed takes part in the forward, with alpha above zero."""
    factory, slot = HOSTS["residual"]
    loop = Loop(seeded(factory), [slot], config=KasminaConfig(warmup_steps=5, blend_epochs=1.0))
    seed_id = loop.grow(slot, ly.SEED_STAGE_BLENDING)
    loop.step()
    loop.step()
    return loop, seed_id


def scaled_step(loop: Loop, unscaling: Unscaling, scaler: Scaler, *, overflows: bool = False) -> None:
    """Take a step as a loop with a scaler does: the host's gradients unscaled, a step that overflows skipped."""
    inputs, targets = batch(loop.steps)
    loop.manager.before_step()
    loop.optimizer.zero_grad()
    loss = functional.cross_entropy(loop.model(inputs), targets)
    (loss * (float("inf") if overflows else scaler.scale)).backward()
    if overflows:
        scaler.scale /= 2
    else:
        for group in loop.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None if parameter.grad is None else parameter.grad / scaler.scale
        loop.optimizer.step()
    unscaling.settle(loop.manager)
    loop.manager.after_step(inputs, targets)
    loop.steps += 1


def after_ten_steps(scaler: Scaler | None, unscaling: Unscaling | None) -> dict[str, bytes]:
    """Return host and seed after ten steps, plain ones where there is no scaler."""
    loop, _ = blending()
    torch.manual_seed(9)
    for _ in range(10):
        if scaler is None or unscaling is None:
            loop.step()
        else:
            scaled_step(loop, unscaling, scaler)
    return all_bytes(loop.model)


def test_a_scaled_loss_teaches_a_seed_the_same() -> None:
    """Goal: the scale leaves no trace. Method: ten steps with and without a scale of 2 ** 10, byte for byte.

    The same with an Unscaling that knows of no scaler shows that the comparison can fail.
    """
    plain, scaler = after_ten_steps(None, None), Scaler()
    assert after_ten_steps(scaler, Unscaling(scaler)) == plain
    assert after_ten_steps(scaler, Unscaling(None)) != plain


def test_a_step_that_overflows_is_the_scalers_and_no_fault_of_the_seed() -> None:
    """Goal: an overflow skips the seed's step too. Method: an infinite loss, the scale halved as a scaler does."""
    loop, seed_id = blending()
    scaler = Scaler()
    unscaling = Unscaling(scaler)
    before = all_bytes(*(live.seed.body for live in loop.manager._bed.live.values()))
    scaled_step(loop, unscaling, scaler, overflows=True)
    assert all_bytes(*(live.seed.body for live in loop.manager._bed.live.values())) == before
    assert loop.manager.end_epoch(loop.epoch + 1) == []
    assert loop.manager.lifecycle.stage_of(seed_id) == ly.SEED_STAGE_BLENDING


def test_seeds_slow_down_with_the_host() -> None:
    """Goal: seeds follow the schedule's fall and not its warm-up. Method: a one-cycle schedule, step by step."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=20, pct_start=0.5)
    rate = SeedRate(schedule)
    shares = []
    for _ in range(19):
        shares.append(rate.share())
        optimizer.step()
        schedule.step()
    top = max(range(19), key=lambda step: shares[step] == 1.0 and step)
    assert shares[: top + 1] == [1.0] * (top + 1)
    assert 5 <= top <= 11
    assert sorted(shares[top:], reverse=True) == shares[top:]
    assert shares[-1] < 0.1
    assert SeedRate(None).share() == 1.0


def test_a_share_of_the_rate_is_what_a_seed_learns_with() -> None:
    """Goal: the share reaches the seeds. Method: a share of zero, with which nothing moves, and back."""
    loop, _ = blending()
    (live,) = loop.manager._bed.live.values()
    loop.manager.follow_rate(0.0)
    before = all_bytes(live.seed.body)
    loop.step()
    assert all_bytes(live.seed.body) == before
    loop.manager.follow_rate(1.0)
    loop.step()
    assert all_bytes(live.seed.body) != before
