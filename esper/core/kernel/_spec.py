"""The closed vocabulary of kernels: what each word means, and everything that follows from a spec without torch.

A spec is data: a tree of words below. Reading one yields a plan, which says every shape, every parameter with
its first values, and the work per sample. No module is made and no tensor allocated before the whole plan stands.

    {"format": 1, "layout": "vector", "dtype": "float32", "in_shape": [40], "out_shape": [8],
     "body": {"op": "sequential", "children": [{"op": "linear", "in": 40, "out": 40, "bias": true}, {"op": "relu"}]},
     "end": {"op": "projection", "in": 40, "out": 8}}

Shapes are those of one sample, without the batch dimension; every word acts on the last dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from esper.core.errors import IntegrityError
from esper.core.kernel._request import DTYPES, FEATURES_MAX, LAYOUTS

FORMAT_VERSION: Final = 1
DEPTH_MAX: Final = 16
NODES_MAX: Final = 256
CHILDREN_MAX: Final = 32
#: 64 MiB of float32: far above any seed, far below what would hurt a worker.
PARAMETERS_MAX: Final = 1 << 24

Shape = tuple[int, ...]
Attributes = Mapping[str, float]


@dataclass(frozen=True)
class TensorPlan:
    """A parameter: its shape, and first values drawn evenly from [-bound, bound], or all equal to `fill`."""

    shape: Shape
    bound: float | None = None
    fill: float = 0.0

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
    out_shape: Shape
    tensors: Mapping[str, TensorPlan]
    multiply_adds: int

    def all_tensors(self, prefix: str) -> dict[str, TensorPlan]:
        """Return the parameters of the whole subtree by their full names."""
        found = {f"{prefix}.{name}": tensor for name, tensor in self.tensors.items()}
        for index, child in enumerate(self.children):
            found.update(child.all_tensors(f"{prefix}.{index}"))
        return found


@dataclass(frozen=True)
class KernelPlan:
    """A whole kernel, checked: body, zero-initialised end, and its parameters by name in name order."""

    layout: str
    dtype: str
    in_shape: Shape
    out_shape: Shape
    body: NodePlan
    end: NodePlan
    tensors: Mapping[str, TensorPlan]

    @property
    def parameters(self) -> int:
        """Number of trainable numbers."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @property
    def multiply_adds_per_sample(self) -> int:
        """Products that one sample's forward computes; additions and activation functions are not counted."""
        return _work(self.body) + _work(self.end)


@dataclass(frozen=True)
class _Word:
    """How one op is read: its attributes, how many children, its output shape, its parameters, its products."""

    shape_of: Callable[[Attributes, Shape, Sequence[Shape]], Shape | None]
    attributes: Mapping[str, Callable[[object], bool]]
    children: tuple[int, int] = (0, 0)
    tensors_of: Callable[[Attributes], dict[str, TensorPlan]] = lambda _: {}
    products_of: Callable[[Attributes, Shape], int] = lambda _attributes, _shape: 0


