"""How much a computation computes: multiply-adds of its matrix products, convolutions and attention."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from esper.core.eager import eagerly

#: Operators without a formula that torch cannot take apart either; they count nothing.
_WHOLE: Final[set[Any]] = set()


class _Counter(TorchDispatchMode):
    """Adds up torch's own formulas.

    What `torch.utils.flop_counter.FlopCounterMode` counts, without its book of modules and without asking of every
    operator anew whether it can be taken apart: that took as long again as the work itself.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # unannotated in torch
        self.flops: int = 0
        #: What was found for an operator on such shapes: layers of a network are alike, and torch's formulas slow.
        self._known: dict[Hashable, int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say that torch need not shut its compiler out for each operator anew: it is shut out of all the work."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - as torch gives it
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the operator returns
        options = dict(kwargs or {})
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        if formula is None and func not in _WHOLE and hasattr(func, "decompose"):
            with self:
                taken_apart = func.decompose(*args, **options)
            if taken_apart is not NotImplemented:
                return taken_apart
            _WHOLE.add(func)
        out = func(*args, **options)
        if formula is not None:
            self.flops += self._flops_of(func, formula, args, options, out)
        return out

    def _flops_of(
        self,
        func: object,
        formula: Callable[..., float],
        args: tuple[Any, ...],
        options: Mapping[str, Any],
        out: object,
    ) -> int:
        if not hasattr(formula, "__wrapped__") or getattr(formula, "_get_raw", False):
            return int(formula(*args, **options, out_val=out))  # It looks at more than shapes.
        key = (func, _shapes(args), _shapes(tuple(options.items())), _shapes(out))
        try:
            if key not in self._known:
                self._known[key] = int(formula(*args, **options, out_val=out))
            return self._known[key]
        except TypeError:  # An argument that cannot be a key.
            return int(formula(*args, **options, out_val=out))


def _shapes(value: Any) -> Hashable:  # noqa: ANN401 - whatever an operator takes
    """Return a value with its tensors' shapes in the place of these."""
    if isinstance(value, Tensor):
        return value.shape
    if isinstance(value, list | tuple):
        return tuple(map(_shapes, value))
    return value  # type: ignore[no-any-return]  # one that is no key shows when it is used as one


def count_multiply_adds(work: Callable[[], object]) -> int:
    """Run `work` and return its multiply-adds: half the flops of its matrix products, convolutions and attention.

    Elementwise work counts nothing, as is usual (torch.utils.flop_counter, whose formulas these are). Attention in
    torch's fused encoder layers is one operator without a formula: switch those off where they are to count. Nothing is
    compiled for it, and what is compiled runs uncompiled: torch may give a compiled frame up for good that it meets
    under a counter.
    """
    counter = _Counter()
    with eagerly(), counter:
        work()
    return counter.flops // 2
