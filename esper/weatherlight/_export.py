"""A grown network as files that need torch and nothing of Esper.

"pt2" is torch's own format for an exported program. "safetensors" is two files that a person can read: the weights
by their names in the network, and beside them a Python module that holds the forward as torch operations.
"""

from __future__ import annotations

import copy
import io
import json
import os
import pprint
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from esper.core.eager import eagerly, uncompiled
from esper.core.errors import OperationFailed, UsageError
from esper.core.files import write_atomically
from esper.weatherlight._tensor_file import tensor_file

ExportFormat = Literal["safetensors", "pt2"]
FORMATS: Final[tuple[str, ...]] = get_args(ExportFormat)
#: Largest difference between the outputs of the network and of what was exported, against outputs of order 1.
TOLERANCE: Final = 1e-5

_SAMPLES: Final = 3
_PARTS: Final = frozenset({InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR})
#: Names that fx's code may use; the module that is written brings those that are not torch's bookkeeping.
_KNOWN_GLOBALS: Final = frozenset({"inf", "nan", "NoneType", "torch", "device", "fx_pytree", "pytree"})


@dataclass(frozen=True)
class Exported:
    """What was written: all its files, and how far its outputs lie from the network's on a sample."""

    files: tuple[Path, ...]
    difference: float


def export_network(model: nn.Module, sample: Tensor, path: Path, to: str) -> Exported:
    """Write what `model` computes in eval mode to `path`; seeds that are heard are a part of it, as they are now.

    `sample`: a batch as the model takes it, [batch, ...]. Any batch size may be given to the result; every other
    dimension is the sample's. The model is left as it was. Nothing is written unless the exported program gives
    the model's outputs within `TOLERANCE` for two batch sizes.

    Raises:
        UsageError: unknown format, wrong ending of `path`, or the model is not one that torch can export.
        OperationFailed: the exported program computes something else.
    """
    check_target(path, to)
    with _at_rest(model) as resting:
        inputs = _enough(sample.detach()).cpu()
        program = _program(copy.deepcopy(resting), inputs)
        difference = _difference(resting, program, inputs)
    contents = _pt2(program, path) if to == "pt2" else _readable(program, path, inputs)
    for name, content in contents.items():
        _write(name, content)
    return Exported(tuple(contents), difference)


