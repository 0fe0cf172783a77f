"""Kernels that may not touch the host: why, what they are tried out on instead, and what is said about it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor, nn

from esper.core.approvals import APPROVAL_REQUIRED, QUARANTINE_ONLY, is_quarantine_only, needs_approval
from esper.core.inputs import Batch, Inputs, Output, Targets, first_samples, main_of, source_of, with_main
from esper.core.ports import FetchedKernel
from esper.core.quarantine import QuarantineLimits, QuarantineReport, Trial, run_in_quarantine
from esper.kasmina.bed._seed_training import LossFunction
from esper.kasmina.grafting._passes import HostPasses
from esper.kasmina.grafting._slots import SlotSpec
from esper.leyline import messages as ly

logger = logging.getLogger("esper.kasmina")

#: How a rejection begins after a trial in quarantine, and where none could be held for want of the kernel's bytes.
#: A re-execution takes both from the record: it runs nothing of such a kernel.
QUARANTINED: Final = "quarantined:"
REFUSED: Final = "blueprint_refused:"

_SAMPLES_MAX: Final = 32
#: Of inputs or targets: 8 MiB of float32.
_ELEMENTS_MAX: Final = 1 << 21
#: A batch norm in the kernel needs two samples.
_SAMPLES_MIN: Final = 2
_VERDICT_PREFIX: Final = "QUARANTINE_VERDICT_"


def refusal_of(kernel: FetchedKernel, own: ly.BlueprintDescriptor | None) -> str:
    """Return why the kernel may not be grafted, in a word of `esper.core.approvals`; nothing when it may.

    `own` is the descriptor that Kasmina was given. Whoever fetched knows of approvals if it hands a descriptor over;
    where nobody does, what needs approval has none.
    """
    if kernel.refusal:
        return kernel.refusal
    descriptor = kernel.descriptor or own
    if descriptor is None:
        return ""
    if is_quarantine_only(descriptor) or (own is not None and is_quarantine_only(own)):
        return QUARANTINE_ONLY
    return APPROVAL_REQUIRED if kernel.descriptor is None and needs_approval(descriptor) else ""


def reason_of(verdict: ly.QuarantineVerdict) -> str:
    """Return the reason of a rejection after this verdict: "quarantined:hang"."""
    return QUARANTINED + ly.QuarantineVerdict.Name(verdict).removeprefix(_VERDICT_PREFIX).lower()


def recorded_event(recorded: ly.CommandOutcome) -> ly.KernelQuarantined | None:
    """Return what stands in for the event of a recorded trial, so that events are counted alike; None without one."""
    if not recorded.reason.startswith(QUARANTINED):
        return None
    verdict = _VERDICT_PREFIX + recorded.reason.removeprefix(QUARANTINED).upper()
    return ly.KernelQuarantined(artifact_ref=recorded.kernel_digest, verdict=verdict)


def hold_trial(kernel: FetchedKernel, batch: bytes, *, seed: int, limits: QuarantineLimits) -> ly.KernelQuarantined:
    """Run the kernel's bytes in quarantine and return the event, without the names that the edge gives it.

    Nothing of the kernel is built in this process.
    """
    assert kernel.artifact is not None, "a trial needs the kernel's bytes"
    try:
        report = run_in_quarantine(Trial(kernel.artifact, batch, seed), limits)
    except OSError as error:
        logger.exception("no process can be started for a quarantine")
        report = QuarantineReport(ly.QUARANTINE_VERDICT_CRASHED, f"no process could be started: {error}", 0, 0.0, 0)
    return ly.KernelQuarantined(
        blueprint_id=kernel.manifest.request.blueprint_id,
        kernel_id=kernel.manifest.kernel_id,
        artifact_ref=kernel.artifact_ref,
        verdict=report.verdict,
        detail=report.detail,
        steps=report.steps,
        seconds=report.seconds,
        peak_memory_bytes=report.peak_memory_bytes,
        figures=report.figures,
    )


def slot_batch(
    model: nn.Module,
    passes: HostPasses,
    spec: SlotSpec,
    batch: Batch | None,
    loss_fn: LossFunction | None,
) -> bytes:
    """Return what a seed in this slot reads and what it should come near, as safetensors: copies, on the CPU.

    The target is the way down the host's loss from the slot's output, as gradient boosting fits its next learner
    (Friedman 2001); without a loss it is the slot's output itself. One extra forward of the host, and a backward that
    stops at the slot; the host keeps no trace of either. Without a batch both are noise.
    """
    if batch is None:
        generator = torch.Generator().manual_seed(0)
        source_B = torch.randn(_SAMPLES_MAX, *spec.in_shape, generator=generator)
        target_B = torch.randn(_SAMPLES_MAX, *spec.out_shape, generator=generator)
    else:
        inputs, targets = (first_samples(each, _SAMPLES_MAX) for each in batch)
        source_B, target_B = _captured(model, passes, spec, inputs, targets, loss_fn)
    return safetensors.torch.save({"inputs": _copied(source_B), "targets": _copied(target_B)})


def _captured(
    model: nn.Module,
    passes: HostPasses,
    spec: SlotSpec,
    inputs: Inputs,
    targets: Targets,
    loss_fn: LossFunction | None,
) -> tuple[Tensor, Tensor]:
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Output) -> Output:
        if seen:
            return None
        main: Tensor = main_of(output)
        heard = main.detach().requires_grad_(True)
        source: Tensor = source_of(args, kwargs) if spec.placement == "branch" else main
        seen.append((source.detach(), heard))
        return with_main(output, heard)

    handle = model.get_submodule(spec.module).register_forward_hook(watch, with_kwargs=True)
    try:
        with passes.quiet(seed=0), passes.standing_in(), torch.enable_grad():
            outputs = passes.forward(inputs)
            source_B, heard_B = seen[0]
            if loss_fn is None:
                return source_B, heard_B.detach()
            (gradient_B,) = torch.autograd.grad(loss_fn(outputs, targets), [heard_B], allow_unused=True)
    finally:
        handle.remove()
    return source_B, heard_B.detach() if gradient_B is None else -gradient_B


def _copied(tensor_B: Tensor) -> Tensor:
    """Return a finite copy on the CPU of at least two samples and at most so many elements."""
    most = max(_SAMPLES_MIN, _ELEMENTS_MAX // max(1, tensor_B[0].numel()))
    samples_B = tensor_B[:most]
    if len(samples_B) < _SAMPLES_MIN:
        samples_B = samples_B.expand(_SAMPLES_MIN, *samples_B.shape[1:])
    return torch.nan_to_num(samples_B.detach().to("cpu", copy=True)).contiguous()
