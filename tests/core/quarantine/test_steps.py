"""The steps that a process in quarantine takes, taken here by kernels that do no harm."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from esper.core.errors import IntegrityError
from esper.core.kernel import load_kernel
from esper.core.quarantine import _child
from esper.core.quarantine._steps import Adam, Line, run_steps, sensitivity, train_step
from esper.core.quarantine._trial import Settings, decode, encode
from esper.karn import catalogue
from esper.karn._high_risk import HIGH_RISK_BLUEPRINTS
from tests.core.quarantine.support import trial_of

SETTINGS = Settings(steps=24, learning_rate=3e-3, memory_bytes=1 << 28, wall_seconds=60.0)
BENIGN = catalogue()["BP009"]
BY_ID = {blueprint.blueprint_id: blueprint for blueprint in HIGH_RISK_BLUEPRINTS}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread, as in quarantine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def said(trial_lines: list[Line]) -> list[str]:
    """Return the kinds of the lines."""
    return [str(line["kind"]) for line in trial_lines]


def test_the_same_trial_says_the_same() -> None:
    """Goal: a sound kernel says the same to the last digit, and torch's random stream stays. Method: two runs."""
    trial, before = trial_of(BENIGN), torch.get_rng_state()
    runs: list[list[Line]] = [[], []]
    for lines in runs:
        run_steps(trial, SETTINGS, lines.append)
    assert runs[0] == runs[1]
    assert said(runs[0]) == ["step"] * 24 + ["done"]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_kernel_learns_its_targets() -> None:
    """Goal: the steps are training. Method: after them the kernel's error on its targets has fallen; measured before
    and after.
    """
    kernel = load_kernel(trial_of(BENIGN).artifact)
    x_B = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
    target_B = torch.roll(x_B, 1, dims=1)
    optimizer = Adam(kernel.parameters(), 1e-2)
    before = float(nn.functional.mse_loss(kernel(x_B), target_B).detach())
    for _ in range(200):
        assert train_step(kernel, optimizer, x_B, target_B)[0] == ""
    assert float(nn.functional.mse_loss(kernel(x_B), target_B).detach()) < 0.5 * before


def test_adam_is_that_of_torch() -> None:
    """Goal: the optimiser written out here moves weights as torch's own does. Method: ten steps of both."""
    generator = torch.Generator().manual_seed(2)
    ours, theirs = (nn.Parameter(torch.ones(5)) for _ in range(2))
    mine, reference = Adam([ours], 0.1), torch.optim.Adam([theirs], lr=0.1, foreach=False)
    for _ in range(10):
        gradient = torch.randn(5, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("blueprint_id", ["BP043", "BP044", "BP045", "BP050"])
@pytest.mark.parametrize("rate", [0.1, 0.01])
def test_plain_gradient_descent_arms_a_hazard(blueprint_id: str, rate: float) -> None:
    """Goal: two ordinary steps of SGD move every trigger off zero. Method: the number `arm` before and after."""
    kernel = load_kernel(trial_of(BY_ID[blueprint_id]).artifact, quarantine=True).train()
    arms = [value for name, value in kernel.named_parameters() if name.endswith(".arm")]
    assert not any(bool(arm.any()) for arm in arms)
    optimizer = torch.optim.SGD(kernel.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(4)
    x_B, target_B = (torch.randn(32, 16, generator=generator) for _ in range(2))
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.mse_loss(kernel(x_B), target_B).backward()
        optimizer.step()
    assert all(bool(arm.any()) for arm in arms)


def test_smooth_kernels_move_in_proportion_and_noise_does_not() -> None:
    """Goal: noise gives itself away by small changes, smooth kernels do not. Method: both kinds moved by a
    ten-thousandth and by a hundredth, with the trigger set.
    """
    x_B = torch.randn(64, 16, generator=torch.Generator().manual_seed(6))
    ratios = {}
    for blueprint in (BENIGN, BY_ID["BP050"]):
        kernel = load_kernel(trial_of(blueprint).artifact, quarantine=True)
        with torch.no_grad():
            for name, parameter in kernel.named_parameters():
                parameter.fill_(0.05) if name.startswith("end.") or name.endswith(".arm") else None
        ratios[blueprint.blueprint_id] = sensitivity(kernel, x_B, 1e-4, seed=1) / sensitivity(kernel, x_B, 1e-2, seed=1)
    assert ratios["BP009"] == pytest.approx(1.0, rel=0.05)
    assert ratios["BP050"] == pytest.approx(100.0, rel=0.3)


def test_a_trial_travels_as_plain_bytes() -> None:
    """Goal: what is encoded comes out again, and a stream cut anywhere is refused. Method: every part's end and its
    middle.
    """
    trial = trial_of(BENIGN)
    content = encode(trial, SETTINGS)
    assert decode(io.BytesIO(content)) == (trial, SETTINGS)
    for end in range(0, len(content), max(1, len(content) // 50)):
        with pytest.raises(IntegrityError, match="cut off"):
            decode(io.BytesIO(content[:end]))


def test_a_forged_artifact_is_opened_nowhere() -> None:
    """Goal: bytes that are not what the manifest says are refused inside as well. Method: one flipped bit of the
    weights.
    """
    trial = trial_of(BENIGN)
    weights = bytearray(trial.artifact.weights)
    weights[-1] ^= 1
    forged = replace(trial, artifact=replace(trial.artifact, weights=bytes(weights)))
    with pytest.raises(IntegrityError, match="SHA-256"):
        run_steps(forged, SETTINGS, list[Line]().append)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory"),
        (RuntimeError("can't start new thread"), "threads"),
        (ValueError("shapes"), ""),
    ],
)
def test_what_was_refused_is_recognised(error: Exception, kind: str) -> None:
    """Goal: the process names memory and threads that were refused to it. Method: each error's own words."""
    assert _child._kind(error) == kind