def plan_spec(spec: Mapping[str, object]) -> KernelPlan:
    """Return what `spec` describes, or refuse it whole.

    Raises:
        IntegrityError: an unknown word, a missing or unknown attribute, a value out of bounds, shapes that
            do not meet, or more depth, nodes or parameters than a kernel may have.
    """
    keys = {"format", "layout", "dtype", "in_shape", "out_shape", "body", "end"}
    if set(spec) != keys:
        raise _refused(f"its keys are {sorted(map(str, spec))}, not {sorted(keys)}")
    if spec["format"] != FORMAT_VERSION or isinstance(spec["format"], bool):
        raise _refused(f"format {spec['format']!r}, this version reads {FORMAT_VERSION}")
    layout, dtype = spec["layout"], spec["dtype"]
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise _refused(f"layout {layout!r} is none of {sorted(LAYOUTS)}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _refused(f"dtype {dtype!r} is none of {sorted(DTYPES)}")
    in_shape = _shape(spec["in_shape"], "in_shape", rank=LAYOUTS[layout])
    out_shape = _shape(spec["out_shape"], "out_shape", rank=LAYOUTS[layout])
    budget = _Budget()
    body = _plan_node(spec["body"], in_shape, _BODY_WORDS, budget, depth=1)
    end = _plan_node(spec["end"], body.out_shape, _END_WORDS, budget, depth=1)
    if end.out_shape != out_shape:
        raise _refused(f"it yields shape {list(end.out_shape)}, not out_shape {list(out_shape)}")
    tensors = body.all_tensors("body") | end.all_tensors("end")
    return KernelPlan(layout, dtype, in_shape, out_shape, body, end, dict(sorted(tensors.items())))


class _Budget:
    """What a spec may still spend while it is being read."""

    def __init__(self) -> None:
        self._nodes = NODES_MAX
        self._parameters = PARAMETERS_MAX

    def spend_node(self) -> None:
        self._nodes -= 1
        if self._nodes < 0:
            raise _refused(f"more than {NODES_MAX} nodes")

    def spend_parameters(self, tensors: Mapping[str, TensorPlan]) -> None:
        self._parameters -= sum(tensor.elements for tensor in tensors.values())
        if self._parameters < 0:
            raise _refused(f"more than {PARAMETERS_MAX} parameters")


def _plan_node(node: object, shape: Shape, words: Mapping[str, _Word], budget: _Budget, *, depth: int) -> NodePlan:
    if depth > DEPTH_MAX:
        raise _refused(f"nested deeper than {DEPTH_MAX}")
    budget.spend_node()
    if not isinstance(node, Mapping) or not isinstance(node.get("op"), str):
        raise _refused("a node is no object with an op")
    op = str(node["op"])
    if op not in words:
        raise _refused(f"unknown op {op[:64]!r} here; known: {', '.join(sorted(words))}")
    word = words[op]
    attributes = _attributes(op, node, word)
    tensors = word.tensors_of(attributes)
    budget.spend_parameters(tensors)
    children: list[NodePlan] = []
    for child in _children(op, node, word):
        # A sequence hands each child the shape that the one before yields; all others give every child their own input.
        child_shape = children[-1].out_shape if op == "sequential" and children else shape
        children.append(_plan_node(child, child_shape, words, budget, depth=depth + 1))
    child_shapes = [child.out_shape for child in children]
    out_shape = word.shape_of(attributes, shape, child_shapes)
    if out_shape is None or not all(0 < size <= FEATURES_MAX for size in out_shape):
        raise _refused(f"{op} {dict(attributes)} of {list(map(list, child_shapes))} cannot take shape {list(shape)}")
    return NodePlan(op, attributes, tuple(children), out_shape, tensors, word.products_of(attributes, out_shape))


def _attributes(op: str, node: Mapping[str, object], word: _Word) -> dict[str, float]:
    expected = {"op", *word.attributes} | ({"children"} if word.children[1] else set())
    if set(node) != expected:
        raise _refused(f"{op} has {sorted(map(str, node))}, not {sorted(expected)}")
    found: dict[str, float] = {}
    for name, valid in word.attributes.items():
        value = node[name]
        if not isinstance(value, int | float) or not valid(value):
            raise _refused(f"{op}.{name} = {str(value)[:64]} is out of bounds")
        found[name] = value
    return found


def _children(op: str, node: Mapping[str, object], word: _Word) -> Sequence[object]:
    low, high = word.children
    if high == 0:
        return ()
    children = node["children"]
    if not isinstance(children, list) or not low <= len(children) <= high:
        raise _refused(f"{op} takes {low} to {high} children")
    return children


def _shape(value: object, name: str, *, rank: int) -> Shape:
    if not isinstance(value, list) or len(value) != rank or not all(map(_features, value)):
        raise _refused(f"{name} {str(value)[:64]} is not {rank} size(s) of 1 to {FEATURES_MAX}")
    return tuple(value)


def _work(node: NodePlan) -> int:
    return node.multiply_adds + sum(map(_work, node.children))


def _refused(cause: str) -> IntegrityError:
    return IntegrityError("kernel spec is refused", cause=cause, next_step="have the kernel compiled again")


# What attributes may be. `type(...) is` because bool is an int in Python and a size must not be True.


def _features(value: object) -> bool:
    return type(value) is int and 0 < value <= FEATURES_MAX


def _flag(value: object) -> bool:
    return type(value) is bool


def _factor(value: object) -> bool:
    return type(value) is float and abs(value) <= 100.0


def _epsilon(value: object) -> bool:
    return type(value) is float and 1e-12 <= value <= 1.0


# What a word makes of the shape it is given; None where it cannot take it.


def _same(_attributes: Attributes, shape: Shape, _children: Sequence[Shape]) -> Shape | None:
    return shape


def _featurewise(attributes: Attributes, shape: Shape, _children: Sequence[Shape]) -> Shape | None:
    return shape if shape[-1] == attributes["features"] else None


def _mapped(attributes: Attributes, shape: Shape, _children: Sequence[Shape]) -> Shape | None:
    return (*shape[:-1], int(attributes["out"])) if shape[-1] == attributes["in"] else None


def _last(_attributes: Attributes, _shape: Shape, children: Sequence[Shape]) -> Shape | None:
    return children[-1]


def _kept(_attributes: Attributes, shape: Shape, children: Sequence[Shape]) -> Shape | None:
    return shape if all(child == shape for child in children) else None


def _agreed(_attributes: Attributes, _shape: Shape, children: Sequence[Shape]) -> Shape | None:
    return children[0] if all(child == children[0] for child in children) else None


def _joined(_attributes: Attributes, shape: Shape, children: Sequence[Shape]) -> Shape | None:
    if any(child[:-1] != shape[:-1] for child in children):
        return None
    return (*shape[:-1], sum(child[-1] for child in children))


# Parameters. Weights and biases are drawn from U(-1/sqrt(in), 1/sqrt(in)), the default of torch.nn.Linear.


def _drawn_map(attributes: Attributes) -> dict[str, TensorPlan]:
    inputs, outputs = int(attributes["in"]), int(attributes["out"])
    bound = 1.0 / math.sqrt(inputs)
    weight = {"weight": TensorPlan((outputs, inputs), bound)}
    return weight | ({"bias": TensorPlan((outputs,), bound)} if attributes["bias"] else {})


def _gate_map(attributes: Attributes) -> dict[str, TensorPlan]:
    inputs, outputs = int(attributes["in"]), int(attributes["out"])
    weight = TensorPlan((outputs, inputs), 1.0 / math.sqrt(inputs))
    return {"weight": weight, "bias": TensorPlan((outputs,), fill=attributes["bias"])}


def _zero_map(attributes: Attributes) -> dict[str, TensorPlan]:
    inputs, outputs = int(attributes["in"]), int(attributes["out"])
    return {"weight": TensorPlan((outputs, inputs)), "bias": TensorPlan((outputs,))}


def _norm(attributes: Attributes) -> dict[str, TensorPlan]:
    features = (int(attributes["features"]),)
    return {"weight": TensorPlan(features, fill=1.0), "bias": TensorPlan(features)}


def _zero_gain(attributes: Attributes) -> dict[str, TensorPlan]:
    return {"weight": TensorPlan((int(attributes["features"]),))}


# Products per sample, by the shape of the output.


def _map_products(attributes: Attributes, shape: Shape) -> int:
    return math.prod(shape[:-1]) * int(attributes["in"]) * int(attributes["out"])


def _products(each: int) -> Callable[[Attributes, Shape], int]:
    return lambda _attributes, shape: each * math.prod(shape)


_MAP: Final[Mapping[str, Callable[[object], bool]]] = {"in": _features, "out": _features}

_BODY_WORDS: Final[Mapping[str, _Word]] = {
    "identity": _Word(_same, {}),
    "relu": _Word(_same, {}),
    "gelu": _Word(_same, {}),
    "silu": _Word(_same, {}),
    "scale": _Word(_same, {"factor": _factor}, products_of=_products(1)),
    "linear": _Word(_mapped, {**_MAP, "bias": _flag}, tensors_of=_drawn_map, products_of=_map_products),
    # A logistic gate sigmoid(W x + b) whose every bias begins at `bias`.
    "gate": _Word(_mapped, {**_MAP, "bias": _factor}, tensors_of=_gate_map, products_of=_map_products),
    # The square of the variance, the product with its root's inverse, and the product with the weight.
    "layer_norm": _Word(
        _featurewise, {"features": _features, "epsilon": _epsilon}, tensors_of=_norm, products_of=_products(3)
    ),
    "sequential": _Word(_last, {}, children=(1, CHILDREN_MAX)),
    # x + child(x)
    "residual": _Word(_kept, {}, children=(1, 1)),
    # All children see the input; their outputs stand side by side.
    "concat": _Word(_joined, {}, children=(2, CHILDREN_MAX)),
    # first(x) * second(x)
    "product": _Word(_agreed, {}, children=(2, 2), products_of=_products(1)),
    # With t = first(x): t * second(x) + (1 - t) * x
    "highway": _Word(_kept, {}, children=(2, 2), products_of=_products(2)),
}

_END_WORDS: Final[Mapping[str, _Word]] = {
    # A factor per feature, all zero at first.
    "gain": _Word(_featurewise, {"features": _features}, tensors_of=_zero_gain, products_of=_products(1)),
    # A linear map with bias, all zero at first.
    "projection": _Word(_mapped, _MAP, tensors_of=_zero_map, products_of=_map_products),
}
