"""Weights that the user loads between two steps: nobody's step, what they change of a seed is taken as given."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class _AfterLoad:
    """The hook. Copied or pickled with its module it does nothing: the copy has no seeds of this run."""

    def __init__(self, take: weakref.WeakMethod[Callable[[], None]] | None) -> None:
        self._take = take

    def __call__(self, _module: nn.Module, _keys: Any) -> None:  # noqa: ANN401 - torch's own pair of lists
        take = self._take() if self._take is not None else None
        if take is not None:
            take()

    def __reduce__(self) -> tuple[type[_AfterLoad], tuple[None]]:
        return _AfterLoad, (None,)


class LoadWatch:
    """Calls a method whenever `load_state_dict` was called on the model or on a part of it, until `close`.

    `take` is a bound method, held weakly. The hooks are no part of any forward: nothing of them is compiled.
    """

    def __init__(self, model: nn.Module, take: Callable[[], None]) -> None:
        hook = _AfterLoad(weakref.WeakMethod(take))
        # What TorchScript compiled takes no hooks; it is loaded with what holds it.
        modules = (module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule))
        self._handles = [
            module.register_load_state_dict_post_hook(hook)  # type: ignore[no-untyped-call]  # unannotated in torch
            for module in modules
        ]

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
