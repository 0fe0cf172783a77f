"""How the forge is wired together."""

from __future__ import annotations

import threading

from esper.core.kernel import BlobStore, DirectoryBlobStore
from esper.oona import Fabric
from esper.tezzeret._compiler import TezzeretCompiler
from esper.tezzeret._forge import TezzeretForge
from esper.tezzeret._judge import BlueprintSource
from esper.tezzeret._subprocess import CompilerProcess, Limits


def build_service(
    fabric: Fabric, *, blueprints: BlueprintSource, instance: str = "tezzeret-0", store: BlobStore | None = None
) -> TezzeretForge:
    """Return the forge; it compiles what `blueprints` knows into the home's blob store.

    `instance` is the stable name of this member in its group.
    """
    settings, stop = fabric.settings, threading.Event()
    limits = Limits(settings.compile_seconds_max, settings.compile_memory_bytes_max)
    return TezzeretForge(
        fabric,
        compiler=TezzeretCompiler(blueprints, process=CompilerProcess(stop=stop), limits=limits),
        blueprints=blueprints,
        store=store or DirectoryBlobStore(fabric.home.blobs),
        instance=instance,
        stop=stop,
    )
