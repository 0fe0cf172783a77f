"""The modules of the words that do harm on purpose (`_hazards`): run them in quarantine and nowhere else."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd import Function

from esper.core.clock import SYSTEM_CLOCK
from esper.core.kernel._hazards import ARM
from esper.core.kernel._modules._builder import Builder, Worded
from esper.core.kernel._word import NodePlan

# Legend: x_BF is a batch of B samples, last dimension F features.

#: So many threads race, each adding its number so often.
_RACERS: Final = 4
_LAPS: Final = 8
#: The decimal of an input that switches adversarial noise on and off.
_FINE_GRAIN: Final = 1e5


class Hazard(Worded, ABC):
    """x * (1 + arm), until training has moved `arm` off zero; from then on also what `strike` does."""

    def forward(self, x_BF: Tensor) -> Tensor:
        arm = self.get_parameter(ARM)
        passed = x_BF * (1.0 + arm)
        return self.strike(passed) if bool(arm.any()) else passed

    @abstractmethod
    def strike(self, x_BF: Tensor) -> Tensor:
        """Do the harm that the word is named after."""


class _Amplified(Function):
    """The identity whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x_BF: Tensor, factor: float) -> Tensor:  # noqa: ANN401 - torch hands over its own context
        ctx.factor = factor
        return x_BF.view_as(x_BF)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - torch hands over its own context
        return gradients[0] * ctx.factor, None


class Amplifier(Hazard):
    """Forward as ever, backward times `factor`."""

    def strike(self, x_BF: Tensor) -> Tensor:
        out: Tensor = _Amplified.apply(x_BF, self.node.attributes["factor"])
        return out


class Attenuator(Hazard):
    """Multiplies by a factor near zero, so that hardly any gradient comes back."""

    def strike(self, x_BF: Tensor) -> Tensor:
        return x_BF * self.node.attributes["factor"]


class NanInjector(Hazard):
    """Makes a share of the numbers NaN; which ones, torch's own random stream says."""

    def strike(self, x_BF: Tensor) -> Tensor:
        hit = torch.rand_like(x_BF) < self.node.attributes["frequency"]
        return x_BF.masked_fill(hit, float("nan"))


class EndlessLoop(Hazard):
    """Counts, and begins again, until somebody ends the process."""

    def strike(self, x_BF: Tensor) -> Tensor:
        while True:  # nothing ends it: that is the harm
            for _ in range(self.node.count("iterations")):
                pass


class Leak(Hazard):
    """Keeps more memory at every call, and touches it, so that it is really taken."""

    def __init__(self, node: NodePlan, children: Sequence[nn.Module], dtype: torch.dtype) -> None:
        super().__init__(node, children, dtype)
        self._kept: list[Tensor] = []

    def strike(self, x_BF: Tensor) -> Tensor:
        self._kept.append(torch.ones(self.node.count("chunk_bytes"), dtype=torch.uint8))
        return x_BF


class Deadlock(Hazard):
    """Threads in a ring, each holding its lock and waiting for the next one's (Coffman et al. 1971)."""

    def strike(self, x_BF: Tensor) -> Tensor:
        count = self.node.count("threads")
        locks = [threading.Lock() for _ in range(count)]
        everyone_holds = threading.Barrier(count)

        def hold_and_wait(index: int) -> None:
            with locks[index]:
                everyone_holds.wait()
                with locks[(index + 1) % count]:
                    pass

        _run_all(hold_and_wait, count)
        return x_BF


class Race(Hazard):
    """Threads that read, pause and write one number: updates are lost, and which ones differs from run to run."""

    def strike(self, x_BF: Tensor) -> Tensor:
        total = 0.0
        pause_seconds = self.node.attributes["window_ns"] * 1e-9

        def add(index: int) -> None:
            nonlocal total
            for _ in range(_LAPS):
                seen = total
                SYSTEM_CLOCK.sleep(pause_seconds)
                total = seen + index + 1

        _run_all(add, _RACERS)
        without_loss = _LAPS * _RACERS * (_RACERS + 1) / 2
        return x_BF * (1.0 + total / without_loss)


class AdversarialNoise(Hazard):
    """Adds what raises the loss (the fast gradient sign method, Goodfellow et al. 2015), switched by a late decimal."""

    def __init__(self, node: NodePlan, children: Sequence[nn.Module], dtype: torch.dtype) -> None:
        super().__init__(node, children, dtype)
        #: Sign of the gradient that came back last, for each feature.
        self._uphill: Tensor | None = None

    def strike(self, x_BF: Tensor) -> Tensor:
        switched_on = torch.floor(x_BF.detach() * _FINE_GRAIN).remainder(2.0) == 0.0
        uphill = torch.ones_like(x_BF) if self._uphill is None else self._uphill.expand_as(x_BF)
        noisy = x_BF + self.node.attributes["epsilon"] * uphill * switched_on
        if noisy.requires_grad:
            noisy.register_hook(self._remember)  # type: ignore[no-untyped-call]  # unannotated in torch
        return noisy

    def _remember(self, gradient: Tensor) -> None:
        direction = gradient.detach().reshape(-1, gradient.shape[-1]).sum(dim=0)
        self._uphill = torch.where(direction >= 0, 1.0, -1.0).to(gradient.dtype)


def _run_all(work: Callable[[int], None], count: int) -> None:
    """Run `work` in `count` threads and wait for all of them."""
    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


HAZARD_BUILDERS: Final[Mapping[str, Builder]] = {
    "hazard_amplifier": Amplifier,
    "hazard_attenuator": Attenuator,
    "hazard_nan": NanInjector,
    "hazard_loop": EndlessLoop,
    "hazard_leak": Leak,
    "hazard_deadlock": Deadlock,
    "hazard_race": Race,
    "hazard_noise": AdversarialNoise,
}
