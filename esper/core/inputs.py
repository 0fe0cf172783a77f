"""What a model is called with and what a module gives back, where either may be more than one tensor.

B is the number of samples of a batch. `Inputs` is one tensor [B, ...], several by position (a tuple), or several by
name (a mapping, as tokenizers give). What of them is no tensor, or has no dimension, is handed on as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from esper.core.errors import UsageError

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
#: Whatever a loss compares a model's outputs with.
Targets = Any
#: What a module returns.
Output = Any
Batch = tuple[Inputs, Targets]


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and named arguments that `inputs` stands for."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def call(module: nn.Module, inputs: Inputs) -> Output:
    """Return what `module` makes of `inputs`."""
    args, kwargs = arguments(inputs)
    return module(*args, **kwargs)


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """Return the tensors with a batch dimension, in their order."""
    args, kwargs = arguments(inputs)
    return [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor) and each.dim()]


def samples_in(inputs: Inputs) -> int:
    """Return B.

    Raises:
        UsageError: there is no tensor with a batch dimension.
    """
    tensors = tensors_of(inputs)
    if not tensors:
        raise UsageError(
            f"a batch of a {type(inputs).__name__} cannot be used",
            cause="no tensor with a batch dimension is in it",
            next_step="give (inputs, targets): one tensor, a tuple of them, or a mapping by the forward's names",
        )
    return len(tensors[0])


def shapes_of(inputs: Inputs) -> tuple[tuple[int, ...], ...]:
    """Return the tensors' shapes: what a forward's cost depends on."""
    return tuple(tuple(each.shape) for each in tensors_of(inputs))


def mapped(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Return `inputs` with `change` made to each tensor."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, Mapping):
        return {name: change(each) if isinstance(each, Tensor) else each for name, each in inputs.items()}
    return tuple(change(each) if isinstance(each, Tensor) else each for each in inputs)


def copied(inputs: Inputs) -> Inputs:
    """Return copies of the tensors, without their gradients: a forward may write into what it is given."""
    return mapped(inputs, lambda each: each.detach().clone())


def first_samples(inputs: Inputs, count: int) -> Inputs:
    """Return the first `count` samples; the data are the same."""
    samples = samples_in(inputs)
    return mapped(inputs, lambda each: each[:count] if each.dim() and len(each) == samples else each)


def source_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Output:
    """Return what a module reads: its first positional argument, or the first tensor of its named ones."""
    if args:
        return args[0]
    return next((each for each in kwargs.values() if isinstance(each, Tensor)), None)


def main_of(output: Output) -> Output:
    """Return what of a module's output others read on: the output, or the first of a tuple."""
    return output[0] if isinstance(output, tuple) and output else output


def with_main(output: Output, main: Tensor) -> Output:
    """Return `output` with `main` in the place of `main_of(output)`."""
    if not isinstance(output, tuple):
        return main
    rest = (main, *output[1:])
    return type(output)(*rest) if hasattr(output, "_fields") else rest


def scores_of(outputs: Output) -> Tensor | None:
    """Return the scores of classes, [B, ..., classes]: the outputs, their `logits`, or the first of a tuple."""
    found = main_of(outputs)
    found = getattr(found, "logits", found)
    found = found.get("logits") if isinstance(found, Mapping) else found
    return found if isinstance(found, Tensor) and found.dim() > 1 else None
