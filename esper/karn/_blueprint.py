"""A blueprint: a named way to build a seed for any shape, within stated bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from esper.core.errors import IntegrityError
from esper.core.ids import Digest, sha256_hex
from esper.core.kernel import FORMAT_VERSION, canonical_json, make_request, plan_spec
from esper.karn._errors import (
    BlueprintError,
    MissingParameter,
    ParameterOutOfBounds,
    UnknownParameter,
    UnsupportedLayout,
)
from esper.leyline import messages as ly

if TYPE_CHECKING:
    import torch
    from torch import nn

Tree = dict[str, object]


@dataclass(frozen=True)
class Body:
    """The randomly initialised part of a seed: its tree of words, and how many features it yields.

    A body that is to be `mixed` always ends in a zero-initialised projection; any other ends in a
    zero-initialised gain where it already yields as many features as the slot takes.
    """

    tree: Tree
    features: int
    mixed: bool = False


#: (features of the slot's input, checked parameters) -> body
BodyOf = Callable[[int, Mapping[str, float]], Body]


@dataclass(frozen=True)
class Blueprint:
    """One entry of the catalogue. What an id means never changes: another meaning is another id."""

    blueprint_id: str
    name: str
    #: Word of the contract's `BlueprintTier`: SAFE, EXPERIMENTAL or HIGH_RISK.
    tier: str
    risk: float
    stage: int
    description: str
    bodies: Mapping[str, BodyOf]
    #: name -> (low, high), both inclusive
    parameters: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    quarantine_only: bool = False
    approval_required: bool = False

    @property
    def layouts(self) -> tuple[str, ...]:
        """Layouts that it can be built for, out of vector, sequence, map1d, map2d."""
        return tuple(self.bodies)

    def check(self, parameters: Mapping[str, float]) -> None:
        """Refuse parameters that are not exactly this blueprint's, each finite and within bounds.

        Raises:
            UnknownParameter, MissingParameter, ParameterOutOfBounds: by name.
        """
        if unknown := sorted(set(parameters) - set(self.parameters)):
            raise UnknownParameter(
                f"{self} has no parameter {unknown[0]!r}",
                cause=f"its parameters are {sorted(self.parameters) or 'none'}",
                next_step="leave it out",
            )
        for name, (low, high) in self.parameters.items():
            if name not in parameters:
                raise MissingParameter(
                    f"{self} needs parameter {name!r}", next_step=f"give a number from {low} to {high}"
                )
            value = parameters[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ParameterOutOfBounds(
                    f"{self} cannot take {name} = {value!r}",
                    cause=f"its bounds are {low} to {high}, both included",
                    next_step="give a finite number within them",
                )

    def spec(
        self,
        *,
        layout: str,
        shape: Sequence[int],
        parameters: Mapping[str, float],
        out_shape: Sequence[int] | None = None,
        dtype: str = "float32",
    ) -> Tree:
        """Return the declarative spec of the seed for these shapes (of one sample); a pure function.

        Without `out_shape` the seed keeps the shape of its input.

        Raises:
            BlueprintError: layout or parameters do not fit, or the seed would be larger than a kernel may be.
            UsageError: shape or dtype is malformed.
        """
        if layout not in self.bodies:
            raise UnsupportedLayout(
                f"{self} cannot be built for layout {layout!r}",
                cause=f"it has a body for {', '.join(self.layouts)}",
                next_step="choose a blueprint that lists the layout",
            )
        self.check(parameters)
        request = make_request(
            self.blueprint_id, parameters, layout=layout, in_shape=shape, out_shape=out_shape, dtype=dtype
        )
        features, out_features = request.in_shape[-1], request.out_shape[-1]
        body = self.bodies[layout](features, dict(request.parameters))
        spec: Tree = {
            "format": FORMAT_VERSION,
            "layout": layout,
            "dtype": dtype,
            "in_shape": list(request.in_shape),
            "out_shape": list(request.out_shape),
            "body": body.tree,
            "end": _end(body, out_features),
        }
        try:
            plan_spec(spec)
        except IntegrityError as error:
            raise BlueprintError(
                f"{self} cannot be built from {features} to {out_features} features",
                cause=error.cause,
                next_step="choose a smaller slot or smaller parameters",
            ) from error
        return spec

    def build(
        self,
        *,
        layout: str,
        shape: Sequence[int],
        parameters: Mapping[str, float],
        generator: torch.Generator,
        out_shape: Sequence[int] | None = None,
    ) -> nn.Module:
        """Return the seed as a module: input (B, *shape), output (B, *out_shape), float32, exactly zero at first.

        Every first value is drawn from `generator` (a CPU one); no other random number is touched.

        Raises:
            BlueprintError, UsageError: as `spec`.
        """
        # Whoever only lists the catalogue starts without torch.
        from esper.core.kernel import build_module, init_module

        module = build_module(self.spec(layout=layout, shape=shape, parameters=parameters, out_shape=out_shape))
        init_module(module, generator)
        return module

    def descriptor(self) -> ly.BlueprintDescriptor:
        """Return the blueprint as the log records it."""
        return ly.BlueprintDescriptor(
            blueprint_id=self.blueprint_id,
            name=self.name,
            tier=f"BLUEPRINT_TIER_{self.tier}",
            allowed_parameters={
                name: ly.BlueprintParameterBounds(min_value=low, max_value=high)
                for name, (low, high) in self.parameters.items()
            },
            risk=self.risk,
            stage=self.stage,
            quarantine_only=self.quarantine_only,
            approval_required=self.approval_required,
            description=self.description,
            layouts=self.layouts,
        )

    def __str__(self) -> str:
        return f"blueprint {self.blueprint_id} ({self.name})"


def descriptor_digest(descriptor: ly.BlueprintDescriptor) -> Digest:
    """Return the SHA-256 over the descriptor's canonical form, by which a registration is known to be old news."""
    bounds = descriptor.allowed_parameters
    fields = {
        "allowed_parameters": {name: [bounds[name].min_value, bounds[name].max_value] for name in bounds},
        "approval_required": descriptor.approval_required,
        "blueprint_id": descriptor.blueprint_id,
        "description": descriptor.description,
        "layouts": list(descriptor.layouts),
        "name": descriptor.name,
        "quarantine_only": descriptor.quarantine_only,
        "risk": descriptor.risk,
        "stage": descriptor.stage,
        "tier": ly.BlueprintTier.Name(descriptor.tier),
    }
    return sha256_hex(canonical_json(fields))


def nearest_integer(value: float) -> int:
    """Return the whole number nearest to `value`, halves upward: the rule for every parameter that counts things."""
    return math.floor(value + 0.5)


def _end(body: Body, out_features: int) -> Tree:
    if body.features == out_features and not body.mixed:
        return {"op": "gain", "features": out_features}
    return {"op": "projection", "in": body.features, "out": out_features}
