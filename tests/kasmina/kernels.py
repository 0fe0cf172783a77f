"""Real kernels for Kasmina, some of which nobody may graft."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from esper.core import approvals
from esper.core.approvals import Approvals
from esper.core.files import write_atomically
from esper.core.kernel import KernelArtifact, load_kernel, make_artifact, manifest_digest
from esper.core.ports import FetchedKernel, KernelUnavailable
from esper.karn import KarnCatalog
from esper.leyline import messages as ly


class RealKernels:
    """Makes the real artifact of any blueprint and judges by its approvals, as Urza's runtime does, without a log.

    `approved` are blueprints that a person vouched for. With `known=False` it hands over what it made and knows of
    no approvals, as a runtime would that does not follow that topic.
    """

    def __init__(self, *, approved: Collection[str] = (), known: bool = True) -> None:
        self._catalog = KarnCatalog()
        self._known = known
        self._approvals: Approvals = approvals.registered(each.descriptor() for each in self._catalog.list())
        for blueprint_id in approved:
            digest = self._approvals[blueprint_id].digest
            vouched = ly.BlueprintApproved(
                blueprint_id=blueprint_id, descriptor_digest=digest, approved_by="a person", reason="looked at"
            )
            self._approvals = approvals.fold(self._approvals, vouched)
        self._kept: dict[str, KernelArtifact] = {}
        #: Blueprints and digests that were asked for, in order.
        self.asked: list[str] = []

    def fetch_kernel(self, request: ly.KernelRequestSpec, *, run_id: str, wait_seconds: float) -> FetchedKernel:
        """Return the kernel, without a module where its blueprint may not be grafted."""
        self.asked.append(request.blueprint_id)
        artifact = make_artifact(request, self._catalog.build_spec(request))
        name = manifest_digest(artifact.manifest)
        self._kept[name] = artifact
        if not self._known:
            return self._opened(name)
        refused = approvals.refusal(self._approvals, request.blueprint_id)
        if refused is None:
            descriptor = self._approvals[request.blueprint_id].descriptor
            return FetchedKernel(load_kernel(artifact), name, artifact.manifest, 0.0, artifact, descriptor=descriptor)
        return FetchedKernel(None, name, artifact.manifest, 0.0, artifact, refusal=refused.reason)

    def fetch_by_digest(self, artifact_ref: str) -> FetchedKernel:
        """Return a kernel that was made before, as a re-execution needs it."""
        self.asked.append(artifact_ref)
        if artifact_ref not in self._kept:
            raise KernelUnavailable(f"no kernel is kept under {artifact_ref!r}", reason="not_found")
        return self._opened(artifact_ref)

    def _opened(self, artifact_ref: str) -> FetchedKernel:
        artifact = self._kept[artifact_ref]
        return FetchedKernel(load_kernel(artifact), artifact_ref, artifact.manifest, 0.0)


class SharedKernels(RealKernels):
    """Real kernels for several processes: what one made, the others find again by its digest in `folder`."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def fetch_kernel(self, request: ly.KernelRequestSpec, *, run_id: str, wait_seconds: float) -> FetchedKernel:
        """Return the kernel, and leave word of how it is made."""
        fetched = super().fetch_kernel(request, run_id=run_id, wait_seconds=wait_seconds)
        write_atomically(self._folder / fetched.artifact_ref, request.SerializeToString(), mode=0o644)
        return fetched

    def fetch_by_digest(self, artifact_ref: str) -> FetchedKernel:
        """Return a kernel that any of the processes made."""
        told = self._folder / artifact_ref
        if told.is_file():
            request = ly.KernelRequestSpec.FromString(told.read_bytes())
            super().fetch_kernel(request, run_id="", wait_seconds=0.0)
        return super().fetch_by_digest(artifact_ref)
