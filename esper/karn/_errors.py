"""What may be wrong with a wish for a blueprint.

UsageError
└── BlueprintError            exit 2
    ├── UnknownBlueprint      no blueprint of this id
    ├── UnsupportedLayout     the blueprint has no body for this layout
    ├── UnknownParameter      a parameter that the blueprint does not have
    ├── MissingParameter      a parameter that the blueprint needs
    └── ParameterOutOfBounds  not a finite number within the inclusive bounds
"""

from __future__ import annotations

from esper.core.errors import UsageError


class BlueprintError(UsageError):
    """A blueprint cannot be had as it was asked for."""


class UnknownBlueprint(BlueprintError):
    """No blueprint has this id."""


class UnsupportedLayout(BlueprintError):
    """The blueprint has no body for this layout."""


class UnknownParameter(BlueprintError):
    """The blueprint has no such parameter."""


class MissingParameter(BlueprintError):
    """A parameter of the blueprint was not given; none has a default, so that a record says all."""


class ParameterOutOfBounds(BlueprintError):
    """A parameter is not a finite number within its inclusive bounds."""
