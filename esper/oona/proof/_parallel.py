"""The walk over a long log, spread over processes by partition: signatures and digests are work for a processor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Final

from esper.core.settings import Settings
from esper.oona._cluster import Position
from esper.oona.proof._evidence import Evidence
from esper.oona.proof._findings import Finding, Findings
from esper.oona.proof._judge import fabric_judge
from esper.oona.proof._kafka import KafkaLog
from esper.oona.proof._log import Bounds, Span
from esper.oona.proof._verify import PartitionVerdict, check_partitions

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric

#: A process more takes one or two seconds to begin; a shorter log is read by then.
_RECORDS_PER_PROCESS: Final = 50_000
_PROCESSES_MAX: Final = 8


@dataclass(frozen=True)
class Share:
    """The partitions that one process walks over, and what is known of them before."""

    spans: dict[Position, Span]
    bounds: dict[Position, Bounds]
    evidence: Evidence


@dataclass(frozen=True)
class Walked:
    """What one process found."""

    partitions: Sequence[PartitionVerdict]
    listed: Sequence[Finding]
    counts: dict[Position, int]


def processes_for(spans: Mapping[Position, Span]) -> int:
    """Return how many processes a walk is worth: never more than there are cores or partitions to share."""
    records = sum(span.end - span.start for span in spans.values())
    busy = sum(1 for span in spans.values() if span.start < span.end)
    return max(1, min(os.cpu_count() or 1, busy, records // _RECORDS_PER_PROCESS, _PROCESSES_MAX))


def share_out(
    spans: Mapping[Position, Span], bounds: Mapping[Position, Bounds], evidence: Evidence, processes: int
) -> list[Share]:
    """Return one share for each process, the longest partitions given out first to whoever has least."""
    groups: list[dict[Position, Span]] = [{} for _ in range(processes)]
    loads = [0] * processes
    for place, span in sorted(spans.items(), key=lambda one: one[1].start - one[1].end):
        least = loads.index(min(loads))
        groups[least][place] = span
        loads[least] += span.end - span.start
    return [
        Share(
            group,
            {place: bounds[place] for place in group},
            Evidence(
                boundaries={place: found for place, found in evidence.boundaries.items() if place in group},
                links={place: found for place, found in evidence.links.items() if place in group},
            ),
        )
        for group in groups
        if group
    ]


def walk(fabric: Fabric, shares: Sequence[Share], findings: Findings) -> list[PartitionVerdict]:
    """Walk over all shares, each in a process of its own where there is more than one.

    Raises what reading the log raises, whichever process it happened in.
    """
    if len(shares) == 1:
        walked = [_walk_share(fabric, shares[0])]
    else:
        # Spawned, not forked: the client library's threads do not survive a fork.
        with ProcessPoolExecutor(len(shares), mp_context=get_context("spawn")) as pool:
            walked = list(pool.map(_walk_in_process, [fabric.settings] * len(shares), shares))
    for one in walked:
        findings.merge(one.listed, one.counts)
    return [verdict for one in walked for verdict in one.partitions]


def _walk_in_process(settings: Settings, share: Share) -> Walked:
    # Imported here: the fabric imports this package.
    from esper.oona._fabric import Fabric

    with Fabric.open(settings, member="verify") as fabric:
        return _walk_share(fabric, share)


def _walk_share(fabric: Fabric, share: Share) -> Walked:
    findings = Findings()
    records = KafkaLog(fabric).read(share.spans)
    partitions = check_partitions(
        records,
        share.spans,
        share.bounds,
        evidence=share.evidence,
        judge=fabric_judge(fabric),
        findings=findings,
    )
    return Walked(partitions, list(findings), findings.counts())
