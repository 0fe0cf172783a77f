"""G5: nothing of a culled seed is left, so that its slot can be used again."""

from __future__ import annotations

from dataclasses import dataclass

from esper.core.checks import check
from esper.kasmina.gates._gates import verdict
from esper.leyline import messages as ly


@dataclass(frozen=True)
class ResetEvidence:
    """What G5 looks at: how much of the seed is still there (counts, and bytes of memory)."""

    #: The seed's module and its optimiser, as far as they are alive.
    objects_alive: int
    #: Memory of parameters, buffers and optimiser state that is not freed.
    bytes_alive: int
    #: Forward hooks and submodules of the seed on the host.
    hooks_left: int
    submodules_left: int
    #: Parameters of the seed in the host's optimiser, and in the ownership registry.
    optimizer_entries: int
    owned_tensors: int


def reset_gate(evidence: ResetEvidence | None) -> ly.GateEvaluated:
    """Judge G5: every trace was looked for, and there is none. Without evidence it fails."""
    checks = [check("evidence_kept", float(evidence is not None), "==", 1.0)]
    if evidence is not None:
        checks += [
            check("objects_alive", evidence.objects_alive, "==", 0.0),
            check("bytes_alive", evidence.bytes_alive, "==", 0.0),
            check("hooks_left", evidence.hooks_left, "==", 0.0),
            check("submodules_left", evidence.submodules_left, "==", 0.0),
            check("optimizer_entries", evidence.optimizer_entries, "==", 0.0),
            check("owned_tensors", evidence.owned_tensors, "==", 0.0),
        ]
    return verdict(ly.SEED_GATE_G5_RESET, checks)
