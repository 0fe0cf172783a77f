"""Hypothesis strategies: packets as odd as the contract lets them be."""

from __future__ import annotations

from hypothesis import strategies as st

from esper.core.ids import derive_id
from esper.leyline import messages as ly

RUN = "run-odd"
_SLOTS = st.sampled_from(["", "a", "b", "a/b", "none", "häßlich"])
_SEED_IDS = st.sampled_from(["", "a.1", "b.1", "a.2"])
_LOSSES = st.one_of(st.floats(0.0, 10.0), st.floats(allow_nan=True, allow_infinity=True))
_NAMES = ["shadow_loss_first", "shadow_loss", "host_loss", "loss_seed_on", "loss_seed_off", "other"]
_COUNTS = st.one_of(st.integers(0, 50), st.just(2**32 - 1))
#: Known stages, and numbers that a newer contract might add.
_STAGES = st.integers(0, 20)


@st.composite
def seed_states(draw: st.DrawFn) -> ly.SeedState:
    """Return a seed state; nothing about it need make sense."""
    state = ly.SeedState(
        seed_id=draw(_SEED_IDS),
        stage=draw(_STAGES),  # type: ignore[arg-type]  # open enum: any number travels
        slot=draw(_SLOTS),
        alpha=draw(st.one_of(st.floats(0.0, 1.0), _LOSSES)),
        stage_epochs=draw(_COUNTS),
        age_epochs=draw(_COUNTS),
        metrics=draw(st.dictionaries(st.sampled_from(_NAMES), _LOSSES)),
    )
    norm = draw(st.one_of(st.none(), _LOSSES))
    if norm is not None:
        state.gradient_norm = norm
    return state


@st.composite
def slot_states(draw: st.DrawFn) -> ly.SlotState:
    """Return a slot state, perhaps nameless, perhaps with a shape that no memory holds."""
    sizes = st.lists(st.sampled_from([0, 1, 8, 2**32 - 1]), max_size=40)
    return ly.SlotState(
        slot=draw(_SLOTS),
        placement=draw(st.sampled_from(["branch", "residual", ""])),
        layout=draw(st.sampled_from(["vector", "map2d", "", "new"])),
        in_shape=draw(sizes),
        out_shape=draw(sizes),
        seed_id=draw(_SEED_IDS),
        layer_depth=draw(_COUNTS),
    )


@st.composite
def packets(draw: st.DrawFn, *, epoch: int, policy: str = "heuristic") -> ly.SystemStatePacket:
    """Return the packet of `epoch` of run RUN."""
    return ly.SystemStatePacket(
        meta=ly.EventMeta(event_id=derive_id(RUN, "state", epoch), subject=RUN),
        training_run_id=RUN,
        attempt=1,
        current_epoch=epoch,
        epochs_planned=draw(st.sampled_from([0, 1, 5, 10, 40, 2**32 - 1])),
        training_loss=draw(_LOSSES),
        validation_loss=draw(_LOSSES),
        validation_accuracy=draw(_LOSSES),
        seed_states=draw(st.lists(seed_states(), max_size=4)),
        slots=draw(st.lists(slot_states(), max_size=4)),
        policy=policy,
        parameters=draw(st.sampled_from([0, 100, 2**64 - 1])),
        multiply_adds=draw(st.sampled_from([0, 10**9, 2**64 - 1])),
        seed=draw(st.sampled_from([0, 7, 2**64 - 1])),
    )


@st.composite
def packet_sequences(draw: st.DrawFn, *, policy: str = "heuristic") -> list[ly.SystemStatePacket]:
    """Return packets of rising epochs, perhaps with gaps."""
    epochs = sorted(draw(st.sets(st.integers(1, 60), min_size=1, max_size=8)))
    return [draw(packets(epoch=epoch, policy=policy)) for epoch in epochs]
