"""A recorder for the CPU: what a CUDA graph keeps, kept operation by operation, so that replays can be tested.

As a graph does, a tape fixes the operations and the tensors that they read and write. A tensor that is made inside a
recording is made anew at each replay; one from outside is that very tensor for ever, whatever its name means by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        #: Storages that were written to and lay there before, with what was in them.
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._own: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments):
            self._keep_what_is_written(func, args, kwargs)
        out = func(*args, **kwargs)
        read = {_place(each) for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)}
        for each in tree_flatten(out)[0]:
            if isinstance(each, Tensor) and _place(each) not in read:
                self._own.add(_place(each))
        self.calls.append((func, args, kwargs, out))
        return out

    def _keep_what_is_written(self, func: Any, args: Any, kwargs: Any) -> None:
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            written = args[place] if place < len(args) else kwargs.get(argument.name)
            for each in tree_flatten(written)[0]:
                if isinstance(each, Tensor) and _place(each) not in self._own | self._before.keys():
                    storage = each.untyped_storage()
                    self._before[_place(each)] = (storage, storage.clone())

    def undo(self) -> None:
        """Put back what the recording wrote: a graph does nothing while it is recorded."""
        for storage, before in self._before.values():
            storage.copy_(before)

    def replay(self) -> None:
        """Do everything again."""
        made: dict[int, Tensor] = {}

        def now(value: Any) -> Any:
            return made.get(id(value), value) if isinstance(value, Tensor) else value

        with torch.no_grad():
            for func, args, kwargs, out in self.calls:
                again = func(*tree_map(now, args), **tree_map(now, kwargs))
                for old, new in zip(tree_flatten(out)[0], tree_flatten(again)[0], strict=True):
                    if isinstance(old, Tensor):
                        made[id(old)] = new


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class TapeRecorder:
    """Implements `esper.core.stacking.Recorder` on the CPU."""

    def __init__(self, *, refuses: bool = False) -> None:
        self._refuses = refuses

    @contextmanager
    def running(self) -> Iterator[None]:
        yield

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        if self._refuses:
            raise RuntimeError("operation not permitted when stream is capturing")
        tape = _Tape()
        with tape:
            work()
        tape.undo()
        return tape.replay
