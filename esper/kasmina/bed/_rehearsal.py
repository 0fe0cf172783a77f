"""The sensor of G1 before a seed is planted: one shadow pass of it, looked at from both sides, and nothing kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from esper.core.apart import in_eval_mode, random_states
from esper.core.inputs import Batch, first_samples
from esper.kasmina.bed._seed_training import LossFunction
from esper.kasmina.gates._gradients import NO_GRADIENTS, GradientEvidence, GradientRecord
from esper.kasmina.grafting._contents import contents_of
from esper.kasmina.grafting._graft import Graft
from esper.kasmina.grafting._passes import HostPasses
from esper.kasmina.grafting._seed import GraftedSeed, PassFocus
from esper.kasmina.grafting._slots import SlotSpec

logger = logging.getLogger("esper.kasmina")

#: A rehearsal needs a gradient, not a good estimate of it.
_SAMPLES_MAX = 64


@dataclass(frozen=True)
class Precision:
    """The autocast under which a pass runs: (kind of device, whether it is on, its dtype)."""

    kinds: tuple[tuple[str, bool, torch.dtype], ...]

    @classmethod
    def now(cls, devices: Sequence[torch.device]) -> Precision:
        """Return what holds now for the CPU and these devices."""
        kinds = dict.fromkeys(("cpu", *(device.type for device in devices)))
        return cls(tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds))

    @contextmanager
    def again(self) -> Iterator[None]:
        """Run the block under it."""
        with ExitStack() as stack:
            for kind, enabled, dtype in self.kinds:
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
            yield


class Rehearsal:
    """One shadow forward and backward of a seed that is not planted; the seed learns nothing.

    `seed` is on no slot. What the pass computes depends on nothing but the host, the seed, `batch` and `rng_seed`.
    """

    def __init__(
        self,
        model: nn.Module,
        passes: HostPasses,
        focus: PassFocus,
        *,
        spec: SlotSpec,
        seed: GraftedSeed,
        batch: Batch,
        loss_fn: LossFunction,
        rng_seed: int,
    ) -> None:
        self.inputs, self._targets = (first_samples(each, _SAMPLES_MAX) for each in batch)
        #: Under what it is first run.
        self.precision = Precision.now(passes.devices)
        self._model = model
        self._passes = passes
        self._focus = focus
        self._spec = spec
        self._seed = seed
        self._loss_fn = loss_fn
        self._rng_seed = rng_seed
        self._parameters = list(seed.parameters())

    def evidence(self) -> GradientEvidence:
        """Run it, and return its gradient's norm and what it changed of the host.

        The host's tensors, gradients and random streams are compared by content before and after. A pass that torch
        refuses (shapes, memory) leaves no gradient, and G1 fails.
        """
        devices = self._passes.devices
        before, streams = contents_of(self._model), random_states(devices)
        try:
            self._pass()
        except RuntimeError as error:
            logger.warning("the rehearsal of a seed in %s failed: %s", self._spec.slot, error)
        after = contents_of(self._model, like=before)
        record = _norm_record([parameter.grad for parameter in self._parameters if parameter.grad is not None])
        for parameter in self._parameters:
            parameter.grad = None
        changes = before.changes(after)
        changes += sum(not torch.equal(old, new) for old, new in zip(streams, random_states(devices), strict=True))
        return GradientEvidence(record, host_changes=changes, seed_changes=0)

    def again(self) -> None:
        """Run it once more for its work alone, in the precision in which it was run first; what it gives is dropped."""
        kept = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        try:
            with self.precision.again():
                self._pass()
        except RuntimeError as error:
            logger.info("the rehearsal of a seed in %s failed again: %s", self._spec.slot, error)
        finally:
            for parameter, gradient in zip(self._parameters, kept, strict=True):
                parameter.grad = gradient

    def _pass(self) -> None:
        graft = Graft(self._model, self._spec, "rehearsal", self._seed)
        try:
            with (
                torch.enable_grad(),
                in_eval_mode(self._seed),
                self._passes.quiet(seed=self._rng_seed),
                self._focus.on(shadowed=self._seed),
                self._passes.standing_in(),
            ):
                loss = self._loss_fn(self._passes.forward(self.inputs), self._targets)
                if loss.requires_grad:
                    torch.autograd.backward(loss)
        finally:
            graft.remove()


def _norm_record(gradients: list[Tensor]) -> GradientRecord:
    if not gradients:
        return NO_GRADIENTS
    norm = float(get_total_norm(gradients, foreach=False))
    return GradientRecord(steps=1, lowest=norm, highest=norm)
