"""The seedbed: everything that changes a host with its seeds, or trains these."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from esper.core.errors import IntegrityError
from esper.core.inputs import Inputs, Targets, shapes_of
from esper.core.rng import derive_seed
from esper.kasmina.bed._bench import LiveSeed, PreparedSeed
from esper.kasmina.bed._held_out import ProbeBench
from esper.kasmina.bed._remains import Remains
from esper.kasmina.bed._seed_training import SeedTrainer, release
from esper.kasmina.grafting._alpha import AlphaCurve, AlphaSchedule
from esper.kasmina.grafting._folding import apply_fold
from esper.kasmina.grafting._graft import Graft, anchor_of, free_name
from esper.kasmina.grafting._seed import Role
from esper.kasmina.grafting._slots import SlotSpec
from esper.kasmina.isolation._ownership import HOST, seed_owner
from esper.leyline import messages as ly

#: Forward and backward of a trained module against its forward: the usual count (forward + 2x backward).
_TRAINING_FACTOR = 3


class SeedBed(ProbeBench):
    """Plants, trains and removes. No decision is made here, and no event is known."""

    # -- what changes the host ------------------------------------------------------------------------------

    def plant(self, seed_id: str, spec: SlotSpec, prepared: PreparedSeed) -> None:
        """Put a prepared seed on its slot, isolated: the host hears nothing of it."""
        seed = self._grafted(spec, prepared, rng_seed=derive_seed(self._seed, "kasmina", seed_id, *self.ranks.salt))
        self.registry.register(seed_owner(seed_id), dict(seed.named_parameters()))
        self.live[seed_id] = LiveSeed(
            spec=spec,
            seed=seed,
            graft=Graft(self._model, spec, seed_id, seed),
            trainer=SeedTrainer(seed, sound=seed.sound, config=self._config, ranks=self.ranks),
            parameters=prepared.parameters,
            multiply_adds_per_sample=prepared.multiply_adds_per_sample,
        )

    def blend(
        self,
        seed_id: str,
        *,
        steps: int,
        mode: ly.BlendMode = ly.BLEND_MODE_RESIDUAL,
        curve: AlphaCurve | None = None,
    ) -> None:
        """Let the seed join the host's forward; alpha rises from 0 to 1 over `steps` steps."""
        live = self.live[seed_id]
        assert live.seed.blender is not None, "a seed that begins to blend has its blender"
        live.graft.join()
        live.seed.mode = mode
        live.seed.blender.begin(AlphaSchedule(curve or self._config.alpha_curve, steps))

    def fall(self, seed_id: str, *, steps: int) -> None:
        """Let alpha fall to 0 over `steps` steps, from where it is; the seed learns nothing more."""
        live = self.live[seed_id]
        live.held_out = None  # It is not measured any more.
        blender = live.seed.blender
        assert blender is not None, "a seed that falls has its blender"
        curve = blender.curve or self._config.alpha_curve
        blender.begin(AlphaSchedule(curve, steps, start=blender.value, end=0.0))

    def sink(self, seed_id: str) -> None:
        """Take one step of a fall."""
        live = self.live[seed_id]
        assert live.seed.blender is not None, "a seed that falls has its blender"
        live.seed.blender.advance_alpha()

    def fossilize(self, seed_id: str) -> None:
        """Make the seed a part of the host for good: no alpha, and its parameters the host optimiser's."""
        live = self.live[seed_id]
        live.seed.fossilize()
        if self._optimizer is not None:
            beside = list(self._model.get_submodule(live.spec.module).parameters())
            live.trainer.hand_over(self._optimizer, beside=beside)
            self.registry.transfer(seed_owner(seed_id), HOST)
            self._late.watch(live.trainer.parameters)

    def fold(self, seed_id: str) -> None:
        """Make the seed a part of its layer's weights, and take it off.

        Raises:
            IntegrityError: it cannot be folded now.
        """
        fold = self.fold_of(seed_id)
        if isinstance(fold, str):
            raise IntegrityError(
                f"the seed {seed_id!r} cannot be folded",
                cause=f"its move says that it was, and now: {fold}",
                next_step="compare the numerics fingerprints of both attempts",
            )
        apply_fold(fold, self._optimizer)
        self.uproot(seed_id)
        self.forget(seed_id)
        self.registry.accept(HOST)

    def prune(self, seed_id: str) -> None:
        """Take a fossilised seed off the host; its parameters leave the host's optimiser."""
        live = self.live[seed_id]
        parameters = list(live.seed.parameters())
        if self._optimizer is not None:
            release(self._optimizer, parameters)
            self.registry.drop(HOST, parameters)
        self.uproot(seed_id)
        self.forget(seed_id)

    def uproot(self, seed_id: str) -> None:
        """Take the seed off the host; hook, parameters and optimiser state go with the last reference."""
        live = self.live.pop(seed_id)
        self._remains[seed_id] = Remains.of(seed_id, live.graft, live.trainer.optimizer)
        self.registry.release(seed_owner(seed_id))
        live.graft.remove()
        self._late.forget(live.trainer.parameters)

    def never_here(self, seed_id: str, spec: SlotSpec) -> None:
        """Take note of a seed that was culled in another life of the run, so that it can be reset in this one."""
        module = self._model.get_submodule(spec.module)
        anchor = anchor_of(module)
        self._remains[seed_id] = Remains.elsewhere(seed_id, module, anchor, free_name(anchor, seed_id))

    def forget(self, seed_id: str) -> None:
        """Drop what was kept of a culled seed: it was reset."""
        self._remains.pop(seed_id, None)
        self._costs.clear()

    def clear(self) -> None:
        """Take every seed off the host, fossils too, and forget those that were culled: others are planted next."""
        going = [parameter for live in self.live.values() for parameter in live.seed.parameters()]
        for seed_id, live in self.live.items():
            live.graft.remove()
            self._late.forget(live.trainer.parameters)
            self.registry.release(seed_owner(seed_id))
        if self._optimizer is not None:
            release(self._optimizer, going)
        self.live.clear()
        self._remains.clear()
        self._costs.clear()
        self.last_batch = None
        self.registry.release(HOST)
        self.registry.register(HOST, {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())})

    # -- training -------------------------------------------------------------------------------------------

    def zero_grad(self) -> None:
        """Forget the gradients of the seeds that Kasmina's own optimisers train."""
        self._late.begin()
        for live in self.live.values():
            live.graft.forget_forwards()
            if live.trainer.optimizer is not None:
                live.trainer.zero_grad()
        self.monitor.host_step_begins(self.own())

    def host_stepped(self) -> None:
        """Hold the host's own step against the registry: it may have changed no seed."""
        unheard = [seed_id for seed_id, live in self.live.items() if live.seed.role is Role.ISOLATED]
        self.monitor.host_step_ended(self.own(), unheard=unheard)

    def own(self) -> list[str]:
        """Return the seeds that Kasmina's own optimisers train."""
        return [seed_id for seed_id in self.live if self.registry.tensors_of(seed_owner(seed_id))]

    def _others(self, seed_id: str) -> list[str]:
        return [other for other in self.own() if other != seed_id]

    def close_isolation(self, epoch: int) -> None:
        """Hold the host's optimiser against the registry and close the epoch's count of breaches."""
        own = self.own()
        self.monitor.check_optimizer(own, self._optimizer)
        self.monitor.check_teacher()
        self.monitor.close_epoch(epoch, trained=bool(own))

    def share_buffers(self) -> None:
        """Give every rank the first one's buffers, of the host and of the seeds that it does not hear."""
        self.ranks.share_buffers(self._model)
        for live in self.live.values():
            if live.seed.role is Role.ISOLATED:
                self.ranks.share_buffers(live.seed)

    def count_heard(self, *, batch: int) -> None:
        """Count what the host's own step spent in seeds that take none themselves."""
        for live in self.live.values():
            if live.seed.heard:
                self.multiply_adds += _TRAINING_FACTOR * live.multiply_adds_per_sample * batch

    def train_jointly(self, seed_id: str, *, batch: int, rising: bool) -> None:
        """Apply the gradients of the host's own backward to the seed, then let alpha rise if it is `rising`."""
        live = self.live[seed_id]
        if live.seed.heard:
            self.multiply_adds += _TRAINING_FACTOR * live.multiply_adds_per_sample * batch
        if live.trainer.optimizer is not None:
            with self.monitor.pass_of(seed_id, self._others(seed_id)):
                live.trainer.step()
        if rising and live.seed.blender is not None:
            live.seed.blender.advance_alpha()

    def train_in_shadow(self, seed_id: str, inputs: Inputs, targets: Targets, *, step: int) -> None:
        """Train the seed by a second forward of the host in which it is heard in full; the host learns nothing."""
        if self.loss_fn is None:
            return
        live = self.live[seed_id]
        with self.monitor.pass_of(seed_id, self._others(seed_id)):
            self.multiply_adds += self._cost(
                ("shadow", seed_id, shapes_of(inputs), *self._heard()),
                lambda: self._shadow_gradients(live, inputs, targets),
            )
            live.seed.train()
            rng_seed = derive_seed(self._seed, "kasmina", seed_id, step, *self.ranks.salt)
            with self._shadow(live, inputs, targets, seed=rng_seed) as loss:
                live.trainer.learn_from(loss)

    @contextmanager
    def _shadow(self, live: LiveSeed, inputs: Inputs, targets: Targets, *, seed: int) -> Iterator[Tensor]:
        """Give the block the loss of a shadow; the block runs it backwards, where the host stands as in the forward."""
        assert self.loss_fn is not None, "a shadow needs a loss"
        with self._passes.quiet(seed=seed), self._focus.on(shadowed=live.seed), self._passes.standing_in():
            yield self.loss_fn(self._passes.forward(inputs), targets)

    def _shadow_gradients(self, live: LiveSeed, inputs: Inputs, targets: Targets) -> None:
        """Do a shadow's work once more to count it, in eval mode, so that nothing of the seed moves."""
        live.seed.eval()
        with self._shadow(live, inputs, targets, seed=0) as loss:
            if loss.requires_grad:
                torch.autograd.grad(loss, live.trainer.parameters, allow_unused=True)
