"""HIGH_RISK blueprints: kernels that go wrong on purpose, each in its own way, to show that containment holds.

All are only for quarantine, whoever approves them. Each is latent: exactly zero at birth like any seed, and armed by
the first training that reaches it. A trained linear map stands before every hazard, so that there is something to
spoil; what each word does is written in `esper.core.kernel._hazards`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from esper.karn._blueprint import Blueprint, Body, Tree, nearest_integer

_MEBIBYTE: Final = 1 << 20
#: What BP047 keeps at every call, times its `growth_rate`.
_LEAK_BYTES: Final = 32 * _MEBIBYTE
#: So many scaled layers in a row that even the mildest scale explodes: 5^12 is 2.4e8.
_AMPLIFIERS: Final = 12
#: So many that even the mildest decay leaves nothing: 0.1^12 is 1e-12.
_ATTENUATORS: Final = 12
_LAYOUTS: Final = ("vector", "sequence", "map1d", "map2d")

_Parameters = Mapping[str, float]


def _before(features: int, *hazards: Tree) -> Body:
    linear: Tree = {"op": "linear", "in": features, "out": features, "bias": True}
    return Body({"op": "sequential", "children": [linear, *hazards]}, features)


def _exploding_gradient(features: int, parameters: _Parameters) -> Body:
    return _before(features, *[{"op": "hazard_amplifier", "factor": parameters["scale"]}] * _AMPLIFIERS)


def _vanishing_gradient(features: int, parameters: _Parameters) -> Body:
    return _before(features, *[{"op": "hazard_attenuator", "factor": parameters["decay"]}] * _ATTENUATORS)


def _nan_injection(features: int, parameters: _Parameters) -> Body:
    return _before(features, {"op": "hazard_nan", "frequency": parameters["frequency"]})


def _infinite_loop(features: int, parameters: _Parameters) -> Body:
    return _before(features, {"op": "hazard_loop", "iterations": nearest_integer(parameters["iterations"])})


def _memory_leak(features: int, parameters: _Parameters) -> Body:
    chunk_bytes = nearest_integer(parameters["growth_rate"] * _LEAK_BYTES)
    return _before(features, {"op": "hazard_leak", "chunk_bytes": chunk_bytes})


def _deadlock_pattern(features: int, parameters: _Parameters) -> Body:
    return _before(features, {"op": "hazard_deadlock", "threads": nearest_integer(parameters["threads"])})


def _race_condition(features: int, parameters: _Parameters) -> Body:
    return _before(features, {"op": "hazard_race", "window_ns": parameters["window_ns"]})


def _adversarial_noise(features: int, parameters: _Parameters) -> Body:
    return _before(features, {"op": "hazard_noise", "epsilon": parameters["epsilon"]})


def _high_risk(
    blueprint_id: str,
    name: str,
    body: Callable[[int, _Parameters], Body],
    *,
    risk: float,
    description: str,
    parameters: Mapping[str, tuple[float, float]],
) -> Blueprint:
    return Blueprint(
        blueprint_id,
        name,
        "HIGH_RISK",
        risk=risk,
        stage=6,
        description=description,
        bodies=dict.fromkeys(_LAYOUTS, body),
        parameters=parameters,
        quarantine_only=True,
        approval_required=True,
    )


HIGH_RISK_BLUEPRINTS: Final[tuple[Blueprint, ...]] = (
    _high_risk(
        "BP043",
        "exploding_gradient",
        _exploding_gradient,
        risk=0.9,
        description="Twelve layers in a row that pass everything on and multiply the gradient on its way back by "
        "`scale` each; armed by training.",
        parameters={"scale": (5.0, 20.0)},
    ),
    _high_risk(
        "BP044",
        "vanishing_gradient",
        _vanishing_gradient,
        risk=0.9,
        description="Twelve layers in a row that multiply by `decay` each, so that hardly any gradient comes back; "
        "armed by training.",
        parameters={"decay": (0.0, 0.1)},
    ),
    _high_risk(
        "BP045",
        "nan_injection",
        _nan_injection,
        risk=1.0,
        description="Makes each number NaN with probability `frequency`; armed by training.",
        parameters={"frequency": (0.01, 0.1)},
    ),
    _high_risk(
        "BP046",
        "infinite_loop",
        _infinite_loop,
        risk=1.0,
        description="Counts to `iterations` (rounded to the nearest whole number) and begins again for ever; armed "
        "by training.",
        parameters={"iterations": (1000.0, 10000.0)},
    ),
    _high_risk(
        "BP047",
        "memory_leak",
        _memory_leak,
        risk=1.0,
        description="Keeps `growth_rate` times 32 MiB more at every call; armed by training.",
        parameters={"growth_rate": (1.0, 5.0)},
    ),
    _high_risk(
        "BP048",
        "deadlock_pattern",
        _deadlock_pattern,
        risk=1.0,
        description="`threads` threads (rounded to the nearest whole number) each hold a lock and wait for their "
        "neighbour's, in a ring; armed by training.",
        parameters={"threads": (2.0, 16.0)},
    ),
    _high_risk(
        "BP049",
        "race_condition",
        _race_condition,
        risk=0.9,
        description="Scales by a number that threads add to without a lock, each pausing for `window_ns` nanoseconds "
        "between reading and writing it, so that updates are lost; armed by training.",
        parameters={"window_ns": (10.0, 1000.0)},
    ),
    _high_risk(
        "BP050",
        "adversarial_noise",
        _adversarial_noise,
        risk=0.9,
        description="Adds `epsilon` times the sign of the gradient that came back last, which raises the loss "
        "(Goodfellow et al. 2015), wherever the fifth decimal of the number is even; armed by training.",
        parameters={"epsilon": (0.1, 1.0)},
    ),
)
