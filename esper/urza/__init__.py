"""Urza: the catalogue of kernels, their bytes by digest, and fetching them for whoever grafts."""

from esper.urza._prefetch import UrzaPrefetchWorker, build_service
from esper.urza._runtime import ArtifactCache, UrzaRuntime

__all__ = ["ArtifactCache", "UrzaPrefetchWorker", "UrzaRuntime", "build_service"]
