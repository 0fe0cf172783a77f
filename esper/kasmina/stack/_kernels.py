"""Kernels for a stack: fetched as for a lone run, once for all members that want the same, and made ready to stack."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Final

import torch

from esper.core.apart import forked_rng
from esper.core.errors import IntegrityError, UsageError
from esper.core.flops import count_multiply_adds
from esper.core.ports import BlueprintRuntime, FetchedKernel, KernelUnavailable
from esper.core.rng import derive_seed
from esper.core.stacking import program_of
from esper.kasmina.bed._quarantine import REFUSED, refusal_of
from esper.kasmina.gates._gates import KernelEvidence
from esper.kasmina.grafting._slots import SlotSpec
from esper.kasmina.lifecycle._decide import KERNEL_UNAVAILABLE
from esper.kasmina.stack._group import StackedKernel
from esper.leyline import messages as ly

logger = logging.getLogger("esper.kasmina.stack")

#: Why a kernel that a lone run could graft is refused: its module keeps buffers, draws random numbers, or does what
#: torch cannot map over members.
NOT_STACKABLE: Final = KERNEL_UNAVAILABLE + "not_stackable"
_SAMPLES: Final = 2


class StackKernels:
    """Fetches and prepares kernels; each distinct one is tried out once, for its values are every member's."""

    def __init__(
        self,
        runtime: BlueprintRuntime,
        *,
        device: torch.device,
        descriptors: Mapping[str, ly.BlueprintDescriptor],
        wait_seconds: float,
    ) -> None:
        self._runtime = runtime
        self._device = device
        self._descriptors = descriptors
        self._wait_seconds = wait_seconds
        self._ready: dict[tuple[str, str], StackedKernel | str] = {}
        #: What one edge fetched: asked for once, whoever else wants it there.
        self._edge: dict[bytes, tuple[FetchedKernel | None, str]] = {}

    def begin_edge(self) -> None:
        """Ask anew from here on: what people say of a blueprint may have changed."""
        self._edge = {}

    def live(
        self, spec: SlotSpec, wish: ly.KernelRequestSpec, *, run_id: str
    ) -> tuple[StackedKernel | str, str, float]:
        """Return the kernel or the reason for which there is none, its digest, and what the fetch took (ms)."""
        key = wish.SerializeToString(deterministic=True)
        if key not in self._edge:
            self._edge[key] = self._fetch(wish, run_id)
        kernel, reason = self._edge[key]
        if kernel is None:
            return reason, "", 0.0
        refusal = refusal_of(kernel, self._descriptors.get(wish.blueprint_id))
        if refusal:
            # A stack holds no trials in quarantine; the refusal stands all the same.
            return REFUSED + refusal, kernel.artifact_ref, kernel.latency_ms
        return self._prepared(spec, kernel), kernel.artifact_ref, kernel.latency_ms

    def recorded(self, spec: SlotSpec, outcome: ly.CommandOutcome) -> StackedKernel | str:
        """Return the kernel that a recorded outcome names.

        Raises:
            IntegrityError: it names none.
            KernelUnavailable: no store holds it any more.
        """
        digest = outcome.kernel_digest
        if not digest:
            raise IntegrityError(
                f"epoch {outcome.epoch} of run {outcome.run_id!r} does not re-execute as recorded",
                cause="a kernel is needed now, and its outcome names none",
                next_step="compare the numerics fingerprints of both attempts",
            )
        if (spec.slot, digest) in self._ready:
            return self._ready[spec.slot, digest]
        with forked_rng(self._devices()):
            kernel = self._runtime.fetch_by_digest(digest)
        return self._prepared(spec, kernel)

    def _devices(self) -> tuple[torch.device, ...]:
        return (self._device,) if self._device.type == "cuda" else ()

    def _fetch(self, wish: ly.KernelRequestSpec, run_id: str) -> tuple[FetchedKernel | None, str]:
        try:
            with forked_rng(self._devices()):
                return self._runtime.fetch_kernel(wish, run_id=run_id, wait_seconds=self._wait_seconds), ""
        except KernelUnavailable as error:
            logger.warning("no kernel for %s: %s", wish.blueprint_id, error)
            return None, KERNEL_UNAVAILABLE + error.reason
        except UsageError as error:
            logger.warning("nobody can make a kernel for %s: %s", wish.blueprint_id, error)
            return None, KERNEL_UNAVAILABLE + "unusable_request"
        except IntegrityError as error:
            logger.error("the kernel for %s was refused: %s", wish.blueprint_id, error)  # noqa: TRY400 - no traceback needed
            return None, KERNEL_UNAVAILABLE + "integrity"

    def _prepared(self, spec: SlotSpec, kernel: FetchedKernel) -> StackedKernel | str:
        key = (spec.slot, kernel.artifact_ref)
        if key not in self._ready:
            with forked_rng(self._devices()):
                self._ready[key] = self._stacked(spec, kernel)
        return self._ready[key]

    def _stacked(self, spec: SlotSpec, kernel: FetchedKernel) -> StackedKernel | str:
        if kernel.module is None:
            raise IntegrityError(
                f"kernel {kernel.artifact_ref} has no module",
                cause=f"whoever fetched it refused to build it: {kernel.refusal or 'no reason given'}",
                next_step="`esper blueprints show` says what holds for its blueprint",
            )
        body = copy.deepcopy(kernel.module).to(self._device).requires_grad_(requires_grad=True).eval()
        parameters = {name: each.detach() for name, each in body.named_parameters()}
        if not parameters or any(str(each.dtype) != f"torch.{spec.dtype}" for each in parameters.values()):
            return NOT_STACKABLE
        sample = self._sample(spec)
        try:
            program = program_of(body, what=f"kernel {kernel.artifact_ref}")
            for mode in (True, False):  # Whoever draws random numbers does so in training mode.
                body.train(mode)
                with torch.no_grad():
                    output = program.run({name: each[None] for name, each in parameters.items()}, sample[None])[0]
                    cost = count_multiply_adds(lambda: body(sample))
        except (RuntimeError, ValueError, UsageError) as error:
            logger.warning("kernel %s cannot be stacked: %s", kernel.artifact_ref, error)
            return NOT_STACKABLE
        fits = output.shape == (_SAMPLES, *spec.out_shape) and output.dtype == sample.dtype
        broken = sum(not bool(torch.isfinite(each).all()) for each in parameters.values())
        return StackedKernel(
            digest=kernel.artifact_ref,
            body=body,
            program=program,
            shapes={name: tuple(each.shape) for name, each in parameters.items()},
            values_P=torch.cat([each.reshape(-1) for each in parameters.values()]),
            evidence=KernelEvidence(broken, fits, float(output.abs().max())),
            parameters=sum(each.numel() for each in parameters.values()),
            multiply_adds_per_sample=cost // _SAMPLES,
        )

    def _sample(self, spec: SlotSpec) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derive_seed(0, "kasmina", "try-out", spec.slot))
        sample = torch.randn(_SAMPLES, *spec.in_shape, generator=generator)
        return sample.to(self._device, getattr(torch, spec.dtype))
