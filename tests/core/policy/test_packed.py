"""A policy in an event: the same bytes for the same policy, and nothing else is taken for one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import safetensors.torch
import torch

from esper.core.digest import state_digest
from esper.core.policy import WEIGHTS_BYTES_MAX, PolicyNetwork, PolicyRefused, pack, policy_digest, unpack
from esper.leyline import messages as ly
from tests.core.policy.support import network, specification, update


def test_a_policy_comes_back_bit_for_bit() -> None:
    """Goal: what was judged is what decides. Method: pack, unpack, pack again, here and in another process."""
    made = network()
    first = pack(made)
    assert pack(unpack(update(made))) == first
    code = (
        "from tests.core.policy.support import network; from esper.core.policy import pack;"
        "print(pack(network()).policy_digest)"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == first.policy_digest
    assert pack(network(seed=1)).policy_digest != first.policy_digest


def redigested(found: ly.PolicyUpdate) -> ly.PolicyUpdate:
    """Let the digest say what is there: the fault itself must be found."""
    found.policy_digest = policy_digest(found.specification, found.payload)
    return found


def with_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> ly.PolicyUpdate:
    """Return an update whose weights were changed by somebody who keeps the digests right."""
    found = update(network())
    state = safetensors.torch.load(found.payload)
    change(state)
    found.payload = safetensors.torch.save(state)
    found.weights_digest = str(state_digest(state))
    return redigested(found)


def with_specification(**changes: object) -> ly.PolicyUpdate:
    """Return an update whose specification says something else."""
    found = update(network())
    said = json.loads(found.specification) | changes
    found.specification = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return redigested(found)


def with_payload(payload: bytes) -> ly.PolicyUpdate:
    """Return an update with other bytes in place of its weights."""
    found = update(network())
    found.payload = payload
    return redigested(found)


def flipped() -> ly.PolicyUpdate:
    """Return an update one bit of whose weights fell over on the way."""
    found = update(network())
    found.payload = found.payload[:-1] + bytes([found.payload[-1] ^ 1])
    return found


def with_fields(**changes: object) -> ly.PolicyUpdate:
    """Return an update one of whose fields says something else."""
    found = update(network())
    for name, value in changes.items():
        setattr(found, name, value)
    return found


FAULTS: dict[str, tuple[Callable[[], ly.PolicyUpdate], str]] = {
    "a bit fell over": (flipped, "digest"),
    "other weights' digest": (lambda: with_fields(weights_digest="0" * 64), "digest"),
    "a weight is NaN": (lambda: with_weights(lambda state: state["value.bias"].fill_(torch.nan)), "not_finite"),
    "a mean is infinite": (lambda: with_weights(lambda state: state["normal_run.mean"].fill_(torch.inf)), "not_finite"),
    "a tensor is missing": (lambda: with_weights(lambda state: state.pop("value.bias")), "weights"),
    "a tensor too many": (lambda: with_weights(lambda state: state.update(spy=torch.zeros(3))), "weights"),
    "another shape": (lambda: with_weights(lambda state: state.update({"value.bias": torch.zeros(2)})), "weights"),
    "another type": (
        lambda: with_weights(lambda state: state.update({"value.bias": torch.zeros(1, dtype=torch.float64)})),
        "weights",
    ),
    "no safetensors": (lambda: with_payload(b"\x80\x04pickled"), "weights"),
    "a header beyond its end": (lambda: with_payload((1 << 40).to_bytes(8, "little") + b"{}"), "weights"),
    "nothing": (lambda: with_payload(b""), "weights"),
    "huge": (lambda: with_payload(bytes(WEIGHTS_BYTES_MAX + 1)), "huge"),
    "a huge specification": (lambda: with_specification(reward_weights={"a" * 300_000: 1.0}), "huge"),
    "an old schema": (lambda: with_specification(observation_schema="tamiyo.observation.v1"), "schema"),
    "an unknown field": (lambda: with_specification(code="import os"), "schema"),
    "another width": (lambda: with_specification(width=32), "weights"),
    "a width out of bounds": (lambda: with_specification(width=10**9), "schema"),
    "an option twice": (
        lambda: with_specification(options=[specification().options[0].model_dump(mode="json")] * 2),
        "schema",
    ),
    "an endless scale": (lambda: with_specification(value_scale=float("inf")), "schema"),
    "another payload format": (lambda: with_fields(version=2), "version"),
    "an event of another schema": (lambda: with_fields(observation_schema="tamiyo.observation.v1"), "schema"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_policy_is_refused_with_its_reason(fault: str) -> None:
    """Goal: nothing poisoned decides. Method: each fault, its digests kept right where its maker could."""
    make, reason = FAULTS[fault]
    with pytest.raises(PolicyRefused) as refused:
        unpack(make())
    assert refused.value.reason == reason


def test_what_is_not_finite_is_not_packed() -> None:
    """Whoever trained it hears of it, not whoever would load it."""
    made: PolicyNetwork = network()
    with torch.no_grad():
        made.value.bias.fill_(torch.nan)
    with pytest.raises(PolicyRefused, match=r"value\.bias"):
        pack(made)
