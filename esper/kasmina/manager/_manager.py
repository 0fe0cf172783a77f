"""The seed manager: what a trainer calls. It measures, asks for the pure verdict, and folds acknowledged events."""

from __future__ import annotations

from esper.core.checkpoint import Saved
from esper.kasmina.bed._checkpoint import Counts, capture
from esper.kasmina.manager._care import ManagerCare


class KasminaSeedManager(ManagerCare):
    """Grafts seeds onto one host during one run; implements `esper.core.ports.GraftController`.

    State changes only in `fold`, and only by the events that `decide` and `end_epoch` returned, in their order:
    append first, then fold. Given the same host, batches, seed and folded events, everything here is
    repeatable bit for bit; clocks are read as evidence. Not safe to share between threads.

    `loss_fn(outputs, targets)` returns the mean loss as a 0-d tensor. `probe` is a list of held-out (inputs,
    targets) batches on the host's device. Without a loss no seed can train in shadow and none germinates
    ("gate_unavailable:G1"); without a probe G2 and G4 cannot be measured, and moves that they guard are rejected as
    "gate_unavailable:G2" or "gate_unavailable:G4".
    Without `optimizer` (the host's) a fossilised seed stays with its own.

    Seeds are submodules of the host from BLENDING on: a loop that clips gradients clips those of its optimiser's
    groups, not those of `model.parameters()`, which would count the seeds' as well. Losses scaled for mixed
    precision are unscaled by `scale_gradients`.
    """

    def checkpoint(self) -> Saved:
        """Return what `restore` needs besides the tensors of the host and of `state`; between end_epoch and decide.

        Raises:
            IntegrityError: events of the last edge were not folded.
        """
        self._expect_nothing_owed()
        counts = Counts(self._step, self._steps_per_epoch, self._epoch, self._decided_epoch, self._kernels)
        saved = capture(self.lifecycle, self._bed, counts)
        held = self._growth.facts()
        return Saved({**saved.facts, "growth": held}, saved.tensors) if held else saved

    def restore(self, saved: Saved) -> None:
        """Put the seeds of a checkpoint on this manager's host; it must be a fresh one.

        Raises:
            IntegrityError: the content does not fit this host.
            KernelUnavailable: no store holds the kernel of one of its seeds.
        """
        self._stand_as(saved, self._examiner.body_of)
