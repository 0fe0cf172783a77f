"""A seed on its slot: its seat among those who are asked after the slot's module, and its place in the host.

While a seed trains in shadow nothing is registered. From BLENDING on it is a submodule of the host, so that the host's
`state_dict`, `to` and `train` cover it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from torch import nn
from torch.utils.hooks import RemovableHandle

from esper.core.eager import EagerHook, forget_compiled
from esper.core.errors import IntegrityError
from esper.kasmina.grafting._seed import GraftedSeed, Role
from esper.kasmina.grafting._slots import SlotSpec
from esper.kasmina.grafting._sockets import Socket, socket_of

#: Modules that run all their children: a seed registered there would run as one more layer.
_RUNS_ITS_CHILDREN: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


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
        self.name = free_name(self.anchor, seed_id)
        self.slot_module = slot_module
        self._seat: _HookSeat | _SocketSeat = _seat(slot_module, seed)

    @property
    def hook_id(self) -> int:
        """What names the seed among those who are asked after its slot's module (`hook_ids`)."""
        return self._seat.hook_id

    def forget_forwards(self) -> None:
        """Drop what forwards left behind whose backward did not come."""
        self.seed.forget_forwards()
        self._seat.forget_forwards()

    def join(self) -> None:
        """Make the seed a submodule of the host, in the host's present mode.

        Raises:
            IntegrityError: since the seed was planted the host was given something of that name.
        """
        if hasattr(self.anchor, self.name):
            raise IntegrityError(
                f"the seed cannot join {type(self.anchor).__name__} as {self.name!r}",
                cause="the module was given an attribute of that name since the seed was planted",
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
    """Return the name under which a seed joins a host that no earlier run grew."""
    return "esper_" + re.sub(r"\W", "_", seed_id)


def free_name(anchor: nn.Module, seed_id: str) -> str:
    """Return the name under which a seed is to join its anchor; "__2" and so on follow where it is taken.

    Seeds are counted anew in each run: what an earlier run left on the host keeps its name. For one host the name is
    the same whenever it is asked for, as a run's own seed of that id is off when it is planted again.
    """
    name = base = submodule_name(seed_id)
    number = 2
    while hasattr(anchor, name):  # Ends: a module has finitely many attributes.
        name = f"{base}__{number}"
        number += 1
    return name


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
