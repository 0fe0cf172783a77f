"""The catalogue: every blueprint that can really be built, and a way to choose one that a replay repeats."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType

from esper.core.approvals import Approvals, refusal, registered
from esper.core.text import shown
from esper.karn._blueprint import Blueprint, Tree
from esper.karn._errors import BlueprintRefused, UnknownBlueprint
from esper.karn._own import BrokenPlugin, installed, load_own
from esper.karn._selection import Wish, candidates, choose, conservative_ids
from esper.karn._shipped import SHIPPED_BLUEPRINTS
from esper.leyline import messages as ly

_logger = logging.getLogger("esper.karn")


@cache
def _loaded() -> tuple[Mapping[str, Blueprint], Sequence[BrokenPlugin]]:
    shipped = {blueprint.blueprint_id: blueprint for blueprint in SHIPPED_BLUEPRINTS}
    own, broken = load_own(installed(), shipped)
    for plugin in broken:
        _logger.warning("%s", plugin)
    every = {**shipped, **{blueprint.blueprint_id: blueprint for blueprint in own}}
    return MappingProxyType(dict(sorted(every.items()))), tuple(broken)


def catalogue() -> Mapping[str, Blueprint]:
    """Return every blueprint by its id, in id order, those of installed packages included; read-only."""
    return _loaded()[0]


def broken_plugins() -> Sequence[BrokenPlugin]:
    """Return the entry points of installed packages whose blueprints are not offered, with the reasons."""
    return _loaded()[1]


class KarnCatalog:
    """Answers questions about the blueprints: which there are, which to take, what one is made of."""

    def __init__(self, blueprints: Mapping[str, Blueprint] | None = None) -> None:
        self._blueprints = catalogue() if blueprints is None else dict(sorted(blueprints.items()))
        self._unsaid: Approvals | None = None

    def get(self, blueprint_id: str) -> Blueprint:
        """Return the blueprint of this id.

        Raises:
            UnknownBlueprint: the catalogue has none.
        """
        # Of something else than text, which may not even be hashable, there is none either.
        found = self._blueprints.get(blueprint_id) if isinstance(blueprint_id, str) else None
        if found is None:
            raise UnknownBlueprint(
                f"there is no blueprint {shown(blueprint_id)}",
                cause=f"the catalogue holds {', '.join(self._blueprints)}",
                next_step="choose one of these; `esper blueprints list` shows what each is",
            )
        return found

    def list(self, *, tier: str | None = None, layout: str | None = None) -> Sequence[Blueprint]:
        """Return the blueprints of this tier that can be built for this layout, in id order; None means any."""
        return candidates(self._blueprints, Wish(tier, layout, adversarial=True))

    def conservative_ids(self) -> frozenset[str]:
        """Return the ids of the conservative set: the first ten SAFE blueprints."""
        return conservative_ids(self._blueprints)

    def approvals(self) -> Approvals:
        """Return what holds where no log says anything: all are registered, and nobody approved any."""
        if self._unsaid is None:
            self._unsaid = registered(blueprint.descriptor() for blueprint in self._blueprints.values())
        return self._unsaid

    def select(
        self,
        context: str = "",
        *,
        tier: str | None = "SAFE",
        layout: str | None = None,
        adversarial: bool = False,
        conservative: bool = False,
        approvals: Approvals | None = None,
    ) -> Blueprint:
        """Return the candidate that `context` always gives: an even spread over contexts, the same one on a replay.

        Candidates are those of `list` that `approvals` (by default those of `approvals()`) allow; HIGH_RISK ones only
        with `adversarial`, and then for quarantine; with `conservative` only those of the conservative set, the first
        ten SAFE ones. The index is the first four bytes of SHA-256(context), big-endian, modulo their number. Without a
        context it is the first.

        Raises:
            BlueprintRefused: everything that fits may not be used; names the first and why.
            BlueprintError: nothing fits.
        """
        wish = Wish(tier, layout, adversarial=adversarial, conservative=conservative)
        said = self.approvals() if approvals is None else approvals
        return choose(context, candidates(self._blueprints, wish), said, wish)

    def allowed(self, blueprint_id: str, approvals: Approvals, *, quarantine: bool = False) -> Blueprint:
        """Return the blueprint of this id where it may be used, with `quarantine` on copies and contained.

        Raises:
            UnknownBlueprint: the catalogue has none.
            BlueprintRefused: it may not be used.
        """
        blueprint = self.get(blueprint_id)
        refused = refusal(approvals, blueprint_id, quarantine=quarantine)
        if refused is not None:
            raise BlueprintRefused(refused)
        return blueprint

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
