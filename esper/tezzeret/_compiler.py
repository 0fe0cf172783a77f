"""From a request to an artifact."""

from __future__ import annotations

from typing import Protocol

from esper.core.kernel import KernelArtifact, check_request
from esper.leyline import messages as ly


class BlueprintBuilder(Protocol):
    """Whoever knows what blueprints are made of (Karn)."""

    def build_spec(self, request: ly.KernelRequestSpec) -> dict[str, object]:
        """Return the declarative spec that answers `request`; a pure function.

        Raises:
            UsageError: no such blueprint, or not with these parameters and shapes.
        """


class TezzeretCompiler:
    """Compiles blueprints into canonical artifacts: spec, first weights, manifest. Runs none of them."""

    def __init__(self, blueprints: BlueprintBuilder) -> None:
        self._blueprints = blueprints

    def warm_up(self) -> None:
        """Import torch now: the first request must not wait seconds for it while an epoch's edge waits."""
        from esper.core.kernel import make_artifact  # noqa: F401 - looking it up is what imports torch

    def compile(self, request: ly.KernelRequestSpec) -> KernelArtifact:
        """Return the artifact of `request`: the same bytes whenever and wherever it is compiled.

        Raises:
            UsageError: the request is malformed, or its blueprint cannot be had like this.
            IntegrityError: the blueprint's spec is refused or answers another request.
        """
        from esper.core.kernel import make_artifact

        check_request(request)
        return make_artifact(request, self._blueprints.build_spec(request))
