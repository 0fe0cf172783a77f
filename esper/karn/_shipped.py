"""The blueprints that come with Esper, assembled from their families."""

from __future__ import annotations

from typing import Final

from esper.karn._blueprint import Blueprint
from esper.karn._families import FAMILY_BLUEPRINTS
from esper.karn._high_risk import HIGH_RISK_BLUEPRINTS

SHIPPED_BLUEPRINTS: Final[tuple[Blueprint, ...]] = tuple(
    sorted((*FAMILY_BLUEPRINTS, *HIGH_RISK_BLUEPRINTS), key=lambda blueprint: blueprint.blueprint_id)
)
