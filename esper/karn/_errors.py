"""What may be wrong with a wish for a blueprint.

NotReadyError
└── KarnUnavailable           exit 3: the fault is Karn's own, not the wish's
UsageError
└── BlueprintError            exit 2
    ├── UnknownBlueprint      no blueprint of this id
    ├── BlueprintRefused      it is there, and may not be used
    ├── UnsupportedLayout     the blueprint has no body for this layout
    ├── UnknownParameter      a parameter that the blueprint does not have
    ├── MissingParameter      a parameter that the blueprint needs
    └── ParameterOutOfBounds  not a finite number within the inclusive bounds
"""

from __future__ import annotations

from esper.core.approvals import Refusal
from esper.core.errors import NotReadyError, UsageError


class KarnUnavailable(NotReadyError):
    """Karn cannot answer now: what it answers from failed, or its breaker is open."""


class BlueprintError(UsageError):
    """A blueprint cannot be had as it was asked for."""


class UnknownBlueprint(BlueprintError):
    """No blueprint has this id."""


class BlueprintRefused(BlueprintError):
    """The blueprint may not be used: it was withdrawn, waits for an approval, or is for quarantine only."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(
            f"blueprint {refusal.blueprint_id} may not be used", cause=str(refusal), next_step=refusal.next_step
        )
        self.refusal = refusal


class UnsupportedLayout(BlueprintError):
    """The blueprint has no body for this layout."""


class UnknownParameter(BlueprintError):
    """The blueprint has no such parameter."""


class MissingParameter(BlueprintError):
    """A parameter of the blueprint was not given; none has a default, so that a record says all."""


class ParameterOutOfBounds(BlueprintError):
    """A parameter is not a finite number within its inclusive bounds."""
