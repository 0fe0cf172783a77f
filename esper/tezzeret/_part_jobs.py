"""Which compiled parts are still to be made, as a fold of kernel-catalog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from google.protobuf.message import Message

from esper.core.ids import EventId, derive_id
from esper.leyline import messages as ly
from esper.tezzeret._jobs import SOURCE

#: Kinds of parts in the order in which they are made: a seed trains before it is frozen.
KINDS: Final = (ly.COMPILED_KIND_AOT_TRAIN_PACKAGE, ly.COMPILED_KIND_AOT_PACKAGE)

#: What a part is made for once: artifact, kind, forge's home, platform.
PartKey = tuple[str, int, str, bytes]


@dataclass(frozen=True)
class PartFacts:
    """What the log says: kernels that are to be had (artifact -> kernel), and for which parts there is a verdict."""

    kernels: Mapping[str, str] = field(default_factory=dict)
    judged: frozenset[PartKey] = frozenset()


def fold_parts(facts: PartFacts, message: Message) -> PartFacts:
    """Return the facts after one more event of kernel-catalog."""
    if isinstance(message, ly.CompileFinished) and message.artifact_ref:
        return replace(facts, kernels={**facts.kernels, message.artifact_ref: message.kernel_id})
    if isinstance(message, ly.KernelPartCompiled):
        key = part_key(message.artifact_ref, message.kind, message.forge, message.platform)
        return replace(facts, judged=facts.judged | {key})
    return facts


def part_key(artifact_ref: str, kind: ly.CompiledKind, forge: str, platform: ly.Platform) -> PartKey:
    """Return what a part is made for."""
    return artifact_ref, kind, forge, platform.SerializeToString(deterministic=True)


def due_parts(facts: PartFacts, *, forge: str, platform: ly.Platform) -> list[tuple[str, str, ly.CompiledKind]]:
    """Return (kernel, artifact, kind) of every part that nobody has judged here yet, oldest kernel first."""
    return [
        (name, artifact_ref, kind)
        for artifact_ref, name in facts.kernels.items()
        for kind in KINDS
        if part_key(artifact_ref, kind, forge, platform) not in facts.judged
    ]


def part_id(artifact_ref: str, kind: ly.CompiledKind, forge: str, platform: ly.Platform) -> EventId:
    """Return the id of the verdict on a part: another life of the forge gives it the same one."""
    where = (platform.torch_version, platform.device, platform.isa, platform.threads)
    return derive_id(SOURCE, "part", artifact_ref, kind, forge, *where)


def part_report_id(artifact_ref: str, kind: ly.CompiledKind, forge: str, platform: ly.Platform) -> EventId:
    """Return the id of the measurements that a verdict rests on."""
    return derive_id(SOURCE, "part-report", part_id(artifact_ref, kind, forge, platform))
