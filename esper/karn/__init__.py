"""Karn: the catalogue of blueprints, what may be grafted and within which bounds."""

from esper.karn._blueprint import Blueprint, Body, descriptor_digest, nearest_integer
from esper.karn._catalog import KarnCatalog, catalogue
from esper.karn._errors import (
    BlueprintError,
    MissingParameter,
    ParameterOutOfBounds,
    UnknownBlueprint,
    UnknownParameter,
    UnsupportedLayout,
)
from esper.karn._service import KarnService, build_service

__all__ = [
    "Blueprint",
    "BlueprintError",
    "Body",
    "KarnCatalog",
    "KarnService",
    "MissingParameter",
    "ParameterOutOfBounds",
    "UnknownBlueprint",
    "UnknownParameter",
    "UnsupportedLayout",
    "build_service",
    "catalogue",
    "descriptor_digest",
    "nearest_integer",
]
