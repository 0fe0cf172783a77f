"""The bench: a host with the seeds that are on it, and every measurement of the one or the others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from esper.core.apart import forked_rng
from esper.core.breaker import CircuitBreaker
from esper.core.errors import UsageError
from esper.core.flops import count_multiply_adds
from esper.core.inputs import Batch, samples_in, shapes_of
from esper.core.ranks import ALONE, EndOfBackward, Ranks
from esper.core.rng import derive_seed
from esper.kasmina._config import KasminaConfig
from esper.kasmina.bed._quarantine import slot_batch
from esper.kasmina.bed._rehearsal import Precision, Rehearsal
from esper.kasmina.bed._remains import Remains
from esper.kasmina.bed._seed_training import LossFunction, SeedTrainer
from esper.kasmina.bed._sensors import inspect_interface
from esper.kasmina.gates._gates import KernelEvidence
from esper.kasmina.gates._gradients import GradientEvidence
from esper.kasmina.gates._interface import InterfaceEvidence
from esper.kasmina.gates._reset import ResetEvidence
from esper.kasmina.grafting._graft import Graft
from esper.kasmina.grafting._passes import HostPasses, Isolation
from esper.kasmina.grafting._seed import GraftedSeed, PassFocus
from esper.kasmina.grafting._slots import SlotSpec
from esper.kasmina.isolation._monitor import IsolationMonitor, Leaks
from esper.kasmina.isolation._ownership import HOST, OwnershipRegistry

Probe = Sequence[Batch]

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


class SeedBench:
    """Holds the host and its live seeds, and leaves both as they are. No decision is made here."""

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
        ranks: Ranks = ALONE,
    ) -> None:
        self.live: dict[str, LiveSeed] = {}
        self._multiply_adds = 0
        #: The rehearsal that was run last, and whose, until its work is counted.
        self._uncounted: tuple[str, Rehearsal] | None = None
        self.loss_fn = loss_fn
        self.probe = [(inputs, targets) for inputs, targets in probe or () if samples_in(inputs)] or None
        #: The batch that was trained on last: what stands in where there is no probe.
        self.last_batch: Batch | None = None
        self._model = model
        self._seed = seed
        self._optimizer = optimizer
        self._config = config
        self._isolation = isolation
        self.ranks = ranks
        self._late = EndOfBackward(ranks)
        self._passes = HostPasses(model, isolation=isolation)
        self._focus = PassFocus(detach=isolation.detach)
        self._costs: dict[Hashable, int] = {}
        self.registry = OwnershipRegistry()
        self.registry.register(HOST, {**dict(model.named_parameters()), **dict(model.named_buffers())})
        self.monitor = IsolationMonitor(
            self.registry,
            devices=self._passes.devices,
            breaker=CircuitBreaker(config.isolation_breaches_max, float(config.isolation_open_epochs)),
            active=isolation.monitor,
        )
        #: Weak references to culled seeds, until these are reset.
        self._remains: dict[str, Remains] = {}

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of own work so far."""
        self.count_rehearsal()
        return self._multiply_adds

    @multiply_adds.setter
    def multiply_adds(self, total: int) -> None:
        self._multiply_adds, self._uncounted = total, None

    def count_rehearsal(self) -> None:
        """Count the work of the last rehearsal, by a pass of its own: no training waits for that at an edge.

        Called before the host next changes or anybody asks; what is counted is the same as it would have been then.
        """
        if self._uncounted is None:
            return
        (seed_id, rehearsal), self._uncounted = self._uncounted, None
        if rehearsal.precision == Precision.now(self._passes.devices):  # It is a shadow pass like those to come.
            key = ("shadow", seed_id, shapes_of(rehearsal.inputs), *self._heard())
            self._multiply_adds += self._cost(key, rehearsal.again)
        else:
            self._multiply_adds += count_multiply_adds(rehearsal.again)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Run the block on forked random streams: whatever is built in it draws nothing from the host's."""
        with forked_rng(self._passes.devices):
            yield

    def prepare(self, spec: SlotSpec, kernel: nn.Module) -> PreparedSeed:
        """Return a copy of `kernel` on the slot's device, tried out on one batch of the slot's shape.

        A copy, because a runtime may hand the same module to two slots.
        """
        with self.apart():
            body = copy.deepcopy(kernel).to(self._device(spec)).requires_grad_(True).eval()
            evidence, multiply_adds = self._try_out(spec, body)
        parameters = sum(parameter.numel() for parameter in body.parameters())
        return PreparedSeed(body, evidence, parameters, multiply_adds)

    @property
    def device(self) -> torch.device:
        """Where the host's first parameter lies."""
        return next((parameter.device for parameter in self._model.parameters()), torch.device("cpu"))

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
        return slot_batch(self._model, self._passes, spec, self.batch(), self.loss_fn)

    def _grafted(self, spec: SlotSpec, prepared: PreparedSeed, *, rng_seed: int) -> GraftedSeed:
        return GraftedSeed(
            prepared.body,
            placement=spec.placement,
            device=self._device(spec),
            rng_seed=rng_seed,
            focus=self._focus,
            layout=spec.layout,
        )

    # -- evidence --------------------------------------------------------------------------------------------

    def faults(self, seed_id: str) -> str:
        """Return what is wrong with the seed, "non_finite" or "isolation"; nothing when it is sound. Waits."""
        live = self.live[seed_id]
        sound = bool(live.seed.sound) and not _values_not_finite(live.seed.body)
        return self.monitor.fault(seed_id) if sound else "non_finite"

    def batch(self) -> Batch | None:
        """Return a batch to measure on: of the probe, else the one trained on last; None before there is any."""
        return self.probe[0] if self.probe else self.last_batch

    def rehearsal(self, seed_id: str, spec: SlotSpec, prepared: PreparedSeed) -> GradientEvidence | None:
        """Return what one shadow pass of a seed shows that is not planted yet; None without a loss or a batch."""
        batch, loss_fn = self.batch(), self.loss_fn
        if batch is None or loss_fn is None:
            return None
        self.count_rehearsal()
        rng_seed = derive_seed(self._seed, "kasmina", "rehearsal", seed_id)
        rehearsal = Rehearsal(
            self._model,
            self._passes,
            self._focus,
            spec=spec,
            seed=self._grafted(spec, prepared, rng_seed=rng_seed),
            batch=batch,
            loss_fn=loss_fn,
            rng_seed=rng_seed,
        )
        evidence = rehearsal.evidence()
        if not self._isolation.monitor:
            evidence = replace(evidence, host_changes=0)
        if not evidence.host_changes:  # Who reached the host is not run again, and its work is not counted.
            self._uncounted = seed_id, rehearsal
        self.monitor.breach(seed_id, Leaks(host_changes=evidence.host_changes))
        return evidence

    def prepared_again(self, seed_id: str) -> tuple[SlotSpec, PreparedSeed]:
        """Return a seed that is on the host, as it was prepared; its body is the seed's own."""
        live = self.live[seed_id]
        known = KernelEvidence(0, True, 0.0)
        return live.spec, PreparedSeed(live.seed.body, known, live.parameters, live.multiply_adds_per_sample)

    def gradient_evidence(self, seed_id: str) -> GradientEvidence:
        """Return what the last epoch showed of a seed in TRAINING."""
        leaks = self.monitor.leaks(seed_id)
        return GradientEvidence(self.live[seed_id].trainer.gradients, leaks.host_changes, leaks.seed_changes)

    def interface(self, seed_id: str) -> InterfaceEvidence | None:
        """Return how a seed fits its slot on a batch; None before there is any."""
        live, batch = self.live[seed_id], self.batch()
        if batch is None:
            return None
        inputs = batch[0]

        def work() -> InterfaceEvidence:
            return inspect_interface(
                self._model, self._passes, self._focus, spec=live.spec, seed=live.seed, inputs=inputs
            )

        self.multiply_adds += self._cost(("interface", seed_id, shapes_of(inputs), *self._heard()), work)
        return work()

    def reset_evidence(self, seed_id: str) -> ResetEvidence | None:
        """Return what is left of a culled seed; None where nothing was kept to tell."""
        remains = self._remains.get(seed_id)
        return None if remains is None else remains.evidence(self.registry, self._optimizer)

    def _heard(self) -> tuple[str, ...]:
        return tuple(seed_id for seed_id, live in self.live.items() if live.seed.heard)

    def _cost(self, key: Hashable, work: Callable[[], object]) -> int:
        """Return the multiply-adds of `work`, which is run only the first time that `key` is seen."""
        if key not in self._costs:
            if len(self._costs) >= _COSTS_MAX:
                self._costs.clear()
            self._costs[key] = count_multiply_adds(work)
        return self._costs[key]


def _values_not_finite(module: nn.Module) -> int:
    """Return how many parameters and float buffers hold a value that is not finite. Waits once."""
    tensors = [*module.parameters(), *(buffer for buffer in module.buffers() if buffer.is_floating_point())]
    if not tensors:
        return 0
    finite = [torch.isfinite(tensor).all().to(tensors[0].device) for tensor in tensors]
    return len(finite) - int(torch.stack(finite).sum())
