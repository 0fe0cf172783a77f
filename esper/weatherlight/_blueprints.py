"""Lets the forge build what Karn describes, without either importing the other."""

from __future__ import annotations

from esper.karn import KarnCatalog
from esper.leyline import messages as ly


class KarnBlueprints:
    """Implements `esper.tezzeret.BlueprintBuilder` over Karn's catalogue."""

    def __init__(self) -> None:
        self._catalog = KarnCatalog()

    def build_spec(self, request: ly.KernelRequestSpec) -> dict[str, object]:
        """Return the declarative spec that answers `request`; a pure function.

        Raises:
            UsageError: no such blueprint, or not with these parameters and shapes.
        """
        return self._catalog.get(request.blueprint_id).spec(
            layout=request.layout,
            shape=request.in_shape,
            parameters=request.parameters,
            out_shape=request.out_shape,
            dtype=request.dtype,
        )
