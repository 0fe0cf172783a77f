"""The seedbed: a host with its seeds, and everything that changes the one or trains and measures the others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from esper.core.errors import UsageError
from esper.core.rng import derive_seed
from esper.kasmina._alpha import AlphaSchedule
from esper.kasmina._config import KasminaConfig
from esper.kasmina._gates import KernelEvidence
from esper.kasmina._graft import Graft, GraftedSeed, PassFocus, Role
from esper.kasmina._passes import HostPasses, Isolation, count_multiply_adds, forked_rng
from esper.kasmina._quarantine import slot_batch
from esper.kasmina._seed_training import LossFunction, SeedTrainer
from esper.kasmina._slots import SlotSpec

Probe = Sequence[tuple[Tensor, Tensor]]

#: Forward and backward of a trained module against its forward: the usual count (forward + 2x backward).
_TRAINING_FACTOR = 3
_PROBE_BATCH = 2
#: Costs are kept per batch shape and seed; a host with ever new shapes must not fill the memory.
_COSTS_MAX = 256


@dataclass(frozen=True)
class PreparedSeed:
    """A kernel made ready for its slot, with what was seen of it; nothing of the host has changed yet."""

    body: nn.Module
    evidence: KernelEvidence
    parameters: int
    multiply_adds_per_sample: int


@dataclass(frozen=True)
class HeldOutLosses:
    """Mean losses on the probe after `epoch`: of the host as it is, with the seed heard, and without it."""

    epoch: int
    host: float
    seed_on: float
    seed_off: float


@dataclass
class LiveSeed:
    """A seed that is on the host."""

    spec: SlotSpec
    seed: GraftedSeed
    graft: Graft
    trainer: SeedTrainer
    parameters: int
    multiply_adds_per_sample: int
    held_out: HeldOutLosses | None = None


class SeedBed:
    """Holds the host and its live seeds. No decision is made here, and no event is known."""

    def __init__(
        self,
        model: nn.Module,
        *,
        seed: int,
        loss_fn: LossFunction | None,
        probe: Probe | None,
        optimizer: torch.optim.Optimizer | None,
        config: KasminaConfig,
        isolation: Isolation,
    ) -> None:
        self.live: dict[str, LiveSeed] = {}
        self.multiply_adds = 0
        self.loss_fn = loss_fn
        self.probe = [(inputs, targets) for inputs, targets in probe or () if len(inputs)] or None
        #: The batch that was trained on last: what stands in where there is no probe.
        self.last_batch: tuple[Tensor, Tensor] | None = None
        self._model = model
        self._seed = seed
        self._optimizer = optimizer
        self._config = config
        self._isolation = isolation
        self._passes = HostPasses(model, isolation=isolation)
        self._focus = PassFocus(detach=isolation.detach)
        self._costs: dict[Hashable, int] = {}

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Run the block on forked random streams: whatever is built in it draws nothing from the host's."""
        with forked_rng(self._passes.devices):
            yield

    # -- what changes the host ------------------------------------------------------------------------------

    def prepare(self, spec: SlotSpec, kernel: nn.Module) -> PreparedSeed:
        """Return a copy of `kernel` on the slot's device, tried out on one batch of the slot's shape.

        A copy, because a runtime may hand the same module to two slots.
        """
        with self.apart():
            body = copy.deepcopy(kernel).to(self._device(spec)).requires_grad_(True).eval()
            evidence, multiply_adds = self._try_out(spec, body)
        parameters = sum(parameter.numel() for parameter in body.parameters())
        return PreparedSeed(body, evidence, parameters, multiply_adds)

    def _device(self, spec: SlotSpec) -> torch.device:
        for module in (self._model.get_submodule(spec.module), self._model):
            for parameter in module.parameters():
                return parameter.device
        return torch.device("cpu")

    def _try_out(self, spec: SlotSpec, body: nn.Module) -> tuple[KernelEvidence, int]:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "kasmina", "try-out", spec.slot))
        sample = torch.randn(_PROBE_BATCH, *spec.in_shape, generator=generator)
        sample = sample.to(self._device(spec), getattr(torch, spec.dtype))
        outputs: list[Tensor] = []
        try:
            with torch.no_grad():
                cost = count_multiply_adds(lambda: outputs.append(body(sample)))
        except (RuntimeError, ValueError, UsageError):  # a kernel for another shape or dtype; the gate says so
            return KernelEvidence(_values_not_finite(body), False, float("nan")), 0
        fits = outputs[0].shape == (_PROBE_BATCH, *spec.out_shape) and outputs[0].dtype == sample.dtype
        largest = float(outputs[0].abs().max())
        return KernelEvidence(_values_not_finite(body), fits, largest), spec.calls * cost // _PROBE_BATCH

    def slot_batch(self, spec: SlotSpec) -> bytes:
        """Return copies of what a seed in this slot reads and should come near, for a trial in quarantine."""
        batch = self.probe[0] if self.probe else self.last_batch
        return slot_batch(self._model, self._passes, spec, batch, self.loss_fn)

    def plant(self, seed_id: str, spec: SlotSpec, prepared: PreparedSeed) -> None:
        """Put a prepared seed on its slot, isolated: the host hears nothing of it."""
        seed = GraftedSeed(
            prepared.body,
            placement=spec.placement,
            device=self._device(spec),
            rng_seed=derive_seed(self._seed, "kasmina", seed_id),
            focus=self._focus,
        )
        self.live[seed_id] = LiveSeed(
            spec=spec,
            seed=seed,
            graft=Graft(self._model, spec, seed_id, seed),
            trainer=SeedTrainer(seed, sound=seed.sound, config=self._config),
            parameters=prepared.parameters,
            multiply_adds_per_sample=prepared.multiply_adds_per_sample,
        )

    def blend(self, seed_id: str, *, steps: int) -> None:
        """Let the seed join the host's forward; alpha rises from 0 to 1 over `steps` steps."""
        live = self.live[seed_id]
        assert live.seed.blender is not None, "a seed that begins to blend has its blender"
        live.graft.join()
        live.seed.blender.begin(AlphaSchedule(self._config.alpha_curve, steps))

    def fossilize(self, seed_id: str) -> None:
        """Make the seed a part of the host for good: no alpha, and its parameters the host optimiser's."""
        live = self.live[seed_id]
        live.seed.fossilize()
        if self._optimizer is not None:
            beside = list(self._model.get_submodule(live.spec.module).parameters())
            live.trainer.hand_over(self._optimizer, beside=beside)

    def uproot(self, seed_id: str) -> None:
        """Take the seed off the host; hook, parameters and optimiser state go with the last reference."""
        self.live.pop(seed_id).graft.remove()

    # -- training -------------------------------------------------------------------------------------------

    def zero_grad(self) -> None:
        """Forget the gradients of the seeds that Kasmina's own optimisers train."""
        for live in self.live.values():
            if live.trainer.optimizer is not None:
                live.trainer.zero_grad()

    def train_jointly(self, seed_id: str, *, batch: int, rising: bool) -> None:
        """Apply the gradients of the host's own backward to the seed, then let alpha rise if it is `rising`."""
        live = self.live[seed_id]
        if live.seed.heard:
            self.multiply_adds += _TRAINING_FACTOR * live.multiply_adds_per_sample * batch
        live.trainer.step()
        if rising and live.seed.blender is not None:
            live.seed.blender.advance_alpha()

    def train_in_shadow(self, seed_id: str, inputs: Tensor, targets: Tensor, *, step: int) -> None:
        """Train the seed by a second forward of the host in which it is heard in full; the host learns nothing."""
        if self.loss_fn is None:
            return
        live = self.live[seed_id]
        self.multiply_adds += self._cost(
            ("shadow", seed_id, tuple(inputs.shape), *self._heard()),
            lambda: self._shadow_gradients(live, inputs, targets),
        )
        live.seed.train()
        loss = self._shadow_loss(live, inputs, targets, seed=derive_seed(self._seed, "kasmina", seed_id, step))
        live.trainer.learn_from(loss)

    def _shadow_loss(self, live: LiveSeed, inputs: Tensor, targets: Tensor, *, seed: int) -> Tensor:
        assert self.loss_fn is not None, "a shadow needs a loss"
        with self._passes.quiet(seed=seed), self._focused(shadowed=live.seed):
            return self.loss_fn(self._passes.forward(inputs), targets)

    def _shadow_gradients(self, live: LiveSeed, inputs: Tensor, targets: Tensor) -> None:
        """Do a shadow's work once more to count it, in eval mode, so that nothing of the seed moves."""
        live.seed.eval()
        loss = self._shadow_loss(live, inputs, targets, seed=0)
        if loss.requires_grad:
            torch.autograd.grad(loss, live.trainer.parameters, allow_unused=True)

    # -- measuring ------------------------------------------------------------------------------------------

    def faults(self, seed_id: str) -> str:
        """Return what is wrong with the seed, "non_finite"; nothing when it is sound. Waits for the device."""
        live = self.live[seed_id]
        sound = bool(live.seed.sound) and not _values_not_finite(live.seed.body)
        return "" if sound else "non_finite"

    def measure(self, seed_ids: Sequence[str], *, epoch: int) -> None:
        """Measure each seed's held-out losses on the probe, if there are a probe and a loss."""
        if self.probe is None or self.loss_fn is None or not seed_ids:
            return
        as_it_is = self._held_out_loss("as-is", PassFocus())
        for seed_id in seed_ids:
            live = self.live[seed_id]
            if live.seed.role is Role.ISOLATED:
                live.seed.eval()
                on = self._held_out_loss(seed_id, PassFocus(shadowed=live.seed))
                live.held_out = HeldOutLosses(epoch, as_it_is, seed_on=on, seed_off=as_it_is)
            else:
                off = self._held_out_loss(seed_id, PassFocus(muted=live.seed))
                live.held_out = HeldOutLosses(epoch, as_it_is, seed_on=as_it_is, seed_off=off)

    def _held_out_loss(self, name: str, focus: PassFocus) -> float:
        """Return the mean loss over the probe's samples, with the host in eval mode."""
        assert self.probe is not None, "held-out losses need a probe"
        assert self.loss_fn is not None, "held-out losses need a loss"
        total, samples = 0.0, 0
        for inputs, targets in self.probe:
            with (
                torch.no_grad(),
                self._passes.quiet(seed=0),
                self._focused(shadowed=focus.shadowed, muted=focus.muted),
            ):
                self.multiply_adds += self._cost(
                    ("probe", name, tuple(inputs.shape), *self._heard()),
                    lambda batch=inputs: self._passes.forward(batch),  # type: ignore[misc]  # mypy infers no lambda defaults
                )
                loss = float(self.loss_fn(self._passes.forward(inputs), targets))
            total, samples = total + loss * len(inputs), samples + len(inputs)
        return total / samples

    def _heard(self) -> tuple[str, ...]:
        return tuple(seed_id for seed_id, live in self.live.items() if live.seed.heard)

    def _cost(self, key: Hashable, work: Callable[[], object]) -> int:
        """Return the multiply-adds of `work`, which is run only the first time that `key` is seen."""
        if key not in self._costs:
            if len(self._costs) >= _COSTS_MAX:
                self._costs.clear()
            self._costs[key] = count_multiply_adds(work)
        return self._costs[key]

    @contextmanager
    def _focused(self, *, shadowed: GraftedSeed | None = None, muted: GraftedSeed | None = None) -> Iterator[None]:
        self._focus.shadowed, self._focus.muted = shadowed, muted
        try:
            yield
        finally:
            self._focus.shadowed = self._focus.muted = None


def _values_not_finite(module: nn.Module) -> int:
    """Return how many parameters and float buffers hold a value that is not finite."""
    tensors = [*module.parameters(), *(buffer for buffer in module.buffers() if buffer.is_floating_point())]
    return sum(not bool(torch.isfinite(tensor).all()) for tensor in tensors)
