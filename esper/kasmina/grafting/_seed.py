"""A seed as a module: the kernel's body with what it takes to hear it in the host's forward.

While a seed trains in shadow the host does not know of it: the hook returns None. From BLENDING on the seed takes part
in the forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from esper.core.apart import forked_rng, in_backward, random_states
from esper.core.errors import IntegrityError
from esper.core.inputs import Output, main_of, source_of, with_main
from esper.core.rng import derive_seed
from esper.kasmina.grafting._alpha import AlphaBlender
from esper.kasmina.grafting._blend import channel_dim, mixed, share
from esper.kasmina.grafting._slots import Layout, Placement
from esper.leyline import messages as ly


class Role(Enum):
    """What a seed does in the host's forward."""

    #: Nothing, except in its own shadow pass.
    ISOLATED = "isolated"
    #: Adds alpha times its output, unless alpha is 0.
    BLENDED = "blended"
    #: Adds its whole output: it is a part of the host like any other.
    FOSSIL = "fossil"


@dataclass
class PassFocus:
    """Which seed the pass under way is about; None in the host's own forward."""

    #: This seed is heard in full, on detached activations.
    shadowed: GraftedSeed | None = None
    #: This seed is not heard.
    muted: GraftedSeed | None = None
    #: Whether the shadowed seed's activations are detached; only tests say no.
    detach: bool = True
    #: The shadowed seed is heard instead of its slot's module, as a seed in mode CONVEX will be.
    instead: bool = False

    @contextmanager
    def on(
        self, *, shadowed: GraftedSeed | None = None, muted: GraftedSeed | None = None, instead: bool = False
    ) -> Iterator[None]:
        """Make the block's passes about these seeds, and afterwards about whom they were before."""
        before = self.shadowed, self.muted, self.instead
        self.shadowed, self.muted, self.instead = shadowed, muted, instead
        try:
            yield
        finally:
            self.shadowed, self.muted, self.instead = before


