"""Reading a spec: from a tree of words to a plan, with everything that follows from it and without torch.

A spec is data: a tree of the words of `_words`. Reading one yields a plan, which says every shape, every tensor with
its first values, and the work per sample. No module is made and no tensor allocated before the whole plan stands.

    {"format": 1, "layout": "vector", "dtype": "float32", "in_shape": [40], "out_shape": [8],
     "body": {"op": "sequential", "children": [{"op": "linear", "in": 40, "out": 40, "bias": true}, {"op": "relu"}]},
     "end": {"op": "projection", "in": 40, "out": 8}}

Shapes are those of one sample, without the batch dimension. A map has its channels first, as torch's hosts have
them; inside the kernel they stand last, so that a word of features means the same in every layout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from esper.core.errors import IntegrityError
from esper.core.kernel._request import CHANNELS_FIRST, DTYPES, LAYOUTS
from esper.core.kernel._word import ELEMENTS_MAX, NodePlan, Shape, TensorPlan, Word, features
from esper.core.kernel._words import BODY_WORDS, END_WORDS, HAZARD_WORDS

FORMAT_VERSION: Final = 1
DEPTH_MAX: Final = 16
NODES_MAX: Final = 256
#: 64 MiB of float32: far above any seed, far below what would hurt a worker.
PARAMETERS_MAX: Final = 1 << 24
#: Per sample; about a second of one core, and what a manifest can say.
MULTIPLY_ADDS_MAX: Final = (1 << 32) - 1
#: Of all tensors that one sample's training forward keeps: 128 MiB of float32.
HELD_MAX: Final = 1 << 25


@dataclass(frozen=True)
class KernelPlan:
    """A whole kernel, checked: body, zero-initialised end, and its tensors by name in name order."""

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
        return sum(tensor.elements for tensor in self.tensors.values() if tensor.trained)

    @property
    def elements(self) -> int:
        """Number of numbers in its artifact: parameters and buffers."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @property
    def multiply_adds_per_sample(self) -> int:
        """Products that one sample's forward computes; additions and activation functions are not counted."""
        return self.body.work + self.end.work

    @property
    def hazards(self) -> tuple[str, ...]:
        """Words in it that may only be built for quarantine, sorted."""
        return tuple(sorted(self.body.ops() & set(HAZARD_WORDS)))


