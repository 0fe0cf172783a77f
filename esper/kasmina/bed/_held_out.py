"""What the probe tells: held-out losses with and without a seed, and what folding a seed would change."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from esper.core.flops import count_multiply_adds
from esper.core.inputs import samples_in, shapes_of
from esper.kasmina.bed._bench import HeldOutLosses, SeedBench
from esper.kasmina.grafting._folding import Fold, fold_error, fold_of
from esper.kasmina.grafting._seed import PassFocus, Role


class ProbeBench(SeedBench):
    """Measures on held-out batches, and leaves host and seeds as they are."""

    def measure(self, seed_ids: Sequence[str], *, epoch: int) -> None:
        """Measure each seed's held-out losses on the probe, if there are a probe and a loss."""
        if self.probe is None or self.loss_fn is None or not seed_ids:
            return
        as_it_is = self._held_out_loss("as-is", PassFocus())
        for seed_id in seed_ids:
            live = self.live[seed_id]
            if live.seed.role is Role.ISOLATED:
                live.seed.eval()
                on = self._held_out_loss(seed_id, PassFocus(shadowed=live.seed))
                live.held_out = HeldOutLosses(epoch, as_it_is, seed_on=on, seed_off=as_it_is)
            else:
                off = self._held_out_loss(seed_id, PassFocus(muted=live.seed))
                live.held_out = HeldOutLosses(epoch, as_it_is, seed_on=as_it_is, seed_off=off)

    def losses_instead(self, seed_id: str, epoch: int) -> HeldOutLosses | None:
        """Return held-out losses of a seed in TRAINING, heard in full instead of its slot's module; None as `measure`.

        Nothing is kept of it: it is what the seed would be in mode CONVEX, not what it is.
        """
        if self.probe is None or self.loss_fn is None:
            return None
        live = self.live[seed_id]
        live.seed.eval()
        as_it_is = self._held_out_loss("as-is", PassFocus())
        on = self._held_out_loss(f"{seed_id}:instead", PassFocus(shadowed=live.seed, instead=True))
        return HeldOutLosses(epoch, as_it_is, seed_on=on, seed_off=as_it_is)

    def fold_of(self, seed_id: str) -> Fold | str:
        """Return how a fossilised seed can be folded into the host's weights, or why it cannot."""
        live = self.live[seed_id]
        return fold_of(self._model, live.spec, live.seed, hook_id=live.graft.hook_id)

    def fold_error(self, seed_id: str, fold: Fold) -> float | None:
        """Return the largest absolute difference of the host's outputs that folding makes; None without a batch."""
        batches = self.probe or ([self.last_batch] if self.last_batch is not None else None)
        if batches is None:
            return None
        errors: list[float] = []
        seed = self.live[seed_id].seed
        self.multiply_adds += count_multiply_adds(
            lambda: errors.append(fold_error(self._passes, self._focus, seed, fold, batches))
        )
        return errors[0]

    def _held_out_loss(self, name: str, focus: PassFocus) -> float:
        """Return the mean loss over the probe's samples, with the host in eval mode."""
        assert self.probe is not None, "held-out losses need a probe"
        assert self.loss_fn is not None, "held-out losses need a loss"
        total, samples = 0.0, 0
        for inputs, targets in self.probe:
            with (
                torch.no_grad(),
                self._passes.quiet(seed=0),
                self._focus.on(shadowed=focus.shadowed, muted=focus.muted, instead=focus.instead),
            ):
                self.multiply_adds += self._cost(
                    ("probe", name, shapes_of(inputs), *self._heard()),
                    lambda batch=inputs: self._passes.forward(batch),  # type: ignore[misc]  # mypy infers no lambda defaults
                )
                loss = float(self.loss_fn(self._passes.forward(inputs), targets))
            count = samples_in(inputs)
            total, samples = total + loss * count, samples + count
        return total / samples
