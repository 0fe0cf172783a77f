"""Hosts that are compiled: passes beside their training run uncompiled."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn

#: Torch says it where it meets one while it compiles.
_REASON: Final = (
    "seeds come, move and go while a host trains: they run uncompiled, or each of it would compile them anew"
)


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the module that `torch.compile` wrapped; a module that is none of its wrappers is returned as it is.

    Both share their parameters, buffers and submodules.
    """
    original = getattr(model, "_orig_mod", None)
    return original if isinstance(original, nn.Module) else model


@contextmanager
def eagerly() -> Iterator[None]:
    """Run the block's modules uncompiled, those included that `nn.Module.compile` compiled in place.

    An extra pass would otherwise cost a compilation of its own, and compiled code does not see hooks that were
    registered after it was made.
    """
    if "torch._dynamo" not in sys.modules:  # Nothing can be compiled; importing it takes seconds.
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class EagerHook:
    """A forward hook that compiled code calls and does not trace, so that what it does may change without a trace.

    Nothing of what it calls is traced either, whoever calls it. Copied with its module, it belongs to the copy's hook.
    """

    def __init__(self, hook: Callable[..., Any]) -> None:
        self._hook = hook
        self._call: Callable[..., Any] = torch.compiler.disable(hook, reason=_REASON)  # type: ignore[no-untyped-call]  # unannotated in torch

    def __call__(self, *args: Any) -> Any:  # noqa: ANN401 - as hooks get and give it
        return self._call(*args)

    def __reduce__(self) -> tuple[type[EagerHook], tuple[Callable[..., Any]]]:
        return EagerHook, (self._hook,)


def forget_compiled() -> None:
    """Have everything compiled anew when it is called next: compiled code does not see hooks that come or go."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
