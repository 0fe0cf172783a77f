"""From named floats to the tensors that a network reads: same figures, same places, whatever the slots are called.

N: observations; R, P, F: figures of a run, of a past epoch, of a slot; T: past epochs; S: slots, padded on the right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from esper.core.policy._schema import PAST_EPOCHS, PAST_FIGURES

Figures = npt.NDArray[np.float64]

#: Figures of the run block that grow without bound, and those that are shares, flags or small already.
_RUN_LOG: Final = (
    "epochs_planned",
    "training_loss",
    "validation_loss",
    "validation_loss_delta",
    "generalisation_gap",
    "parameters_ratio",
    "seeds_seen",
    "seeds_fossilized",
)
_RUN_PLAIN: Final = (
    "training_loss_known",
    "validation_loss_known",
    "validation_accuracy",
    "validation_accuracy_known",
    "validation_loss_delta_known",
    "improvement_per_epoch",
    "improvement_per_epoch_known",
    "generalisation_gap_known",
)
_SLOT_LOG: Final = (
    "in_features",
    "out_features",
    "layer_depth",
    "germinations_ordered",
    "stage_epochs",
    "age_epochs",
    "gradient_norm",
    "shadow_loss_first",
    "shadow_loss",
    "host_loss",
    "loss_seed_on",
    "loss_seed_off",
)
_SLOT_PLAIN: Final = (
    "free",
    "branch",
    "alpha",
    "alpha_known",
    "gradient_norm_known",
    "shadow_loss_first_known",
    "shadow_loss_known",
    "host_loss_known",
    "loss_seed_on_known",
    "loss_seed_off_known",
)
#: Differences of two figures, where both are known: what a seed saves, and what training it brought.
_SLOT_GAINS: Final = (
    ("loss_seed_off", "loss_seed_on"),
    ("host_loss", "shadow_loss"),
    ("shadow_loss_first", "shadow_loss"),
)
_SLOT_CODES: Final = ("stage", "layout", "blueprint")

#: How many figures each block has.
RUN_WIDTH: Final = len(_RUN_LOG) + len(_RUN_PLAIN) + 3
PAST_WIDTH: Final = len(PAST_FIGURES)
SLOT_WIDTH: Final = len(_SLOT_LOG) + len(_SLOT_PLAIN) + len(_SLOT_GAINS)


class StrangeObservation(ValueError):
    """The names are not those of this version's observations."""


@dataclass(frozen=True)
class Encoded:
    """Observations as arrays, all of them finite; what a slot lacks is zero and not `held`."""

    run: Figures  # [N, R]
    past: Figures  # [N, T, P]
    past_known: npt.NDArray[np.bool_]  # [N, T]
    slots: Figures  # [N, S, F]
    codes: npt.NDArray[np.int64]  # [N, S, 3]: stage, layout, number of the blueprint
    held: npt.NDArray[np.bool_]  # [N, S]


@dataclass(frozen=True)
class Layout:
    """Where each figure stands among the names of one kind of observation."""

    slots: tuple[str, ...]
    places: Mapping[str, int]

    def encode(self, values_NV: Figures) -> Encoded:
        """Return observations of this layout as arrays; `values_NV` holds one in each row.

        Raises:
            StrangeObservation: a row has another number of values, or one is not finite.
        """
        if values_NV.ndim != 2 or values_NV.shape[1] != len(self.places):
            raise StrangeObservation(f"{len(self.places)} names, but values of shape {values_NV.shape}")
        if not np.isfinite(values_NV).all():
            raise StrangeObservation("a value is not finite")
        count, width = len(values_NV), len(self.slots)
        past = [[self._of(values_NV, f"past/{back}/{name}") for name in PAST_FIGURES] for back in _BACK]
        known = [self._of(values_NV, f"past/{back}/known") for back in _BACK]
        slots = [self._slot(values_NV, f"slot/{slot}/") for slot in self.slots]
        codes = [[self._of(values_NV, f"slot/{slot}/{name}") for name in _SLOT_CODES] for slot in self.slots]
        return Encoded(
            run=self._run(values_NV),
            past=_loss_scaled(np.asarray(past).transpose(2, 0, 1)),
            past_known=np.asarray(known).T > 0.5,
            slots=np.asarray(slots).transpose(2, 0, 1) if width else np.zeros((count, 0, SLOT_WIDTH)),
            codes=(np.asarray(codes).transpose(2, 0, 1) if width else np.zeros((count, 0, 3))).astype(np.int64),
            held=np.ones((count, width), dtype=np.bool_),
        )

    def _of(self, values_NV: Figures, name: str) -> Figures:
        figures: Figures = values_NV[:, self.places[name]]
        return figures

    def _run(self, values_NV: Figures) -> Figures:
        epoch, planned = self._of(values_NV, "epoch"), np.maximum(self._of(values_NV, "epochs_planned"), 1.0)
        done = epoch / planned
        count = np.full(len(values_NV), np.log1p(float(len(self.slots))))
        logs = [signed_log(self._of(values_NV, name)) for name in _RUN_LOG]
        plain = [self._of(values_NV, name) for name in _RUN_PLAIN]
        return np.stack([done, self._of(values_NV, "packets_seen") / planned, count, *logs, *plain], axis=1)

    def _slot(self, values_NV: Figures, prefix: str) -> list[Figures]:
        def of(name: str) -> Figures:
            return self._of(values_NV, prefix + name)

        gains = [(of(a) - of(b)) * of(f"{a}_known") * of(f"{b}_known") for a, b in _SLOT_GAINS]
        return [
            *(signed_log(of(name)) for name in _SLOT_LOG),
            *(of(name) for name in _SLOT_PLAIN),
            *(signed_log(gain) for gain in gains),
        ]


