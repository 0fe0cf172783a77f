"""Which blueprints may not be grafted now, as far as the log has told."""

from __future__ import annotations

from esper.core.approvals import UNREGISTERED, refusal
from esper.oona import BlueprintBoard


def refused_blueprints(board: BlueprintBoard) -> frozenset[str]:
    """Return the blueprints that people withdrew or did not approve.

    One that nobody registered is not among them: whether it exists is for the makers of kernels to say.
    """
    said = board.latest()
    refusals = [found for name in said if (found := refusal(said, name)) is not None]
    return frozenset(found.blueprint_id for found in refusals if found.reason != UNREGISTERED)
