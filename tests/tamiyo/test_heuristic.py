"""The rule policy over whole scripted runs: what it grows, when, and what it gives up."""

from __future__ import annotations

import pytest

from esper.leyline import messages as ly
from esper.tamiyo import RunState
from tests.tamiyo.scripted_run import ScriptedRun, play, slot_state


def orders(state: RunState) -> list[tuple[int, str]]:
    """Return (epoch, operation) of every decision that changes something."""
    named = [(epoch, ly.SeedOperation.Name(made.operation)) for epoch, made in sorted(state.decisions.items())]
    return [(epoch, name.removeprefix("SEED_OP_").lower()) for epoch, name in named if name != "SEED_OP_UNKNOWN"]


def test_a_run_of_forty_epochs_grows_up() -> None:
    """The default run: germinated within a tenth, TRAINING at most a tenth, FOSSILIZED well before the end."""
    run = ScriptedRun("run-forty", epochs=40)
    state = play(run)
    assert orders(state) == [
        (4, "germinate"),
        (6, "start_grafting"),
        (8, "stabilize"),
        (9, "evaluate"),
        (10, "fossilize"),
    ]
    assert run.stages() == ["FOSSILIZED"]
    assert run.stages_seen["hidden.1"].count(ly.SEED_STAGE_TRAINING) <= 4


@pytest.mark.parametrize("epochs", [6, 7, 8, 10, 12, 15, 20, 30, 60, 100, 200])
def test_runs_of_other_lengths_grow_up_too(epochs: int) -> None:
    """The rules scale with the epochs: one seed fossilised, in time, with a short TRAINING."""
    run = ScriptedRun(f"run-{epochs}", epochs=epochs)
    play(run)
    assert run.stages() == ["FOSSILIZED"]
    trained = run.stages_seen["hidden.1"].count(ly.SEED_STAGE_TRAINING)
    assert trained <= max(2, epochs // 10), "two epochs are the least that the stability gate takes"


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_a_run_too_short_to_grow_a_seed_up_starts_none(epochs: int) -> None:
    """A seed that could not be judged before the end would only cost compute."""
    run = ScriptedRun(f"run-{epochs}", epochs=epochs)
    state = play(run)
    assert orders(state) == []


@pytest.mark.parametrize("epochs", [10, 40, 200])
def test_a_seed_that_harms_is_culled_before_it_touches_the_host(epochs: int) -> None:
    """The shadow evidence is negative all along: the seed must be culled out of TRAINING, after its patience."""
    run = ScriptedRun(f"run-{epochs}", epochs=epochs, gain=-0.2)
    state = play(run)
    assert [operation for _, operation in orders(state)] == ["germinate", "cull"]
    assert ly.SEED_STAGE_BLENDING not in run.stages_seen["hidden.1"]


def test_a_seed_that_gains_nothing_is_blended_and_then_culled() -> None:
    """No harm lets it blend; no gain in the counterfactual must end it in SHADOWING."""
    run = ScriptedRun("run-useless", epochs=40, gain=0.0)
    state = play(run)
    assert [operation for _, operation in orders(state)] == ["germinate", "start_grafting", "stabilize", "cull"]
    assert run.stages() == ["EMBARGOED"]


@pytest.mark.parametrize("operation", [ly.SEED_OP_START_GRAFTING, ly.SEED_OP_EVALUATE, ly.SEED_OP_FOSSILIZE])
def test_a_move_that_a_gate_refuses_is_asked_for_again_each_epoch(operation: ly.SeedOperation) -> None:
    """One refusal is not the end: the order is repeated while the evidence speaks for it, and nothing else is done."""
    run = ScriptedRun("run-refused", epochs=40, refuse=(operation,))
    state = play(run)
    last = [made.operation for _, made in sorted(state.decisions.items())][-20:]
    assert set(last) == {operation}


def test_a_germination_that_fails_goes_on_to_the_next_blueprint() -> None:
    """Two orders without a seed and the next option gets its turn, in order of preference."""
    run = ScriptedRun("run-barren", epochs=40, refuse=(ly.SEED_OP_GERMINATE,))
    state = play(run)
    tried = [made.blueprint_id for _, made in sorted(state.decisions.items()) if made.operation]
    assert tried[:6] == ["BP021", "BP021", "BP009", "BP009", "BP009", "BP009"]
    assert run.seeds == []


def test_a_bypass_of_the_narrowest_place_is_preferred() -> None:
    """Branch before residual, then the strongest narrowing, then depth and name."""
    slots = [
        slot_state("a", placement="residual", inputs=64, outputs=64),
        slot_state("b", inputs=64, outputs=64),
        slot_state("c", inputs=40, outputs=8),
    ]
    run = ScriptedRun("run-slots", epochs=20, slots=slots)
    state = play(run)
    assert next(made.slot for _, made in sorted(state.decisions.items()) if made.operation) == "c"


def test_a_plateau_brings_a_second_seed_and_no_third() -> None:
    """With every slot free and the loss flat, seeds follow one another up to the number that may be kept."""
    slots = [slot_state(name) for name in ("a", "b", "c")]
    run = ScriptedRun("run-flat", epochs=60, slots=slots, parameters={"plateau_improvement_per_epoch": 1.0})
    state = play(run)
    assert [operation for _, operation in orders(state)].count("germinate") == 2
    assert run.stages() == ["FOSSILIZED", "FOSSILIZED"]
    assert orders(state)[0] == (3, "germinate"), "on a plateau the first seed comes at a twentieth"


def test_a_layout_without_blueprint_is_left_alone() -> None:
    """A slot whose layout no option fits must never be germinated into, and the reason is told."""
    slot = slot_state()
    slot.layout = "map2d"
    run = ScriptedRun("run-map", epochs=20, slots=[slot])
    assert orders(play(run)) == []


def test_missed_commands_delay_growth_and_do_not_derail_it() -> None:
    """The worker gets no command in 8 of 40 epochs, some of them when a move was due; the seed still grows up."""
    run = ScriptedRun("run-deaf", epochs=40)
    play(run, deaf_epochs=(4, 5, 8, 9, 10, 14, 15, 16))
    assert run.stages() == ["FOSSILIZED"]


def test_a_run_of_unknown_length_grows_too() -> None:
    """A loop of the user's own may not say how many epochs it plans; the rules then assume a scale."""
    run = ScriptedRun("run-endless", epochs=40, epochs_told=0)
    play(run)
    assert run.stages() == ["FOSSILIZED"]
