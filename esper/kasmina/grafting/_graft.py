"""A seed on its slot: the module, the hook that adds its output to the host's, and its place in the host.

While a seed trains in shadow the host does not know of it: the hook returns None and nothing is registered.
From BLENDING on the seed takes part in the forward, and is then a submodule of the host, so that the host's
`state_dict`, `to` and `train` cover it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from esper.core.eager import EagerHook, forget_compiled
from esper.core.errors import IntegrityError
from esper.core.inputs import Output, main_of, source_of, with_main
from esper.core.rng import derive_seed
from esper.kasmina.grafting._alpha import AlphaBlender
from esper.kasmina.grafting._blend import channel_dim, mixed, share
from esper.kasmina.grafting._passes import forked_rng
from esper.kasmina.grafting._slots import Layout, Placement, SlotSpec
from esper.kasmina.grafting._sockets import Socket, socket_of
from esper.leyline import messages as ly

#: Modules that run all their children: a seed registered there would run as one more layer.
_RUNS_ITS_CHILDREN: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


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
        """Run the body; in training mode it draws from a stream of its own, never from the host's."""
        if not self.training:
            return self.body(source)  # type: ignore[no-any-return]  # torch types a call as Any
        self._draws += 1
        with forked_rng(self._devices, seed=derive_seed(self._rng_seed, "joint", self._draws)):
            return self.body(source)  # type: ignore[no-any-return]  # torch types a call as Any

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


@dataclass(frozen=True)
class _HookSeat:
    """A seed as a forward hook of its own: what was compiled without it must be compiled anew."""

    handle: RemovableHandle

    @property
    def hook_id(self) -> int:
        return self.handle.id

    def changed(self) -> None:
        forget_compiled()

    def forget_forwards(self) -> None:
        return

    def remove(self) -> None:
        self.handle.remove()


@dataclass(frozen=True)
class _SocketSeat:
    """A seed in a socket: what was compiled stays as it is."""

    socket: Socket
    hook_id: int

    def changed(self) -> None:
        return

    def forget_forwards(self) -> None:
        self.socket.forget_forwards()

    def remove(self) -> None:
        self.socket.leave(self.hook_id)


def _seat(module: nn.Module, seed: GraftedSeed) -> _HookSeat | _SocketSeat:
    socket = socket_of(module)
    if socket is None:
        return _HookSeat(module.register_forward_hook(EagerHook(seed.whole_hook), with_kwargs=True))
    return _SocketSeat(socket, socket.take(seed.hook))


class Graft:
    """Holds a seed on its slot, and takes it off again without a trace."""

    def __init__(self, model: nn.Module, spec: SlotSpec, seed_id: str, seed: GraftedSeed) -> None:
        slot_module = model.get_submodule(spec.module)
        self.seed = seed
        self.anchor = anchor_of(slot_module)
        self.name = submodule_name(seed_id)
        self.slot_module = slot_module
        self._seat: _HookSeat | _SocketSeat = _seat(slot_module, seed)

    @property
    def hook_id(self) -> int:
        """What names the seed among those who are asked after its slot's module (`hook_ids`)."""
        return self._seat.hook_id

    def forget_forwards(self) -> None:
        """Drop what forwards left behind whose backward did not come."""
        self._seat.forget_forwards()

    def join(self) -> None:
        """Make the seed a submodule of the host, in the host's present mode.

        Raises:
            IntegrityError: the host already has something of that name.
        """
        if hasattr(self.anchor, self.name):
            raise IntegrityError(
                f"the seed cannot join {type(self.anchor).__name__} as {self.name!r}",
                cause="the module already has an attribute of that name",
                next_step="rename the attribute of the host; names that begin with esper_ are Esper's",
            )
        self.seed.train(self.slot_module.training)
        self.anchor.add_module(self.name, self.seed)
        self.seed.role = Role.BLENDED
        self._seat.changed()

    def remove(self) -> None:
        """Take hook and submodule off the host; its forward is then as if the seed had never been."""
        self._seat.remove()
        if getattr(self.anchor, self.name, None) is self.seed:
            delattr(self.anchor, self.name)
        if self.seed.role is not Role.ISOLATED:
            self._seat.changed()
        self.seed.role = Role.ISOLATED


def submodule_name(seed_id: str) -> str:
    """Return the name under which a seed joins its host."""
    return "esper_" + re.sub(r"\W", "_", seed_id)


def anchor_of(module: nn.Module) -> nn.Module:
    """Return a module near the slot that can hold one more child without running it."""
    for candidate in module.modules():
        if not isinstance(candidate, _RUNS_ITS_CHILDREN):
            return candidate
    raise IntegrityError(
        f"a seed cannot join a {type(module).__name__}",
        cause="it holds nothing but containers, which would run the seed as a layer of their own",
        next_step="choose a slot that holds a layer",
    )
