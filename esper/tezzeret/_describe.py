"""Asking a blueprint for its spec: its code may be a user's own, and it may do anything but answer."""

from __future__ import annotations

from typing import Final, Protocol

from esper.core.asking import NoAnswer, answer_within
from esper.leyline import messages as ly
from esper.tezzeret._faults import CompileRefused

#: A spec is a page of JSON, written by a pure function.
SPEC_SECONDS_MAX: Final = 10.0


class BlueprintBuilder(Protocol):
    """Whoever knows what blueprints are made of (Karn)."""

    def build_spec(self, request: ly.KernelRequestSpec) -> dict[str, object]:
        """Return the declarative spec that answers `request`; a pure function.

        Raises:
            UsageError: no such blueprint, or not with these parameters and shapes.
        """


class Describer:
    """Asks for specs in bounded time; a blueprint that was silent once is not asked again in this life."""

    def __init__(self, blueprints: BlueprintBuilder, *, seconds: float = SPEC_SECONDS_MAX) -> None:
        self._blueprints = blueprints
        self._seconds = seconds
        self._silent: set[str] = set()

    def spec(self, request: ly.KernelRequestSpec) -> dict[str, object]:
        """Return the spec that answers `request`.

        Raises:
            EsperError: what the blueprint refuses.
            CompileRefused: it raised anything else, or did not answer in time.
        """
        name = request.blueprint_id
        if name in self._silent:
            raise CompileRefused(f"blueprint {name} did not answer before")
        try:
            return answer_within(self._seconds, lambda: self._blueprints.build_spec(request))
        except NoAnswer as error:
            if error.silent:
                self._silent.add(name)
            raise CompileRefused(f"blueprint {name} gave no spec: {error}") from error
