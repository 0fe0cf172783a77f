"""What the seed manager does around each step of the host's training."""

from __future__ import annotations

from typing import Final

from esper.core.inputs import Inputs, Targets, samples_in
from esper.kasmina.lifecycle._lifecycle import ATTACHED_STAGES, FALLING_STAGES
from esper.kasmina.manager._figures import ManagerFigures
from esper.leyline import messages as ly

_TRAINED_STAGES: Final = ATTACHED_STAGES - FALLING_STAGES - {ly.SEED_STAGE_GERMINATED}


class ManagerSteps(ManagerFigures):
    """Trains seeds; moves none."""

    def before_step(self) -> None:
        """Clear what the seeds' gradients hold; call it before the host's forward."""
        self._bed.zero_grad()

    def scale_gradients(self, factor: float) -> None:
        """Multiply what the host's backward left in the gradients of seeds that have an optimiser of their own."""
        for live in self._bed.live.values():
            live.trainer.scale_gradients(factor)

    def follow_rate(self, share: float) -> None:
        """Let the seeds learn with this share of their own learning rate, in 0..1."""
        for live in self._bed.live.values():
            live.trainer.rate_share = share

    def after_step(self, inputs: Inputs, targets: Targets) -> None:
        """Train every seed on this batch and let alpha rise; call it after the host's optimiser step."""
        if self._epoch_steps == 0:
            self._barred = not self._bed.monitor.allows
        self._step += 1
        self._epoch_steps += 1
        self._bed.last_batch = inputs, targets
        self._bed.host_stepped()
        self._bed.count_rehearsal()  # While the device still works at the host's step.
        for record in self.lifecycle.in_stages(FALLING_STAGES):
            self._bed.sink(record.seed_id)
        if self._stand_still():
            return  # No seed takes a step while the breaker is open.
        if self._growth.held(self._epoch + 1):
            self._bed.count_heard(batch=samples_in(inputs))
            return
        for record in self.lifecycle.in_stages(_TRAINED_STAGES):
            if record.seed_id not in self._bed.live:
                continue  # It is folded: the host's own optimiser trains it.
            if record.stage == ly.SEED_STAGE_TRAINING:
                if self._step % self._config.shadow_every == 0:
                    self._bed.train_in_shadow(record.seed_id, inputs, targets, step=self._step)
            else:
                rising = record.stage == ly.SEED_STAGE_BLENDING
                self._bed.train_jointly(record.seed_id, batch=samples_in(inputs), rising=rising)

    def _stand_still(self) -> bool:
        """Whether no seed may step; ranks keep to what held when the epoch began."""
        return self._barred if self._bed.ranks.size > 1 else not self._bed.monitor.allows
