"""The file of a checkpoint: named tensors and facts in one safetensors file whose bytes are a function of its content.

The facts are a JSON object, kept as a tensor of bytes under a name of its own, so that a file can be read with any
safetensors reader. Floats survive JSON bit for bit (the shortest decimal that gives them back). Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from esper.core.errors import IntegrityError, UsageError

FORMAT: Final = "esper.checkpoint.1"
#: Begins with a character that no parameter's name has, so that it stands apart from every tensor's.
_FACTS: Final = "#facts"


@dataclass(frozen=True)
class Saved:
    """What a part of a run puts into a checkpoint: `facts` that JSON can hold, and tensors by name."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): kept for name, kept in self.tensors.items() if name.startswith(prefix)}


def named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors` with `prefix` before each name; `Saved.under` takes it off again."""
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def write_checkpoint(saved: Saved) -> bytes:
    """Return the file of `saved`; equal content gives equal bytes, whatever device it lies on.

    Raises:
        UsageError: a tensor has a layout or dtype that safetensors cannot hold.
    """
    facts = json.dumps({"format": FORMAT, **saved.facts}, sort_keys=True, separators=(",", ":")).encode()
    # Copies: tied weights share memory, and safetensors takes no tensor twice.
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in saved.tensors.items()}
    tensors[_FACTS] = torch.frombuffer(bytearray(facts), dtype=torch.uint8)
    try:
        return save(tensors)
    except (SafetensorError, ValueError, KeyError) as error:
        raise UsageError(
            "the state cannot be kept as a checkpoint",
            cause=f"{type(error).__name__}: {error}",
            next_step="Keep only dense, plain tensors in the network's state, or switch checkpoints off",
        ) from error


def read_checkpoint(content: bytes) -> Saved:
    """Return what `write_checkpoint` was given; the tensors lie on the CPU.

    Raises:
        IntegrityError: it is no checkpoint of this format.
    """
    try:
        tensors = load(content)
        facts = json.loads(bytes(tensors.pop(_FACTS).numpy()))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise refused(f"{type(error).__name__}: {error}") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise refused(f"it does not say that it is {FORMAT}")
    return Saved(facts, tensors)


def refused(cause: str) -> IntegrityError:
    """Return the error of a checkpoint that cannot be what it is taken for."""
    return IntegrityError(
        "the checkpoint cannot be restored",
        cause=cause,
        next_step="Restore an earlier one; the log gives every epoch again without any",
    )


def transient_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that a module's state leaves out, by name."""
    kept = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers(remove_duplicate=False) if name not in kept}


def copy_into(targets: Mapping[str, Tensor], kept: Mapping[str, Tensor], *, what: str) -> None:
    """Write every kept tensor into the target of its name, in place and bit for bit.

    Raises:
        IntegrityError: the names, shapes or dtypes differ; nothing is written then.
    """
    if targets.keys() != kept.keys():
        missing, unknown = sorted(targets.keys() - kept.keys()), sorted(kept.keys() - targets.keys())
        raise refused(f"the {what} differ: missing {missing[:5]}, unknown {unknown[:5]}")
    for name, target in targets.items():
        if target.shape != kept[name].shape or target.dtype != kept[name].dtype:
            there, here = (f"{one.dtype} {tuple(one.shape)}" for one in (kept[name], target))
            raise refused(f"{name} of the {what} is {there} there and {here} here")
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(kept[name])


def optimizer_state(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """Return an optimiser's tensors as "PARAMETER/KEY"; `names` names each of its parameters.

    Raises:
        UsageError: it keeps something that is no tensor, or for a parameter without a name.
    """
    found = {}
    for parameter, kept in optimizer.state.items():
        for key, value in kept.items():
            if parameter not in names or not isinstance(value, Tensor):
                raise UsageError(
                    f"the state of {type(optimizer).__name__} cannot be kept as a checkpoint",
                    cause=f"its {key!r} is no tensor of a named parameter",
                    next_step="Switch checkpoints off (ESPER_CHECKPOINT_EVERY_EPOCHS=0)",
                )
            found[f"{names[parameter]}/{key}"] = value
    return found


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], kept: Mapping[str, Tensor]
) -> None:
    """Give an optimiser the state that `optimizer_state` returned; its groups stay as they are.

    Raises:
        IntegrityError: it is of a parameter that the optimiser does not have.
    """
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    index = {names[parameter]: at for at, parameter in enumerate(own)}
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in kept.items():
        parameter, _, key = name.rpartition("/")
        if parameter not in index:
            raise refused(f"the optimiser has no parameter {parameter!r}")
        states.setdefault(index[parameter], {})[key] = value.clone()
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
