"""How the seed manager comes to stand as a checkpoint says: on a fresh host, or on the very one that it is on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from esper.core.checkpoint import Saved
from esper.kasmina.bed._checkpoint import BodyOf, rebuild
from esper.kasmina.lifecycle._growth import Growth
from esper.kasmina.lifecycle._lifecycle import KasminaLifecycle
from esper.kasmina.lifecycle._return import lifecycle_in, moves_back, returned
from esper.kasmina.manager._edges import ManagerEdges
from esper.kasmina.manager._state import ManagerState
from esper.leyline.registry import EventMessage


@dataclass(frozen=True)
class _Kept:
    """What no return takes back, as it was before."""

    lifecycle: KasminaLifecycle
    growth: Growth
    multiply_adds: int
    epoch: int
    #: Bodies of the seeds that are to be planted again, by the digest of their kernels.
    bodies: dict[str, nn.Module]


class ManagerReturns(ManagerEdges):
    """`prepare_return` changes nothing and may refuse; then `rewind`, then `go_on`."""

    def prepare_return(self, saved: Saved, *, epoch: int, to_epoch: int) -> list[EventMessage]:
        """Return the moves to append before the return at the edge after `epoch`; `rewind` is then safe.

        Raises:
            IntegrityError: events of the last edge were not folded.
            KernelUnavailable: no store holds the kernel of a seed that stood on the host then.
        """
        self._expect_nothing_owed()
        then = lifecycle_in(saved)
        counts = saved.facts["counts"]
        with self._bed.apart():
            bodies = {digest: self._examiner.body_of(digest) for digest in sorted(set(counts["kernels"].values()))}
        moves = moves_back(self._edge(epoch), self.lifecycle, then, to_epoch=to_epoch)
        now = KasminaLifecycle(self.lifecycle.seeds, self.lifecycle.events + len(moves))
        self._return = _Kept(now, self._growth, self.multiply_adds, epoch, bodies)
        return moves

    def rewind(self, saved: Saved) -> None:
        """Stand as when `saved` was taken, on this host; the trainer then fills in the host's and `state`'s tensors.

        Raises:
            IntegrityError: the content does not fit this host.
        """
        kept = _prepared(self)
        self._bed.clear()
        self._stand_as(saved, lambda digest: kept.bodies[digest])

    def _stand_as(self, saved: Saved, body_of: BodyOf) -> None:
        self.lifecycle, counts = rebuild(saved, self._bed, self._slots, body_of)
        self._step, self._steps_per_epoch = counts.step, counts.steps_per_epoch
        self._epoch, self._decided_epoch = counts.epoch, counts.decided_epoch
        self._kernels = dict(counts.kernels)
        self._work.resume(self._bed, self._bed.multiply_adds)
        self._growth = Growth(**saved.facts.get("growth", {}))

    def go_on(self, *, to_epoch: int) -> None:
        """After `rewind`: stand at the edge at which the run returned, with what no return takes back."""
        kept = _prepared(self)
        self.lifecycle = returned(kept.lifecycle, self.lifecycle, epoch=kept.epoch, to_epoch=to_epoch)
        self._growth = kept.growth
        self._work.resume(self._bed, kept.multiply_adds)
        self._bed.monitor.move_on(kept.epoch)
        self._epoch = self._decided_epoch = kept.epoch
        self._return = None


def _prepared(manager: ManagerState) -> _Kept:
    kept = manager._return  # noqa: SLF001 - a room of the same manager
    assert isinstance(kept, _Kept), "prepare_return comes first"
    return kept
