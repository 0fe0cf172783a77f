"""Hosts of every kind, with all that a seed could disturb, and a plain loop that trains one of them.

B batch, F features, L positions, D width.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from esper.core.inputs import Batch, Inputs, Output, Targets, arguments, call, scores_of
from esper.kasmina import KasminaConfig, KasminaSeedManager, discover_slots
from esper.kasmina.bed._seed_training import SeedTrainer
from esper.kasmina.grafting._passes import Isolation
from tests.kasmina.kernels import RealKernels
from tests.kasmina.support import CLASSES, INPUTS, RUN_ID, all_bytes, optimizer_bytes, seeded

WIDTH, TOKENS, SIZE = 8, 11, 16


class TiedMlp(nn.Module):
    """Two layers that share one matrix, with BatchNorm, GELU and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(INPUTS, WIDTH)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Dropout(0.2))
        self.second = nn.Linear(WIDTH, WIDTH)
        self.second.weight = self.first.weight
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x_BF: Tensor) -> Tensor:
        h_BF = functional.gelu(self.norm(self.first(self.stem(x_BF))))
        out: Tensor = self.head(functional.gelu(self.second(self.block(h_BF))))
        return out


class Convolutional(nn.Module):
    """Convolutions with BatchNorm, an activation that may write in place, and dropout, over a signal or a picture."""

    def __init__(self, shape: tuple[int, ...], *, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        line = len(shape) == 1
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if line else (nn.Conv2d, nn.BatchNorm2d)
        drop = nn.Dropout1d if line else nn.Dropout2d
        self.shape = shape
        self.stem = conv(1, WIDTH, 3, padding=1)
        self.block = nn.Sequential(conv(WIDTH, WIDTH, 3, padding=1), norm(WIDTH), activation(), drop(0.2))
        self.tail = nn.Sequential(norm(WIDTH), activation())
        self.head = nn.Linear(WIDTH * INPUTS, CLASSES)

    def forward(self, x_BF: Tensor) -> Tensor:
        h = self.stem(x_BF.reshape(-1, 1, *self.shape))
        out: Tensor = self.head(self.tail(h + self.block(h)).flatten(1))
        return out


class TiedTransformer(nn.Module):
    """Reads `INPUTS` tokens, with dropout and GELU; its last matrix is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, 2, dim_feedforward=WIDTH, dropout=0.1, activation="gelu", batch_first=True
            )
            for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, TOKENS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x_BF: Tensor) -> Tensor:
        h_BLD = self.embed((3.0 * x_BF).round().long() % TOKENS)
        for layer in self.layers:
            h_BLD = layer(h_BLD)
        out: Tensor = self.head(h_BLD.mean(dim=1))
        return out[:, :CLASSES]


class NormedTransformer(nn.Module):
    """Reads `INPUTS` numbers, with BatchNorm, dropout and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, WIDTH)
        self.norm = nn.BatchNorm1d(INPUTS)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 2, dim_feedforward=WIDTH, dropout=0.1, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x_BF: Tensor) -> Tensor:
        h_BLD = self.norm(self.embed(x_BF.unsqueeze(-1)))
        for layer in self.layers:
            h_BLD = layer(h_BLD)
        out: Tensor = self.head(h_BLD.mean(dim=1))
        return out


def mlp() -> nn.Module:
    """Layers with BatchNorm, ReLU that writes in place, and dropout."""
    return nn.Sequential(
        nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(inplace=True), nn.Dropout(0.2)),
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(inplace=True), nn.Dropout(0.2)),
        nn.Linear(WIDTH, CLASSES),
    )


def batch(number: int, size: int) -> tuple[Tensor, Tensor]:
    """Return batch `number` of a three-class problem that no linear map solves."""
    generator = torch.Generator().manual_seed(5000 + number)
    x_BF = torch.randn(size, INPUTS, generator=generator)
    return x_BF, (x_BF[:, 0] * x_BF[:, 1] > 0).long() + (x_BF[:, 2] * x_BF[:, 3] > 0.5).long()


@dataclass(frozen=True)
class HostKind:
    """A host model, where a seed goes in it, and what it is trained on: batch `number` of `size` samples."""

    factory: Callable[[], nn.Module]
    slot: str
    layout: str
    batch: Callable[[int, int], Batch] = batch
    loss: Callable[[Output, Targets], Tensor] = functional.cross_entropy


