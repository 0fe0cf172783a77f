"""Seeds on a host that several ranks train: what the ranks must have alike before an edge is judged.

Gradients of seeds are averaged where they are applied, buffers come from the first rank as torch's own wrapper shares
them, and what only one rank saw (a value that is not finite, a breach of the isolation) counts for all.
"""

from __future__ import annotations

from collections.abc import Sequence

from esper.kasmina.bed._bed import SeedBed


def meet(bed: SeedBed, heard: Sequence[str], *, own: Sequence[str]) -> None:
    """Make soundness, isolation and buffers of a bed those of all ranks, at the end of an epoch.

    `heard` are the seeds that can be at fault, `own` those that Kasmina's optimisers train.
    """
    ranks = bed.ranks
    if ranks.size == 1:
        return
    unsound = ranks.highest([float(not bool(bed.live[seed_id].seed.sound)) for seed_id in heard])
    for seed_id, broken in zip(heard, unsound, strict=True):
        bed.live[seed_id].seed.sound.fill_(not broken)
    bed.monitor.agree(ranks, own)
    bed.share_buffers()


class SharedWork:
    """Counts the multiply-adds of all ranks, of which each knows its own as they are made.

    Between two meetings the others are taken to do as much as this one, as they do at an edge.
    """

    def __init__(self) -> None:
        self._agreed = 0

    def total(self, bed: SeedBed) -> int:
        """Return what all ranks spent so far."""
        return self._agreed + (bed.multiply_adds - self._agreed) * bed.ranks.size

    def meet(self, bed: SeedBed) -> None:
        """Learn what the others spent since the last meeting."""
        if bed.ranks.size > 1:
            (spent,) = bed.ranks.totals([float(bed.multiply_adds - self._agreed)])
            self.resume(bed, self._agreed + int(spent))

    def resume(self, bed: SeedBed, total: int) -> None:
        """Go on from a total that all ranks know."""
        bed.multiply_adds = self._agreed = total
