"""Tezzeret: the forge that turns a blueprint, parameters and shapes into an artifact with its manifest."""

from esper.tezzeret._compiler import TezzeretCompiler
from esper.tezzeret._describe import BlueprintBuilder
from esper.tezzeret._forge import TezzeretForge
from esper.tezzeret._service import build_service
from esper.tezzeret._subprocess import CompilerProcess, Limits

__all__ = ["BlueprintBuilder", "CompilerProcess", "Limits", "TezzeretCompiler", "TezzeretForge", "build_service"]
