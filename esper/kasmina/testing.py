"""An in-memory kernel runtime: the port's fake, for tests and for loops without a log."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Mapping

import torch
from torch import nn

from esper.core.errors import IntegrityError
from esper.core.ids import sha256_hex
from esper.core.ports import FetchedKernel, KernelUnavailable
from esper.core.rng import derive_seed
from esper.leyline import messages as ly

KernelFactory = Callable[[ly.KernelRequestSpec, torch.Generator], nn.Module]


class InMemoryRuntime:
    """Makes kernels by plain functions and keeps them by digest; implements `esper.core.ports.BlueprintRuntime`.

    `factories`: blueprint id -> function of (request, generator). The same request gives the same weights.
    `unavailable`: blueprint id -> reason with which its fetch fails.
    """

    def __init__(self, factories: Mapping[str, KernelFactory], *, unavailable: Mapping[str, str] | None = None) -> None:
        self._factories = dict(factories)
        self._unavailable = dict(unavailable or {})
        self._kept: dict[str, FetchedKernel] = {}
        self.requests: list[ly.KernelRequestSpec] = []

    def fetch_kernel(self, request: ly.KernelRequestSpec, *, run_id: str, wait_seconds: float) -> FetchedKernel:
        """Return the kernel for `request`; raise KernelUnavailable for an unknown or unavailable blueprint."""
        self.requests.append(request)
        reason = self._unavailable.get(request.blueprint_id)
        if reason is None and request.blueprint_id not in self._factories:
            reason = "unknown_blueprint"
        if reason is not None:
            raise KernelUnavailable(f"no kernel of {request.blueprint_id!r} for run {run_id!r}", reason=reason)
        name = json.dumps(
            [
                request.blueprint_id,
                sorted(request.parameters.items()),
                request.layout,
                list(request.in_shape),
                list(request.out_shape),
                request.dtype,
            ]
        )
        digest = sha256_hex(name.encode())
        generator = torch.Generator().manual_seed(derive_seed(0, digest))
        module = self._factories[request.blueprint_id](request, generator)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        manifest = ly.ArtifactManifest(request=request, kernel_id=digest, parameters=parameters)
        self._kept[digest] = FetchedKernel(module, digest, manifest, 0.0)
        return self.fetch_by_digest(digest)

    def fetch_by_digest(self, artifact_ref: str) -> FetchedKernel:
        """Return a fresh copy of a kernel that was made before; raise KernelUnavailable for any other."""
        kept = self._kept.get(artifact_ref)
        if kept is None:
            raise KernelUnavailable(f"no kernel is kept under {artifact_ref!r}", reason="not_found")
        if kept.artifact_ref != artifact_ref:
            raise IntegrityError(f"what is kept under {artifact_ref!r} is another kernel")
        return FetchedKernel(copy.deepcopy(kept.module), artifact_ref, kept.manifest, 0.0)


def _empty_linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a layer whose construction draws nothing: `nn.Linear` itself would draw from the global stream."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]  # unannotated in torch
    return layer


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Return a linear layer drawn from `generator` alone, uniform in +-1/sqrt(inputs) (torch's own default)."""
    layer = _empty_linear(inputs, outputs)
    bound = inputs**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer of zeros: the end of a kernel that changes nothing before it has learned."""
    layer = _empty_linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    return layer


def bypass(*, width: int, dropout: float = 0.0) -> KernelFactory:
    """Return a factory of last-dimension MLPs in -> width -> out (ReLU, dropout) that end in zeros."""

    def build(request: ly.KernelRequestSpec, generator: torch.Generator) -> nn.Module:
        layers: list[nn.Module] = [linear(request.in_shape[-1], width, generator), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        return nn.Sequential(*layers, zero_linear(width, request.out_shape[-1]))

    return build


class ForeseeingRuntime(InMemoryRuntime):
    """An in-memory runtime whose kernels are made ahead: each after `looks` prefetches; `PrefetchingRuntime`.

    `failing`: blueprint id -> reason with which its prefetch fails, though its fetch may not.
    """

    def __init__(
        self, factories: Mapping[str, KernelFactory], *, looks: int = 1, failing: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(factories)
        self._looks = looks
        self._failing = dict(failing or {})
        self._lock = threading.Lock()
        #: Blueprint of every call of `prefetch`, in order.
        self.looked: list[str] = []

    def prefetch(self, request: ly.KernelRequestSpec, *, run_id: str) -> FetchedKernel | None:
        """Return the kernel from the `looks`th call for its blueprint on."""
        with self._lock:
            self.looked.append(request.blueprint_id)
            if request.blueprint_id in self._failing:
                reason = self._failing[request.blueprint_id]
                raise KernelUnavailable(f"no kernel of {request.blueprint_id!r} ahead", reason=reason)
            if self.looked.count(request.blueprint_id) < self._looks:
                return None
            return super().fetch_kernel(request, run_id=run_id, wait_seconds=0.0)

    def fetch_kernel(self, request: ly.KernelRequestSpec, *, run_id: str, wait_seconds: float) -> FetchedKernel:
        """Return the kernel at once, whether it was foreseen or not."""
        with self._lock:
            return super().fetch_kernel(request, run_id=run_id, wait_seconds=wait_seconds)