HOSTS = {
    "mlp, ReLU in place": HostKind(mlp, "1", "vector"),
    "mlp, GELU, tied": HostKind(TiedMlp, "block", "vector"),
    "cnn of a signal, ReLU in place": HostKind(
        partial(Convolutional, (INPUTS,), activation=partial(nn.ReLU, inplace=True)), "block", "map1d"
    ),
    "cnn of a picture, GELU": HostKind(partial(Convolutional, (4, 3), activation=nn.GELU), "block", "map2d"),
    "transformer, GELU, tied": HostKind(TiedTransformer, "layers.0", "sequence"),
    "transformer, ReLU, BatchNorm": HostKind(NormedTransformer, "layers.1", "sequence"),
}


@dataclass(frozen=True)
class Regime:
    """How a loop trains: in bf16 autocast with a scaler, clipped, and in how many parts a step."""

    mixed: bool = False
    clip_norm: float | None = None
    parts: int = 1


REGIMES = {
    "plain": Regime(),
    "clipped": Regime(clip_norm=0.1),
    "mixed, clipped, accumulated": Regime(mixed=True, clip_norm=0.1, parts=2),
}


class Training:
    """One host in a loop of its own, alone or with a manager of seeds in `slot`.

    A `careless` step clips the host together with its seeds, by one norm, as a loop does that knows no owners.
    `zero_late` clears the host's gradients after its step, as many loops do.
    """

    def __init__(self, kind: HostKind, regime: Regime, *, zero_late: bool = False) -> None:
        self.model = seeded(kind.factory, seed=3)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=40, enabled=regime.mixed)
        self.kind = kind
        self.regime = regime
        self.zero_late = zero_late
        self.manager: KasminaSeedManager | None = None
        self.losses: list[float] = []
        self._steps = 0

    def plant(self, slot: str, *, isolation: Isolation) -> KasminaSeedManager:
        """Give the host a manager of seeds in `slot`, with real kernels."""
        self.manager = KasminaSeedManager(
            self.model,
            discover_slots(self.model, self.kind.batch(0, 2)[0], [slot]),
            runtime=RealKernels(),
            run_id=RUN_ID,
            seed=7,
            loss_fn=self.kind.loss,
            probe=[self.kind.batch(-1, 2 * SIZE)],
            optimizer=self.optimizer,
            config=KasminaConfig(warmup_steps=5, kernel_wait_seconds=1.0),
            isolation=isolation,
        )
        return self.manager

    def _autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.regime.mixed else nullcontext()

    def step(self, *, careless: bool = False) -> None:
        """Take one step of the host's optimiser, and let seeds take theirs."""
        parts = [self.kind.batch(self.regime.parts * self._steps + part, SIZE) for part in range(self.regime.parts)]
        if self.manager is not None:
            self.manager.before_step()
        if not self.zero_late:
            self.optimizer.zero_grad()
        for inputs, targets in parts:
            with self._autocast():
                loss = self.kind.loss(call(self.model, inputs), targets) / len(parts)
            self.scaler.scale(loss).backward()
            self.losses.append(float(loss.detach()))
        self.scaler.unscale_(self.optimizer)
        if careless:
            self._clip_all(*parts[-1])
        elif self.regime.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.regime.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.zero_late:
            self.optimizer.zero_grad()
        if self.manager is not None and not careless:
            with self._autocast():
                self.manager.after_step(*parts[-1])
        self._steps += 1

    def _clip_all(self, inputs: Inputs, targets: Targets) -> None:
        assert self.manager is not None, "there is nothing else to clip"
        assert self.regime.clip_norm is not None, "there is nothing to clip to"
        with patch.object(SeedTrainer, "step", lambda _: None), self._autocast():
            self.manager.after_step(inputs, targets)
        nn.utils.clip_grad_norm_([*self.model.parameters(), *self.manager.own_parameters()], self.regime.clip_norm)
        for live in self.manager._bed.live.values():
            live.trainer.step()

    def outputs(self, *, training: bool) -> bytes:
        """Return what the model gives for one batch, and leave modes, buffers and random numbers as they were."""
        was, buffers = self.model.training, {name: each.clone() for name, each in self.model.named_buffers()}
        self.model.train(training)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1)
            found = functional_call(self.model, buffers, *arguments(self.kind.batch(-2, 2 * SIZE)[0]))
        self.model.train(was)
        scores = scores_of(found)
        assert scores is not None, "a host gives scores"
        return scores.numpy().tobytes()

    def everything(self) -> dict[str, object]:
        """Return all that the training of the host decides, bit for bit, and the streams that it draws from."""
        return {
            "weights and buffers": all_bytes(self.model),
            "optimiser": optimizer_bytes(self.optimizer),
            "losses": self.losses,
            "outputs": self.outputs(training=False),
            "outputs in training": self.outputs(training=True),
            "scaler": self.scaler.state_dict(),
            "torch's random stream": torch.get_rng_state().numpy().tobytes(),
            "Python's random stream": random.getstate(),
            "NumPy's random stream": np.random.get_state()[1].tobytes(),
        }
