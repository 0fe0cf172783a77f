"""Words that do harm on purpose: what HIGH_RISK blueprints are made of. Planned like any word, built for quarantine.

Each is harmless at birth: it yields x * (1 + arm) with one trained number `arm` that begins at zero, and does what
its name says only after training has moved that number. So a forward of a fresh kernel is safe everywhere, and only
steps of training, which `esper.core.quarantine` contains, ever meet the harm. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from esper.core.kernel._word import Attributes, Shape, TensorPlan, Word, counted, products, same, within

#: The trained number of every such word.
ARM: Final = "arm"


def _arm(_attributes: Attributes, _shape: Shape) -> dict[str, TensorPlan]:
    return {ARM: TensorPlan((1,))}


def _hazard(name: str, valid: Callable[[object], bool]) -> Word:
    return Word(same, {name: valid}, tensors_of=_arm, products_of=products(1))


HAZARD_WORDS: Final[Mapping[str, Word]] = {
    # Forward as ever; every gradient on its way back is multiplied by `factor`.
    "hazard_amplifier": _hazard("factor", within(1.0, 100.0)),
    # Multiplies by `factor`, forward and therefore backward.
    "hazard_attenuator": _hazard("factor", within(0.0, 1.0)),
    # Each number becomes NaN with probability `frequency`.
    "hazard_nan": _hazard("frequency", within(0.0, 1.0)),
    # Counts to `iterations` and begins again, for ever.
    "hazard_loop": _hazard("iterations", counted(1, 1_000_000)),
    # Keeps so many bytes more at every call, and writes into all of them.
    "hazard_leak": _hazard("chunk_bytes", counted(1, 1 << 30)),
    # That many threads each take a lock of their own and then wait for their neighbour's.
    "hazard_deadlock": _hazard("threads", counted(2, 64)),
    # Threads add to one number without a lock, each pausing for `window_ns` between reading and writing it.
    "hazard_race": _hazard("window_ns", within(0.0, 1e6)),
    # Adds `epsilon` times the sign of the gradient that came back last, wherever a late decimal of x is even.
    "hazard_noise": _hazard("epsilon", within(0.0, 1.0)),
}
