"""What every word of the vocabulary is made of: how it is read, and the rules that words share.

Shapes are those of one sample, without the batch dimension, the features last: (F,) in the layout `vector`,
(L, F) in `sequence` and `map1d`, (H, W, F) in `map2d`. All dimensions but the last are positions.

In `sequence` no output position may depend on a later input position. That is a duty of each word, not of a
blueprint: a word that looks at other positions looks at earlier ones alone, or does not take the layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from esper.core.kernel._request import FEATURES_MAX

CHILDREN_MAX: Final = 32
#: Of any one tensor of a sample that a kernel computes, attention scores included: 64 MiB of float32.
ELEMENTS_MAX: Final = 1 << 24

Shape = tuple[int, ...]
Attributes = Mapping[str, float]


@dataclass(frozen=True)
class TensorPlan:
    """A tensor of a kernel: its shape, and first values drawn evenly from [-bound, bound], or all equal to `fill`.

    One that is not `trained` is a buffer: part of the artifact, changed by forwards in training mode alone.
    """

    shape: Shape
    bound: float | None = None
    fill: float = 0.0
    trained: bool = True

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class NodePlan:
    """One word of a spec, checked, with all that follows from it."""

    op: str
    attributes: Attributes
    children: tuple[NodePlan, ...]
    layout: str
    in_shape: Shape
    out_shape: Shape
    tensors: Mapping[str, TensorPlan]
    #: Products of the word itself, and how often one forward runs each child.
    multiply_adds: int
    repeats: int = 1

    @property
    def held(self) -> int:
        """Elements of all outputs of the whole subtree, as one sample's training forward keeps them."""
        return math.prod(self.out_shape) + self.repeats * sum(child.held for child in self.children)

    @property
    def causal(self) -> bool:
        """Whether positions may look at earlier ones only."""
        return self.layout == "sequence"

    @property
    def work(self) -> int:
        """Products of the whole subtree."""
        return self.multiply_adds + self.repeats * sum(child.work for child in self.children)

    def count(self, name: str) -> int:
        """Return an attribute that counts things."""
        return int(self.attributes[name])

    def all_tensors(self, prefix: str) -> dict[str, TensorPlan]:
        """Return the tensors of the whole subtree by their full names."""
        found = {f"{prefix}.{name}": tensor for name, tensor in self.tensors.items()}
        for index, child in enumerate(self.children):
            found.update(child.all_tensors(f"{prefix}.{index}"))
        return found

    def ops(self) -> set[str]:
        """Return every op of the subtree."""
        return {self.op}.union(*(child.ops() for child in self.children))


ShapeOf = Callable[[Attributes, Shape, Sequence[Shape]], Shape | None]
LAYOUTS_ALL: Final = frozenset({"vector", "sequence", "map1d", "map2d"})


@dataclass(frozen=True)
class Word:
    """How one op is read.

    `shape_of(attributes, in_shape, shapes of the children)` gives its output shape, None where it cannot take
    the input. `child_shape` gives what each child sees; a `sequential` alone hands on from child to child.
    """

    shape_of: ShapeOf
    attributes: Mapping[str, Callable[[object], bool]]
    children: tuple[int, int] = (0, 0)
    #: (attributes, in_shape) -> its own tensors by name
    tensors_of: Callable[[Attributes, Shape], dict[str, TensorPlan]] = lambda _attributes, _shape: {}
    #: (attributes, in_shape, out_shape) -> products of its own, per sample
    products_of: Callable[[Attributes, Shape, Shape], int] = lambda _attributes, _in, _out: 0
    #: (attributes, in_shape) -> input shape of every child
    child_shape: Callable[[Attributes, Shape], Shape] = lambda _attributes, shape: shape
    #: how often one forward runs its children
    repeats_of: Callable[[Attributes], int] = lambda _attributes: 1
    layouts: frozenset[str] = LAYOUTS_ALL


# What attributes may be. `type(...) is` because bool is an int in Python and a size must not be True.


def features(value: object) -> bool:
    """Return whether `value` is a number of features or positions."""
    return type(value) is int and 0 < value <= FEATURES_MAX


def counted(low: int, high: int) -> Callable[[object], bool]:
    """Return a check for whole numbers from `low` to `high`."""
    return lambda value: type(value) is int and low <= value <= high


def within(low: float, high: float) -> Callable[[object], bool]:
    """Return a check for finite floats from `low` to `high`."""
    return lambda value: type(value) is float and low <= value <= high


def flag(value: object) -> bool:
    """Return whether `value` is true or false."""
    return type(value) is bool


factor: Final = within(-100.0, 100.0)
epsilon: Final = within(1e-12, 1.0)

# What a word makes of the shape it is given; None where it cannot take it.


def same(_attributes: Attributes, shape: Shape, _children: Sequence[Shape]) -> Shape | None:
    """Keep any shape."""
    return shape


def featurewise(attributes: Attributes, shape: Shape, _children: Sequence[Shape]) -> Shape | None:
    """Keep a shape of the stated `features`."""
    return shape if shape[-1] == attributes["features"] else None


def mapped(attributes: Attributes, shape: Shape, _children: Sequence[Shape]) -> Shape | None:
    """Take `in` features to `out` features at every position."""
    return (*shape[:-1], int(attributes["out"])) if shape[-1] == attributes["in"] else None


def last(_attributes: Attributes, _shape: Shape, children: Sequence[Shape]) -> Shape | None:
    """Yield what the last child yields."""
    return children[-1]


def kept(_attributes: Attributes, shape: Shape, children: Sequence[Shape]) -> Shape | None:
    """Keep the shape, as every child must."""
    return shape if all(child == shape for child in children) else None


def agreed(_attributes: Attributes, _shape: Shape, children: Sequence[Shape]) -> Shape | None:
    """Yield the one shape that all children yield."""
    return children[0] if all(child == children[0] for child in children) else None


def joined(_attributes: Attributes, shape: Shape, children: Sequence[Shape]) -> Shape | None:
    """Put the features of the children side by side."""
    if any(child[:-1] != shape[:-1] for child in children):
        return None
    return (*shape[:-1], sum(child[-1] for child in children))


# Tensors. Weights and biases are drawn from U(-1/sqrt(in), 1/sqrt(in)), the default of torch.nn.Linear.


def drawn_map(inputs: int, outputs: int, *, bias: bool = True) -> dict[str, TensorPlan]:
    """Return weight and bias of a linear map."""
    bound = 1.0 / math.sqrt(inputs)
    weight = {"weight": TensorPlan((outputs, inputs), bound)}
    return weight | ({"bias": TensorPlan((outputs,), bound)} if bias else {})


# Products per sample.


def map_products(attributes: Attributes, shape: Shape, _out: Shape) -> int:
    """Count a linear map at every position."""
    return math.prod(shape[:-1]) * int(attributes["in"]) * int(attributes["out"])


def products(each: int) -> Callable[[Attributes, Shape, Shape], int]:
    """Count `each` products for every number of the output."""
    return lambda _attributes, _shape, out: each * math.prod(out)


MAP: Final[Mapping[str, Callable[[object], bool]]] = {"in": features, "out": features}
