"""A policy as an event carries it, and the way back, in which nothing is believed before it is checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import safetensors.torch
import torch
from safetensors import SafetensorError

from esper.core.digest import module_digest, module_state
from esper.core.policy._network import PolicyNetwork
from esper.core.policy._specification import (
    WEIGHTS_BYTES_MAX,
    PolicyRefused,
    Specification,
    parse_specification,
    policy_digest,
)
from esper.leyline import messages as ly

#: Version of the payload's format.
PAYLOAD_VERSION: Final = 1


@dataclass(frozen=True)
class Packed:
    """Specification and weights with the digests that name them."""

    specification: str
    payload: bytes
    policy_digest: str
    weights_digest: str


def pack(network: PolicyNetwork) -> Packed:
    """Return the policy as bytes; equal specifications and weights give equal bytes.

    Raises:
        PolicyRefused: a weight is not finite, or all are more than an event carries: what no one could load.
    """
    specification = network.specification.canonical()
    state = {name: tensor.contiguous() for name, tensor in sorted(module_state(network).items())}
    _check_finite(state)
    payload = safetensors.torch.save(state)
    _check_size(payload)
    return Packed(specification, payload, policy_digest(specification, payload), str(module_digest(network)))


def unpack(update: ly.PolicyUpdate) -> PolicyNetwork:
    """Return the network of an update, on the CPU, for inference.

    Raises:
        PolicyRefused: with `reason` one of huge, version, digest, schema, weights, not_finite, in the order of checks:
            sizes before digests before anything is parsed.
    """
    _check_size(update.payload)
    if update.version != PAYLOAD_VERSION:
        raise PolicyRefused("version", f"its payload has format {update.version}, this version reads {PAYLOAD_VERSION}")
    specification = parse_specification(update.specification)
    if policy_digest(update.specification, update.payload) != update.policy_digest:
        raise PolicyRefused("digest", f"specification and weights are not those of digest {update.policy_digest[:12]}")
    if update.observation_schema != specification.observation_schema:
        raise PolicyRefused("schema", f"the event says {update.observation_schema!r}, its specification another schema")
    network = _filled(specification, update.payload)
    if str(module_digest(network)) != update.weights_digest:
        raise PolicyRefused("digest", f"the weights are not those of digest {update.weights_digest[:12]}")
    return network


def _filled(specification: Specification, payload: bytes) -> PolicyNetwork:
    try:
        state = safetensors.torch.load(payload)
    except (SafetensorError, ValueError, KeyError) as error:
        raise PolicyRefused("weights", f"no safetensors: {error}") from error
    network = PolicyNetwork(specification)
    wanted = module_state(network)
    if set(state) != set(wanted):
        strange = sorted(set(state) ^ set(wanted))
        raise PolicyRefused("weights", f"missing or unknown tensors: {', '.join(strange[:3])}")
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape or state[name].dtype != tensor.dtype:
            raise PolicyRefused("weights", f"{name} is {state[name].dtype} {tuple(state[name].shape)}")
    _check_finite(state)
    network.load_state_dict(state)
    return network.eval().requires_grad_(requires_grad=False)


def _check_size(payload: bytes) -> None:
    if len(payload) > WEIGHTS_BYTES_MAX:
        raise PolicyRefused("huge", f"its weights have {len(payload)} bytes, an event carries {WEIGHTS_BYTES_MAX}")


def _check_finite(state: dict[str, torch.Tensor]) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise PolicyRefused("not_finite", f"{name} holds a value that is not finite")