def plan_spec(spec: Mapping[str, object]) -> KernelPlan:
    """Return what `spec` describes, or refuse it whole.

    Raises:
        IntegrityError: an unknown word, a missing or unknown attribute, a value out of bounds, shapes that
            do not meet, a word that the layout does not have, or more depth, nodes, parameters, work or
            elements than a kernel may have.
    """
    keys = {"format", "layout", "dtype", "in_shape", "out_shape", "body", "end"}
    if set(spec) != keys:
        raise _refused(f"its keys are {sorted(map(str, spec))}, not {sorted(keys)}")
    # A 1.0 or a true would be a second way to write the same spec down.
    if type(spec["format"]) is not int or spec["format"] != FORMAT_VERSION:
        raise _refused(f"format {spec['format']!r}, this version reads {FORMAT_VERSION}")
    layout, dtype = spec["layout"], spec["dtype"]
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise _refused(f"layout {layout!r} is none of {sorted(LAYOUTS)}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _refused(f"dtype {dtype!r} is none of {sorted(DTYPES)}")
    in_shape = _shape(spec["in_shape"], "in_shape", rank=LAYOUTS[layout])
    out_shape = _shape(spec["out_shape"], "out_shape", rank=LAYOUTS[layout])
    reader = _Reader(layout)
    body = reader.read(spec["body"], inner_shape(layout, in_shape), BODY_WORDS)
    end = reader.read(spec["end"], body.out_shape, END_WORDS)
    if end.out_shape != inner_shape(layout, out_shape):
        raise _refused(f"it yields shape {list(end.out_shape)}, features last, not out_shape {list(out_shape)}")
    tensors = body.all_tensors("body") | end.all_tensors("end")
    plan = KernelPlan(layout, dtype, in_shape, out_shape, body, end, dict(sorted(tensors.items())))
    if plan.multiply_adds_per_sample > MULTIPLY_ADDS_MAX:
        raise _refused(f"{plan.multiply_adds_per_sample} products per sample, at most {MULTIPLY_ADDS_MAX}")
    if (held := body.held + end.held) > HELD_MAX:
        raise _refused(f"{held} elements kept per sample, at most {HELD_MAX}")
    return plan


def inner_shape(layout: str, shape: Shape) -> Shape:
    """Return the shape of one sample as the words see it: features last."""
    return (*shape[1:], shape[0]) if layout in CHANNELS_FIRST else shape


class _Reader:
    """Reads the nodes of one spec, and keeps what it may still spend."""

    def __init__(self, layout: str) -> None:
        self._layout = layout
        self._nodes = NODES_MAX
        self._parameters = PARAMETERS_MAX

    def read(self, node: object, shape: Shape, words: Mapping[str, Word], *, depth: int = 1) -> NodePlan:
        """Return the plan of `node` and of all below it, for an input of `shape`."""
        op, word, fields = self._word(node, words, depth)
        attributes = _attributes(op, fields, word)
        tensors = word.tensors_of(attributes, shape)
        self._spend_parameters(tensors)
        children: list[NodePlan] = []
        for child in _children(op, fields, word):
            # A sequence hands each child the shape that the one before yields; all others give all children the same.
            handed_on = op == "sequential" and children
            child_shape = children[-1].out_shape if handed_on else word.child_shape(attributes, shape)
            _check_size(op, child_shape)
            children.append(self.read(child, child_shape, words, depth=depth + 1))
        shapes = [child.out_shape for child in children]
        out_shape = word.shape_of(attributes, shape, shapes)
        if out_shape is None:
            raise _refused(f"{op} {dict(attributes)} of {list(map(list, shapes))} cannot take shape {list(shape)}")
        _check_size(op, out_shape)
        products, repeats = word.products_of(attributes, shape, out_shape), word.repeats_of(attributes)
        return NodePlan(
            op, attributes, tuple(children), self._layout, shape, out_shape, tensors, products, repeats=repeats
        )

    def _word(self, node: object, words: Mapping[str, Word], depth: int) -> tuple[str, Word, Mapping[str, object]]:
        if depth > DEPTH_MAX:
            raise _refused(f"nested deeper than {DEPTH_MAX}")
        self._nodes -= 1
        if self._nodes < 0:
            raise _refused(f"more than {NODES_MAX} nodes")
        if not isinstance(node, Mapping) or not isinstance(node.get("op"), str):
            raise _refused("a node is no object with an op")
        op = str(node["op"])
        if op not in words:
            raise _refused(f"unknown op {op[:64]!r} here; known: {', '.join(sorted(words))}")
        if self._layout not in words[op].layouts:
            raise _refused(f"{op} has no meaning in layout {self._layout!r}")
        return op, words[op], node

    def _spend_parameters(self, tensors: Mapping[str, TensorPlan]) -> None:
        self._parameters -= sum(tensor.elements for tensor in tensors.values())
        if self._parameters < 0:
            raise _refused(f"more than {PARAMETERS_MAX} parameters")


def _attributes(op: str, node: Mapping[str, object], word: Word) -> dict[str, float]:
    expected = {"op", *word.attributes} | ({"children"} if word.children[1] else set())
    if set(node) != expected:
        raise _refused(f"{op} has {sorted(map(str, node))}, not {sorted(expected)}")
    found: dict[str, float] = {}
    for name, valid in word.attributes.items():
        value = node[name]
        if not isinstance(value, int | float) or not valid(value):
            raise _refused(f"{op}.{name} = {repr(value)[:64]} is out of bounds")
        found[name] = value
    return found


def _children(op: str, node: Mapping[str, object], word: Word) -> Sequence[object]:
    low, high = word.children
    if high == 0:
        return ()
    children = node["children"]
    if not isinstance(children, list) or not low <= len(children) <= high:
        raise _refused(f"{op} takes {low} to {high} children")
    return children


def _shape(value: object, name: str, *, rank: int) -> Shape:
    if not isinstance(value, list) or len(value) != rank or not all(map(features, value)):
        raise _refused(f"{name} {repr(value)[:64]} is not {rank} size(s) of 1 to 65536")
    return tuple(value)


def _check_size(op: str, shape: Shape) -> None:
    if not all(map(features, shape)) or math.prod(shape) > ELEMENTS_MAX:
        raise _refused(f"{op} cannot take or yield shape {list(shape)}: more than a kernel may hold")


def _refused(cause: str) -> IntegrityError:
    return IntegrityError("kernel spec is refused", cause=cause, next_step="have the kernel compiled again")
