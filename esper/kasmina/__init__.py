"""Kasmina: seeds on a host. Slots, shadow training, blending, gates, lifecycle, and which commands count."""

from esper.kasmina._alpha import AlphaBlender, AlphaCurve, AlphaSchedule
from esper.kasmina._commands import REASONS as COMMAND_REASONS
from esper.kasmina._commands import CommandVerdict, CommandVerifier, NonceLedger, RunCommandVerifier
from esper.kasmina._config import GateLimits, KasminaConfig
from esper.kasmina._gates import (
    ImpactEvidence,
    KernelEvidence,
    SanityEvidence,
    StabilityEvidence,
    impact_gate,
    sanity_gate,
    stability_gate,
)
from esper.kasmina._lifecycle import (
    GUARDS,
    MEASURED_GATES,
    PATHS,
    TRANSITIONS,
    KasminaLifecycle,
    SeedRecord,
    is_allowed,
)
from esper.kasmina._manager import KasminaSeedManager
from esper.kasmina._slots import SlotSpec, discover_slots

__all__ = [
    "COMMAND_REASONS",
    "GUARDS",
    "MEASURED_GATES",
    "PATHS",
    "TRANSITIONS",
    "AlphaBlender",
    "AlphaCurve",
    "AlphaSchedule",
    "CommandVerdict",
    "CommandVerifier",
    "GateLimits",
    "ImpactEvidence",
    "KasminaConfig",
    "KasminaLifecycle",
    "KasminaSeedManager",
    "KernelEvidence",
    "NonceLedger",
    "RunCommandVerifier",
    "SanityEvidence",
    "SeedRecord",
    "SlotSpec",
    "StabilityEvidence",
    "discover_slots",
    "impact_gate",
    "is_allowed",
    "sanity_gate",
    "stability_gate",
]