def check_target(path: Path, to: str) -> None:
    """Raise when a network cannot be written to `path` as `to`.

    Raises:
        UsageError: there is no such format, the name or folder of `path` does not fit, or the module that is
            written beside it would overwrite a file that no export wrote.
    """
    if to not in FORMATS:
        raise UsageError(f"{to!r} is no format", next_step=f"choose one of {', '.join(FORMATS)}")
    if path.suffix != f".{to}":
        raise UsageError(f"{path} cannot be written as {to}", next_step=f"give a name that ends in .{to}")
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written", cause=f"there is no folder {path.parent}", next_step="make it")
    module = _module_of(path)
    if to == "safetensors" and _is_someone_elses(module):
        raise UsageError(
            f"{path} cannot be written",
            cause=f"{module}, the module that belongs beside it, is there and no export wrote it",
            next_step="give another name, or move that file away",
        )


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a copy of the model, on the CPU and in eval mode."""
    # A copy, because a forward may write buffers even in eval mode.
    host = copy.deepcopy(uncompiled(model)).cpu().eval()
    fused = torch.backends.mha.get_fastpath_enabled()
    # Torch's fused encoder layers are one operation that other versions of torch may not have.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with ExitStack() as stack:
            stack.enter_context(eagerly())
            stack.enter_context(torch.no_grad())
            yield host
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _enough(sample: Tensor) -> Tensor:
    """Return at least three samples: torch takes a batch of one for a constant."""
    return torch.cat([sample] * -(-_SAMPLES // len(sample)))


def _program(model: nn.Module, inputs: Tensor) -> ExportedProgram:
    try:
        return torch.export.export(model, (inputs,), dynamic_shapes=({0: Dim.DYNAMIC},))
    except Exception as error:  # whatever a user's forward does that torch cannot follow
        first_line = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"{type(model).__name__} cannot be exported",
            cause=f"{type(error).__name__}: {first_line}",
            next_step="torch.export must be able to follow its forward for any batch size",
        ) from error


def _difference(model: nn.Module, program: ExportedProgram, inputs: Tensor) -> float:
    """Return the largest difference of outputs, relative to outputs beyond 1.

    Raises:
        UsageError: the model returns something else than one tensor.
        OperationFailed: the difference is beyond the tolerance.
    """
    largest = 0.0
    for batch in (inputs, inputs[:1]):
        expected, found = copy.deepcopy(model)(batch), copy.deepcopy(program).module()(batch)
        if not isinstance(expected, Tensor):
            raise UsageError(
                f"{type(model).__name__} cannot be exported",
                cause=f"it returns a {type(expected).__name__}, not one tensor",
                next_step="wrap it in a module whose forward returns the tensor that is wanted",
            )
        scale = expected.abs().clamp(min=1.0)
        largest = max(largest, float(((expected - found).abs() / scale).max()))
    if not largest <= TOLERANCE:
        raise OperationFailed(
            f"{type(model).__name__} was not exported",
            cause=f"the exported program's outputs differ by {largest:g}, at most {TOLERANCE:g} is allowed",
            next_step="look for what its forward does beside tensors: counters, caches, random numbers",
        )
    return largest


def _pt2(program: ExportedProgram, path: Path) -> dict[Path, bytes]:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return {path: buffer.getvalue()}


def _readable(program: ExportedProgram, path: Path, inputs: Tensor) -> dict[Path, bytes]:
    """Return the weights and the module of a program, by file; the weights first."""
    arguments = _arguments(program)
    tensors = _tensors(program, arguments)
    layout = f"[batch, {', '.join(map(str, inputs.shape[1:]))}] of {inputs.dtype}"
    source = _MODULE.substitute(
        inputs=layout,
        weights=path.name,
        arguments=pprint.pformat(arguments, width=110, sort_dicts=False),
        trained=pprint.pformat(sorted(_names(program, InputKind.PARAMETER)), width=110),
        code=_code(program),
    )
    facts = {"writer": "esper", "inputs": json.dumps([str(inputs.dtype), *inputs.shape[1:]])}
    return {path: tensor_file(tensors, facts), _module_of(path): source.encode()}


def _module_of(path: Path) -> Path:
    """Return the module that is written beside the weights."""
    return path.with_suffix(".py")


def _is_someone_elses(module: Path) -> bool:
    """Whether something is there that no export wrote."""
    if not os.path.lexists(module):
        return False
    if not module.is_file():
        return True
    try:
        with module.open("rb") as file:
            return file.readline(len(_FIRST_LINE)) != _FIRST_LINE
    except OSError:
        return True


def _names(program: ExportedProgram, kind: InputKind) -> set[str]:
    return {str(spec.target) for spec in program.graph_signature.input_specs if spec.kind == kind}


def _arguments(program: ExportedProgram) -> dict[str, str]:
    """Return the tensor that each argument of the program's forward but the last stands for.

    Raises:
        UsageError: the program has inputs or operations that a plain module of torch cannot hold.
    """
    *parts, user = program.graph_signature.input_specs
    nodes = [node for node in program.graph.nodes if node.op not in ("placeholder", "output")]
    foreign = {str(node.target) for node in nodes if not _is_plain(node)}
    foreign |= {str(spec.kind) for spec in parts if spec.kind not in _PARTS}
    if foreign or user.kind != InputKind.USER_INPUT or len(program.graph_signature.user_outputs) != 1:
        raise UsageError(
            "the network cannot be written as safetensors and a module",
            cause=f"its forward holds {', '.join(sorted(foreign))}" if foreign else "it has several inputs or outputs",
            next_step='export it to="pt2"',
        )
    return {spec.arg.name: str(spec.target) for spec in parts}


def _is_plain(node: torch.fx.Node) -> bool:
    """Whether the node is an operation of torch itself or arithmetic on sizes."""
    if node.op != "call_function":
        return False
    if isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001 - torch documents the class under this name
        return node.target.namespace == "aten"
    return getattr(node.target, "__module__", "") in ("_operator", "math", "builtins")


def _tensors(program: ExportedProgram, arguments: Mapping[str, str]) -> dict[str, Tensor]:
    """Return every tensor of the program by name; tied ones are written once for each of their names."""
    held: dict[str, Any] = {**program.constants, **program.state_dict}
    return {name: held[name].detach().clone().contiguous() for name in arguments.values()}


def _code(program: ExportedProgram) -> str:
    code = program.graph.python_code("self")
    unknown = set(code.globals) - _KNOWN_GLOBALS
    if unknown:
        raise UsageError(
            "the network cannot be written as safetensors and a module",
            cause=f"its code needs {', '.join(sorted(unknown))}",
            next_step='export it to="pt2"',
        )
    body: str = code.src.strip()
    return body.replace("def forward(self, ", "def _forward(", 1)


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content, mode=0o644)
    except OSError as error:
        raise OperationFailed(f"{path} cannot be written", cause=str(error)) from error


#: By this line an export knows a module again that an earlier one wrote.
_FIRST_LINE: Final = b'"""A network that was grown with Esper, as it computes in eval mode.\n'
_MODULE: Final = Template(
    _FIRST_LINE.decode()
    + '''
`load()` returns it; torch and safetensors are all that it needs. Inputs: $inputs; any batch size.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import device, inf, nan, nn

#: Argument of the forward -> name of its tensor in the weights' file.
ARGUMENTS = $arguments
#: Names of the tensors that training changed; the others are buffers and constants.
TRAINED = frozenset($trained)


class Network(nn.Module):
    """The grown network; its tensors carry the names of the arguments of `_forward`."""

    def __init__(self, weights):
        super().__init__()
        for argument, name in ARGUMENTS.items():
            if name in TRAINED:
                self.register_parameter(argument, nn.Parameter(weights[name]))
            else:
                self.register_buffer(argument, weights[name])

    def forward(self, inputs):
        (outputs,) = _forward(*(getattr(self, argument) for argument in ARGUMENTS), inputs)
        return outputs


def load(path=Path(__file__).with_name("$weights")):
    """Return the network with the weights of `path`."""
    return Network(load_file(path))


$code
'''
)