_BACK: Final = range(1, PAST_EPOCHS + 1)


@lru_cache(maxsize=256)
def layout_of(names: tuple[str, ...]) -> Layout:
    """Return the layout of observations with these names.

    Raises:
        StrangeObservation: a name is missing, stands twice, or is not known.
    """
    slots: dict[str, None] = {}
    for name in names:
        if name.startswith("slot/"):
            slots.setdefault(name.removeprefix("slot/").rpartition("/")[0])
    places = {name: place for place, name in enumerate(names)}
    if len(places) != len(names):
        raise StrangeObservation("a name stands twice")
    asked = {*_run_names(), *_past_names(), *(f"slot/{slot}/{name}" for slot in slots for name in _slot_names())}
    if asked != set(names):
        strange = sorted(asked ^ set(names))
        raise StrangeObservation(f"missing or unknown: {', '.join(strange[:5])}")
    return Layout(tuple(slots), places)


def _run_names() -> tuple[str, ...]:
    return ("epoch", "packets_seen", *_RUN_LOG, *_RUN_PLAIN)


def _past_names() -> list[str]:
    return [f"past/{back}/{name}" for back in _BACK for name in (*PAST_FIGURES, "known")]


def _slot_names() -> tuple[str, ...]:
    return (*_SLOT_LOG, *_SLOT_PLAIN, *_SLOT_CODES)


def signed_log(values: Figures) -> Figures:
    """Return sign(x) log(1 + |x|): near to x for small ones, and tame for large ones."""
    found: Figures = np.sign(values) * np.log1p(np.abs(values))
    return found


def _loss_scaled(past_NTP: Figures) -> Figures:
    """Return past figures as the run's own are scaled: losses by their logarithm, shares as they are."""
    scaled = past_NTP.copy()
    for place, name in enumerate(PAST_FIGURES):
        if name.endswith("_loss"):
            scaled[..., place] = signed_log(past_NTP[..., place])
    return scaled


def together(parts: Sequence[Encoded]) -> Encoded:
    """Return several arrays of observations one after the other, padded to the most slots of any."""
    width = max(part.held.shape[1] for part in parts)
    padded = [_padded(part, width) for part in parts]
    return Encoded(
        run=np.concatenate([part.run for part in padded]),
        past=np.concatenate([part.past for part in padded]),
        past_known=np.concatenate([part.past_known for part in padded]),
        slots=np.concatenate([part.slots for part in padded]),
        codes=np.concatenate([part.codes for part in padded]),
        held=np.concatenate([part.held for part in padded]),
    )


def _padded(part: Encoded, width: int) -> Encoded:
    more = width - part.held.shape[1]
    if not more:
        return part
    return Encoded(
        run=part.run,
        past=part.past,
        past_known=part.past_known,
        slots=np.pad(part.slots, ((0, 0), (0, more), (0, 0))),
        codes=np.pad(part.codes, ((0, 0), (0, more), (0, 0))),
        held=np.pad(part.held, ((0, 0), (0, more))),
    )
