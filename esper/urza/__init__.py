"""Urza: the catalogue of kernels, their bytes by digest, and fetching them for whoever grafts."""

from esper.urza._audit import StoreFault, StoreVerdict, verify_artifacts
from esper.urza._cache import ArtifactCache, OpenedArtifact
from esper.urza._garbage import Garbage, Removed, Terms, find_garbage, remove_garbage
from esper.urza._inventory import Inventory, list_artifacts, read_inventory
from esper.urza._library import StoreSpared, UrzaLibrary
from esper.urza._maintenance import UrzaMaintenance
from esper.urza._metrics import library_metrics
from esper.urza._named import LogNames, Names
from esper.urza._prefetch import UrzaPrefetchWorker, build_service
from esper.urza._runtime import UrzaRuntime

__all__ = [
    "ArtifactCache",
    "Garbage",
    "Inventory",
    "LogNames",
    "Names",
    "OpenedArtifact",
    "Removed",
    "StoreFault",
    "StoreSpared",
    "StoreVerdict",
    "Terms",
    "UrzaLibrary",
    "UrzaMaintenance",
    "UrzaPrefetchWorker",
    "UrzaRuntime",
    "build_service",
    "find_garbage",
    "library_metrics",
    "list_artifacts",
    "read_inventory",
    "remove_garbage",
    "verify_artifacts",
]
