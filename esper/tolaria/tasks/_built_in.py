"""Hosts that have kernels from their beginning: what a run grew, trained from nothing, to hold growing against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from esper.core.errors import EsperError, UsageError
from esper.core.kernel import SPEC_BYTES_MAX, build_module, init_from_scratch, parse_canonical
from esper.core.kernel._modules._features import Residual, Sum
from esper.core.rng import derive_seed
from esper.leyline import messages as ly
from esper.tolaria.tasks._tasks import Host, SlotSpec


def with_built_in(host: Host, built_in: Iterable[ly.BuiltIn], slots: Sequence[SlotSpec], *, seed: int) -> Host:
    """Return `host` with each kernel at its slot, heard as a fossilised seed of that slot is.

    The host's own first values stay those of a run of this seed without kernels, to the bit; those of kernels follow
    from the seed, the slot and their place in the list. Kernels of one slot add up in their order.

    Raises:
        UsageError: there is no such slot, or a spec is no kernel that may be trained here.
    """
    named = {spec.name: spec for spec in slots}
    for index, each in enumerate(built_in):
        spec = named.get(each.slot)
        if spec is None:
            raise UsageError(
                f"a kernel cannot be built into slot {each.slot!r}",
                cause=f"the slots are {', '.join(sorted(named)) or 'none'}",
                next_step="Name one of them",
            )
        generator = torch.Generator().manual_seed(derive_seed(seed, "built_in", each.slot, index))
        kernel = _kernel(each, generator)
        module = host.module.get_submodule(spec.module)
        host.module.set_submodule(spec.module, _together(module, kernel, residual=spec.placement == "residual"))
    return host


def _kernel(built_in: ly.BuiltIn, generator: torch.Generator) -> nn.Module:
    try:
        kernel = build_module(parse_canonical(built_in.spec, what="kernel spec", bytes_max=SPEC_BYTES_MAX))
    except EsperError as error:
        raise UsageError(
            f"a kernel cannot be built into slot {built_in.slot!r}", cause=str(error), next_step="Correct its spec"
        ) from error
    init_from_scratch(kernel, generator)
    return kernel


def _together(module: nn.Module, kernel: nn.Module, *, residual: bool) -> nn.Module:
    """Return what a stack also can take apart: module(x) + kernel(x), or y + kernel(y) of the module's output y."""
    return nn.Sequential(module, Residual([kernel])) if residual else Sum([module, kernel])