class GraftedSeed(nn.Module):
    """A kernel's module with what it takes to hear it: alpha, the forward hook, a random stream of its own.

    `body` maps [batch, *in_shape] to [batch, *out_shape]. In the joint stages the host hears
    `output + alpha * body(source)`, or what its blend mode makes of the two (`_blend`); where that is not finite the
    host hears its own output, its activations get no gradient from the seed, and `sound` turns False. All of it
    without waiting for a device.
    """

    sound: Tensor

    def __init__(
        self,
        body: nn.Module,
        *,
        placement: Placement,
        device: torch.device,
        rng_seed: int,
        focus: PassFocus,
        layout: Layout = "vector",
    ) -> None:
        super().__init__()
        self.body = body
        self.blender: AlphaBlender | None = AlphaBlender(device=device)
        self.role = Role.ISOLATED
        self.mode: ly.BlendMode = ly.BLEND_MODE_RESIDUAL
        # Not persistent: the host's state does not change because a flag exists.
        self.register_buffer("sound", torch.ones((), dtype=torch.bool, device=device), persistent=False)
        self._placement = placement
        self._channel_dim = channel_dim(layout)
        self._rng_seed = rng_seed
        self._devices = (device,) if device.type == "cuda" else ()
        self._focus = focus
        self._draws = 0
        #: Draws since the last one that a backward has repeated, and whether one has repeated the last.
        self._open = 0
        self._repeated = False

    @property
    def alpha(self) -> float:
        """Share of the seed that the host hears; 1.0 once fossilised."""
        return 1.0 if self.blender is None else self.blender.value

    @property
    def heard(self) -> bool:
        """Whether the host's own forward now runs the seed."""
        return self.role is Role.FOSSIL or (self.role is Role.BLENDED and self.alpha > 0.0)

    def whole_hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Output) -> Output:
        """Be `hook` for whatever the module takes and returns; None leaves its output, the very same object, alone."""
        heard = self.hook(module, (source_of(args, kwargs),), main_of(output))
        return None if heard is None else with_main(output, heard)

    def hook(self, _module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Return what the slot's module gives now; None leaves its output, the very same tensor, alone."""
        source: Tensor = args[0] if self._placement == "branch" else output
        if self._focus.shadowed is self:
            return self._in_shadow(source, output)
        if self._focus.muted is self or not self.heard:
            return None
        if self.role is Role.FOSSIL:
            return self._in_full(source, output)
        return self._blended(source, output)

    def _in_shadow(self, source: Tensor, output: Tensor) -> Tensor:
        if self._focus.detach:
            source, output = source.detach(), output.detach()
        heard: Tensor = self.body(source)
        return heard if self._focus.instead else output + heard

    def _in_full(self, source: Tensor, output: Tensor) -> Tensor:
        heard: Tensor = self.body(source)
        return heard if self.mode == ly.BLEND_MODE_CONVEX else output + heard

    def _blended(self, source: Tensor, output: Tensor) -> Tensor:
        assert self.blender is not None, "a blended seed has its blender"
        given = self._drawing_apart(self._guarded(source))
        if self.mode == ly.BLEND_MODE_CONVEX:
            return torch.where(self._checked(given), mixed(self.blender.alpha, output, given), output)
        if self.mode == ly.BLEND_MODE_RESIDUAL:
            contribution = self.blender(given)
        else:
            contribution = given * share(self.mode, self.blender.alpha, output, dim=self._channel_dim)
        return output + torch.where(self._checked(contribution), contribution, torch.zeros_like(contribution))

    def _checked(self, contribution: Tensor) -> Tensor:
        """Return whether all of it is finite, 0-d, and remember where it is not."""
        finite = torch.isfinite(contribution).all()
        if not torch.compiler.is_exporting():  # An exported network has nobody who would ask.
            self.sound.logical_and_(finite)
        return finite

    def _guarded(self, source: Tensor) -> Tensor:
        """Return `source` such that a gradient from the seed that is not finite ends here."""
        guarded = source.view_as(source)
        if guarded.requires_grad:
            guarded.register_hook(_finite_or_zero)  # type: ignore[no-untyped-call]  # unannotated in torch
        return guarded

    def _drawing_apart(self, source: Tensor) -> Tensor:
        """Run the body; in training mode it draws from a stream of its own, never from the host's.

        Raises:
            IntegrityError: it draws, and a backward runs one of several forwards again, no one can tell which.
        """
        if not self.training:
            return self.body(source)  # type: ignore[no-any-return]  # torch types a call as Any
        certain = self._note_forward()
        with forked_rng(self._devices, seed=derive_seed(self._rng_seed, "joint", self._draws)):
            before = None if certain else random_states(self._devices)
            given: Tensor = self.body(source)
            if before is not None and not all(map(torch.equal, before, random_states(self._devices))):
                raise IntegrityError(
                    "a seed that draws cannot be run again in a backward",
                    cause="its slot runs more than once between two backwards, where activations are checkpointed",
                    next_step="graft a blueprint without dropout there, or choose a slot outside of the block",
                )
            return given

    def _note_forward(self) -> bool:
        """Count the draw of a forward; one that a backward runs again draws as it did. False: nothing tells which."""
        if in_backward():
            self._repeated = True
            return self._open <= 1
        if self._repeated:
            self._open, self._repeated = 0, False
        self._draws, self._open = self._draws + 1, self._open + 1
        return True

    def forget_forwards(self) -> None:
        """Take it that no forward before now will be run again."""
        self._open, self._repeated = 0, False

    def facts(self) -> dict[str, Any]:
        """Return what of the seed no tensor says, for a checkpoint."""
        blender = None if self.blender is None else self.blender.facts()
        return {"role": self.role.value, "draws": self._draws, "blender": blender, "mode": int(self.mode)}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Go on from `facts`; the seed already has its role."""
        self._draws = int(facts["draws"])
        self.mode = facts.get("mode", ly.BLEND_MODE_RESIDUAL)
        if self.blender is not None:
            self.blender.restore(facts["blender"])

    def fossilize(self) -> None:
        """Drop the alpha multiply; at alpha 1 the outputs stay bit for bit the same (x * 1.0 == x)."""
        self.role = Role.FOSSIL
        self.blender = None


def _finite_or_zero(gradient: Tensor) -> Tensor:
    return torch.where(torch.isfinite(gradient).all(), gradient, torch.zeros_like(gradient))
