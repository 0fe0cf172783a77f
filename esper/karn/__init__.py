"""Karn: the catalogue of blueprints, what may be grafted and within which bounds."""

from esper.core.approvals import descriptor_digest
from esper.karn._blueprint import Blueprint, Body, nearest_integer
from esper.karn._catalog import KarnCatalog, broken_plugins, catalogue
from esper.karn._decisions import Decided, approve, withdraw
from esper.karn._errors import (
    BlueprintError,
    BlueprintRefused,
    KarnUnavailable,
    MissingParameter,
    ParameterOutOfBounds,
    UnknownBlueprint,
    UnknownParameter,
    UnsupportedLayout,
)
from esper.karn._explain import STATED_SHAPES, Cost, Latency, cost, latencies, middle
from esper.karn._own import BrokenPlugin
from esper.karn._own_checks import check_own
from esper.karn._queries import BlueprintQuery, KarnQueries
from esper.karn._service import KarnService, build_service

__all__ = [
    "STATED_SHAPES",
    "Blueprint",
    "BlueprintError",
    "BlueprintQuery",
    "BlueprintRefused",
    "Body",
    "BrokenPlugin",
    "Cost",
    "Decided",
    "KarnCatalog",
    "KarnQueries",
    "KarnService",
    "KarnUnavailable",
    "Latency",
    "MissingParameter",
    "ParameterOutOfBounds",
    "UnknownBlueprint",
    "UnknownParameter",
    "UnsupportedLayout",
    "approve",
    "broken_plugins",
    "build_service",
    "catalogue",
    "check_own",
    "cost",
    "descriptor_digest",
    "latencies",
    "middle",
    "nearest_integer",
    "withdraw",
]
