"""The kernel catalogue in memory: a fold of kernel-catalog."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from google.protobuf.message import Message

from esper.leyline import messages as ly

_NO_REASON: Final = "unknown: the forge gave no reason"


@dataclass(frozen=True)
class KernelEntry:
    """What the log says of one kernel.

    `ended` counts the compilations that came to an end; `last_request` is the event_id of the request that the
    last one answered, and `failure` says why it failed ("" where it did not).
    """

    artifact_ref: str = ""
    checksum: str = ""
    guard_digest: str = ""
    ended: int = 0
    last_request: str = ""
    failure: str = ""
    #: Latency of the artifact, measured where it was made; None where nobody measured it yet.
    prewarm: ly.LatencyFigures | None = None


def fold_entry(entry: KernelEntry, message: Message) -> KernelEntry:
    """Return the entry of a kernel after one more of its events on kernel-catalog.

    Two lives of the forge may both have ended a request; the first end counts.
    """
    if isinstance(message, ly.KernelCatalogUpdate):
        return replace(
            entry,
            artifact_ref=message.artifact_ref,
            checksum=message.checksum,
            guard_digest=message.guard_digest,
            prewarm=entry.prewarm if message.artifact_ref == entry.artifact_ref else None,
        )
    if isinstance(message, ly.CompileFailed) and message.retried:
        return entry  # the forge tries again by itself
    if isinstance(message, ly.CompileFinished | ly.CompileFailed) and message.meta.causation_id != entry.last_request:
        failure = (message.reason or _NO_REASON) if isinstance(message, ly.CompileFailed) else ""
        return replace(
            entry,
            ended=entry.ended + 1,
            last_request=message.meta.causation_id,
            failure=failure,
            prewarm=_measured(entry, message),
        )
    return entry


def _measured(entry: KernelEntry, message: ly.CompileFinished | ly.CompileFailed) -> ly.LatencyFigures | None:
    """Return the latency of the entry's artifact, once more is known of it."""
    if (
        isinstance(message, ly.CompileFinished)
        and message.artifact_ref == entry.artifact_ref
        and message.prewarm.samples
    ):
        return message.prewarm
    return entry.prewarm


def fold_catalogue(catalogue: dict[str, KernelEntry], message: Message) -> None:
    """Take one more event of kernel-catalog into `catalogue`, which is by kernel id."""
    if isinstance(message, ly.KernelCatalogUpdate | ly.CompileFinished | ly.CompileFailed):
        name = message.meta.subject
        catalogue[name] = fold_entry(catalogue.get(name, KernelEntry()), message)
