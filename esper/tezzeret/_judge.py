"""Whether a blueprint's kernel may be made here, and whether it may be run."""

from __future__ import annotations

from typing import Protocol

from esper.core import approvals
from esper.core.approvals import Refusal
from esper.leyline import messages as ly
from esper.oona import BlueprintBoard, Fabric
from esper.tezzeret._describe import BlueprintBuilder
from esper.tezzeret._faults import BlueprintRefused


class Described(Protocol):
    """A blueprint that can say what it is."""

    def descriptor(self) -> ly.BlueprintDescriptor:
        """Return its descriptor."""


class BlueprintSource(BlueprintBuilder, Protocol):
    """Whoever knows what blueprints are made of, and what they are (Karn)."""

    def get(self, blueprint_id: str) -> Described:
        """Return the blueprint of this id.

        Raises:
            UsageError: there is none.
        """


class BlueprintJudge:
    """Judges by the log; a blueprint that is not registered yet is judged by its own descriptor.

    A canonical artifact is data, so it is made of everything that may at least run in quarantine. What has to wait
    for an approval, or is for quarantine only, is never run by the forge: it is not measured, and no part of it is
    compiled to machine code.
    """

    def __init__(self, fabric: Fabric, blueprints: BlueprintSource) -> None:
        self._board = BlueprintBoard(fabric)
        self._blueprints = blueprints

    def check_make(self, blueprint_id: str) -> None:
        """Raise BlueprintRefused when not even the canonical artifact may be made; UsageError when there is none."""
        refused = self._refusal(blueprint_id, quarantine=True)
        if refused is not None:
            raise BlueprintRefused(refused)

    def run_refusal(self, blueprint_id: str) -> str:
        """Return why the forge may not run the kernel; "" when it may. Raises UsageError when there is none."""
        refused = self._refusal(blueprint_id, quarantine=False)
        return "" if refused is None else str(refused)

    def close(self) -> None:
        """Release the connection to the log."""
        self._board.close()

    def _refusal(self, blueprint_id: str, *, quarantine: bool) -> Refusal | None:
        known = self._board.read()
        standing = known.get(blueprint_id)
        if standing is None:
            known = approvals.registered([self._blueprints.get(blueprint_id).descriptor()])
        return approvals.refusal(known, blueprint_id, quarantine=quarantine)
