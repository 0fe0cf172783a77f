"""A blueprint: a named way to build a seed for any shape, within stated bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from esper.core.errors import IntegrityError
from esper.core.kernel import FORMAT_VERSION, features_of, make_request, plan_spec
from esper.core.text import shown
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

    A body that is to be `mixed` always ends in a zero-initialised projection, and one that is `plain` in a single
    zero-initialised factor for everything, features cut off or zeros added as needed. Any other ends in a
    zero-initialised gain where it already yields as many features as the slot takes, and else in a projection.
    """

    tree: Tree
    features: int
    mixed: bool = False
    plain: bool = False


#: (features of the slot's input, checked parameters) -> body; the features of a map are its channels.
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
        if unknown := sorted(shown(name) for name in set(parameters) - set(self.parameters)):
            raise UnknownParameter(
                f"{self} has no parameter {unknown[0]}",
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
                    f"{self} cannot take {name} = {shown(value)}",
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
        features, out_features = features_of(layout, request.in_shape), features_of(layout, request.out_shape)
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
                f"{self} cannot be built from {features} to {out_features} features for shape {list(shape)}",
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

        spec = self.spec(layout=layout, shape=shape, parameters=parameters, out_shape=out_shape)
        # Hazards are latent until they are trained: only what trains one has to keep it in quarantine.
        module = build_module(spec, quarantine=self.quarantine_only)
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


def nearest_integer(value: float) -> int:
    """Return the whole number nearest to `value`, halves upward: the rule for every parameter that counts things."""
    return math.floor(value + 0.5)


def _end(body: Body, out_features: int) -> Tree:
    if body.plain:
        return {"op": "scalar_gain", "in": body.features, "out": out_features}
    if body.features == out_features and not body.mixed:
        return {"op": "gain", "features": out_features}
    return {"op": "projection", "in": body.features, "out": out_features}
