"""Observations as arrays: every figure in its place, and nothing that is not an observation gets through."""

from __future__ import annotations

import numpy as np
import pytest

from esper.core.policy import StrangeObservation, layout_of, together
from esper.leyline import messages as ly
from tests.core.policy.support import observation


def test_what_tamiyo_observes_is_what_the_layout_knows() -> None:
    """Goal: one meaning on both sides. Method: encode a real observation, and look for figures in their places."""
    seen = observation(stage=ly.SEED_STAGE_BLENDING, epochs=3)
    found = layout_of(seen.names).encode(np.asarray([seen.values]))
    assert found.codes[0].tolist() == [[ly.SEED_STAGE_BLENDING, 1, 21], [ly.SEED_STAGE_DORMANT, 1, 0]]
    assert found.past_known.tolist() == [[True, True, False, False, False]]
    assert found.past[0, 0, 1] == pytest.approx(np.log1p(1.0)), "the epoch before had a validation loss of 2/2"
    assert found.past[0, 1, 1] == pytest.approx(np.log1p(2.0))
    assert not found.past[0, 2:].any()
    gains = found.slots[0, 0, -3:]
    assert gains[0] == pytest.approx(np.log1p(0.5)), "the seed saves half a nat"
    assert gains[1:].tolist() == [0.0, 0.0], "of what was not measured there is no difference"


def test_runs_of_several_sizes_go_together() -> None:
    """Padding is zero and marked as not held; what was there stays."""
    parts = [observation(slots=("a",)), observation(slots=("a", "b", "c"))]
    encoded = [layout_of(each.names).encode(np.asarray([each.values] * 2)) for each in parts]
    found = together(encoded)
    assert found.held.tolist() == [[True, False, False]] * 2 + [[True] * 3] * 2
    assert np.array_equal(found.slots[:2, :1], encoded[0].slots)
    assert not found.slots[:2, 1:].any()
    assert np.array_equal(found.run, np.concatenate([each.run for each in encoded]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda names: (*names, "moon/phase"), "moon/phase"),
        (lambda names: names[1:], "epoch"),
        (lambda names: (*names, names[0]), "twice"),
        (lambda names: (*names, "slot/c/free"), "slot/c"),
        (lambda names: tuple(name for name in names if name != "slot/b/stage"), "slot/b/stage"),
    ],
)
def test_other_names_are_refused(change: object, said: str) -> None:
    """A policy must not take one figure for another."""
    assert callable(change)
    with pytest.raises(StrangeObservation, match=said):
        layout_of(change(observation().names))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_are_finite_and_as_many_as_names(bad: float) -> None:
    """Goal: no NaN in a network. Method: one value, and one too few."""
    seen = observation()
    layout = layout_of(seen.names)
    with pytest.raises(StrangeObservation, match="not finite"):
        layout.encode(np.asarray([[bad, *seen.values[1:]]]))
    with pytest.raises(StrangeObservation, match="shape"):
        layout.encode(np.asarray([seen.values[1:]]))
