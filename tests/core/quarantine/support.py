"""Trials to put into quarantine, and limits that a crowded machine can keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import safetensors.torch
import torch

from esper.core.kernel import make_artifact, make_request
from esper.core.quarantine import QuarantineLimits, Trial
from esper.karn import Blueprint

#: Loading torch twice takes 1.5 s on an idle machine and ten times that on one that runs five test suites.
PATIENT = QuarantineLimits(start_seconds=180.0, wall_seconds=60.0)


def lowest(blueprint: Blueprint) -> dict[str, float]:
    """Return every parameter at its lower bound: the mildest form of a hazard, deadlocks and leaks included."""
    return {name: low for name, (low, _) in blueprint.parameters.items()}


def trial_of(
    blueprint: Blueprint,
    *,
    layout: str = "vector",
    shape: Sequence[int] = (16,),
    parameters: Mapping[str, float] | None = None,
) -> Trial:
    """Return the blueprint's real artifact with a batch of noise, the same for the same arguments."""
    parameters = lowest(blueprint) if parameters is None else parameters
    request = make_request(blueprint.blueprint_id, parameters, layout=layout, in_shape=shape)
    artifact = make_artifact(request, blueprint.spec(layout=layout, shape=shape, parameters=parameters))
    generator = torch.Generator().manual_seed(5)
    batch = {name: torch.randn(32, *shape, generator=generator) for name in ("inputs", "targets")}
    return Trial(artifact, safetensors.torch.save(batch), seed=3)
