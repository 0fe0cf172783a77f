"""Tezzeret: the forge that turns a blueprint, parameters and shapes into an artifact with its manifest."""

from esper.tezzeret._compiler import BlueprintBuilder, TezzeretCompiler
from esper.tezzeret._forge import TezzeretForge, build_service

__all__ = ["BlueprintBuilder", "TezzeretCompiler", "TezzeretForge", "build_service"]
