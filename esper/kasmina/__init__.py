"""Kasmina: seeds on a host. Slots, shadow training, blending, gates, lifecycle, and which commands count."""

from esper.kasmina._budgets import LatencyBudgets
from esper.kasmina._config import GateLimits, KasminaConfig
from esper.kasmina.gates._gates import (
    ImpactEvidence,
    KernelEvidence,
    SanityEvidence,
    StabilityEvidence,
    impact_gate,
    sanity_gate,
    stability_gate,
)
from esper.kasmina.gates._gradients import GradientEvidence, GradientRecord, gradient_gate
from esper.kasmina.gates._interface import InterfaceEvidence, interface_gate
from esper.kasmina.gates._reset import ResetEvidence, reset_gate
from esper.kasmina.grafting._alpha import AlphaBlender, AlphaCurve, AlphaSchedule
from esper.kasmina.grafting._slots import SlotSpec, discover_slots
from esper.kasmina.grafting._sockets import add_sockets, is_compiled
from esper.kasmina.household._governor import MEMORY_PRESSURE, MemoryReading
from esper.kasmina.household._household import GraftStall
from esper.kasmina.household._kernel_cache import KernelCache
from esper.kasmina.household._prefetch import KasminaPrefetchCoordinator
from esper.kasmina.isolation._ownership import Owner, OwnerKind, OwnershipRegistry
from esper.kasmina.lifecycle._commands import REASONS as COMMAND_REASONS
from esper.kasmina.lifecycle._commands import CommandVerdict, CommandVerifier, NonceLedger, RunCommandVerifier
from esper.kasmina.lifecycle._lifecycle import (
    GUARDS,
    MEASURED_GATES,
    PATHS,
    TRANSITIONS,
    KasminaLifecycle,
    SeedRecord,
    is_allowed,
)
from esper.kasmina.manager._manager import KasminaSeedManager

__all__ = [
    "COMMAND_REASONS",
    "GUARDS",
    "MEASURED_GATES",
    "MEMORY_PRESSURE",
    "PATHS",
    "TRANSITIONS",
    "AlphaBlender",
    "AlphaCurve",
    "AlphaSchedule",
    "CommandVerdict",
    "CommandVerifier",
    "GateLimits",
    "GradientEvidence",
    "GradientRecord",
    "GraftStall",
    "ImpactEvidence",
    "InterfaceEvidence",
    "KasminaConfig",
    "KasminaLifecycle",
    "KasminaPrefetchCoordinator",
    "KasminaSeedManager",
    "KernelCache",
    "KernelEvidence",
    "LatencyBudgets",
    "MemoryReading",
    "NonceLedger",
    "Owner",
    "OwnerKind",
    "OwnershipRegistry",
    "ResetEvidence",
    "RunCommandVerifier",
    "SanityEvidence",
    "SeedRecord",
    "SlotSpec",
    "StabilityEvidence",
    "add_sockets",
    "discover_slots",
    "gradient_gate",
    "impact_gate",
    "interface_gate",
    "is_allowed",
    "is_compiled",
    "reset_gate",
    "sanity_gate",
    "stability_gate",
]
