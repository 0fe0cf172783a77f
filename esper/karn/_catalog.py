"""The catalogue: every blueprint that can really be built, and a way to choose one that a replay repeats."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from esper.karn._blueprint import Blueprint, Tree
from esper.karn._errors import BlueprintError, UnknownBlueprint
from esper.karn._vector import VECTOR_BLUEPRINTS
from esper.leyline import messages as ly

_CATALOGUE: Final[Mapping[str, Blueprint]] = MappingProxyType(
    {blueprint.blueprint_id: blueprint for blueprint in sorted(VECTOR_BLUEPRINTS, key=lambda each: each.blueprint_id)}
)


def catalogue() -> Mapping[str, Blueprint]:
    """Return every blueprint by its id, in id order; read-only."""
    return _CATALOGUE


class KarnCatalog:
    """Answers questions about the blueprints: which there are, which to take, what one is made of."""

    def __init__(self, blueprints: Mapping[str, Blueprint] | None = None) -> None:
        self._blueprints = catalogue() if blueprints is None else dict(sorted(blueprints.items()))

    def get(self, blueprint_id: str) -> Blueprint:
        """Return the blueprint of this id.

        Raises:
            UnknownBlueprint: the catalogue has none.
        """
        try:
            return self._blueprints[blueprint_id]
        except KeyError:
            raise UnknownBlueprint(
                f"no blueprint {blueprint_id[:80]!r}",
                cause=f"the catalogue holds {', '.join(self._blueprints)}",
                next_step="choose one of these",
            ) from None

    def list(self, *, tier: str | None = None, layout: str | None = None) -> Sequence[Blueprint]:
        """Return the blueprints of this tier that can be built for this layout, in id order; None means any."""
        return [
            blueprint
            for blueprint in self._blueprints.values()
            if tier in (None, blueprint.tier) and (layout is None or layout in blueprint.layouts)
        ]

    def select(
        self,
        context: str = "",
        *,
        tier: str = "SAFE",
        layout: str | None = None,
    ) -> Blueprint:
        """Return the candidate that `context` always gives: an even spread over contexts, the same one on a replay.

        Candidates are those of `list`; the index is the first four bytes of SHA-256(context), big-endian,
        modulo their number. Without a context it is the first.

        Raises:
            BlueprintError: nothing fits.
        """
        candidates = self.list(tier=tier, layout=layout)
        if not candidates:
            raise BlueprintError(
                "no blueprint to select",
                cause=f"the catalogue has none of tier {tier} for layout {layout!r}",
                next_step="ask for another tier or layout",
            )
        if not context:
            return candidates[0]
        return candidates[int.from_bytes(hashlib.sha256(context.encode()).digest()[:4], "big") % len(candidates)]

    def build_spec(self, request: ly.KernelRequestSpec) -> Tree:
        """Return the spec that answers `request`: what the forge compiles.

        Raises:
            UnknownBlueprint, BlueprintError, UsageError: the request cannot be answered.
        """
        return self.get(request.blueprint_id).spec(
            layout=request.layout,
            shape=list(request.in_shape),
            parameters=dict(request.parameters),
            out_shape=list(request.out_shape),
            dtype=request.dtype,
        )
