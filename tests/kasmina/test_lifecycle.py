"""The lifecycle table and its fold."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.core.errors import IntegrityError
from esper.kasmina import GUARDS, MEASURED_GATES, PATHS, TRANSITIONS, KasminaLifecycle, is_allowed
from esper.kasmina.lifecycle._lifecycle import gate_label, illegal_step
from esper.leyline import messages as ly

#: The contract's table, written out a second time on purpose: (from, to) by the stages' short names.
CONTRACT = """
UNKNOWN DORMANT | DORMANT GERMINATED | DORMANT TERMINATED | GERMINATED TRAINING | GERMINATED CULLED
TRAINING BLENDING | TRAINING CULLED | BLENDING SHADOWING | BLENDING CULLED | SHADOWING PROBATIONARY
SHADOWING CULLED | PROBATIONARY FOSSILIZED | PROBATIONARY CULLED | FOSSILIZED TERMINATED | CULLED EMBARGOED
EMBARGOED RESETTING | RESETTING DORMANT
"""
STAGES = list(ly.SeedLifecycleStage.values())


def stage(name: str) -> ly.SeedLifecycleStage:
    """Return the stage of a short name."""
    return ly.SeedLifecycleStage.Value(f"SEED_STAGE_{name}")


def move(before: ly.SeedLifecycleStage, after: ly.SeedLifecycleStage, seed_id: str = "s.1") -> ly.SeedStageChanged:
    """Return a move of a seed in slot "s"."""
    return ly.SeedStageChanged(seed_id=seed_id, slot="s", blueprint_id="B", from_stage=before, to_stage=after, epoch=3)


def test_transitions_are_those_of_the_contract() -> None:
    """Goal: the table is the contract's. Method: compare with the pairs written out here, both ways, all 144."""
    pairs = [pair.split() for line in CONTRACT.strip().splitlines() for pair in line.split("|")]
    contract = {(stage(before), stage(after)) for before, after in pairs}
    assert {(b, a) for b in STAGES for a in STAGES if is_allowed(b, a)} == contract
    assert set(TRANSITIONS) == set(STAGES), "every stage has its row"


def test_every_path_of_an_operation_is_legal_from_somewhere() -> None:
    """Goal: no supported operation is dead. Method: each path has a start from which all its steps are allowed."""
    for operation, path in PATHS.items():
        assert any(illegal_step(start, path) is None for start in STAGES), ly.SeedOperation.Name(operation)


def test_every_gate_of_the_contract_is_measured_and_guards_its_stage() -> None:
    """Goal: no gate is a name only. Method: the guards by stage, written out here a second time."""
    guards = {ly.SeedLifecycleStage.Name(stage)[11:]: [gate_label(one) for one in GUARDS[stage]] for stage in GUARDS}
    assert guards == {
        "GERMINATED": ["G0"],
        "TRAINING": ["G1"],
        "BLENDING": ["G1", "G2"],
        "SHADOWING": ["G3"],
        "PROBATIONARY": ["G4"],
        "FOSSILIZED": ["G4"],
        "TERMINATED": ["G4"],
        "DORMANT": ["G5"],
    }
    assert sorted(map(gate_label, MEASURED_GATES)) == ["G0", "G1", "G2", "G3", "G4", "G5"]


@given(st.lists(st.sampled_from(STAGES), max_size=12))
def test_fold_moves_only_along_the_table(targets: list[ly.SeedLifecycleStage]) -> None:
    """Goal: the fold enforces the table. Method: random moves; legal ones change the stage, others raise and
    leave the state as it was.
    """
    lifecycle, current = KasminaLifecycle(), ly.SEED_STAGE_DORMANT
    for target in targets:
        if is_allowed(current, target):
            lifecycle = lifecycle.fold(move(current, target))
            current = target
        else:
            with pytest.raises(IntegrityError):
                lifecycle.fold(move(current, target))
        if "s.1" in lifecycle.seeds:
            assert lifecycle.stage_of("s.1") == current


def test_fold_refuses_a_move_from_another_stage_and_a_foreign_event() -> None:
    """Goal: out-of-order events are found. Method: a legal pair that does not start where the seed is; a packet."""
    lifecycle = KasminaLifecycle().fold(move(ly.SEED_STAGE_DORMANT, ly.SEED_STAGE_GERMINATED))
    with pytest.raises(IntegrityError, match="the seed is in SEED_STAGE_GERMINATED"):
        lifecycle.fold(move(ly.SEED_STAGE_TRAINING, ly.SEED_STAGE_BLENDING))
    with pytest.raises(IntegrityError, match="SystemStatePacket was folded"):
        lifecycle.fold(ly.SystemStatePacket())


def test_slots_are_held_under_embargo_and_ids_count_up() -> None:
    """Goal: a culled seed's slot is not free. Method: fold a life to EMBARGOED and on to DORMANT."""
    lifecycle = KasminaLifecycle()
    path = ["DORMANT", "GERMINATED", "TRAINING", "CULLED", "EMBARGOED"]
    for before, after in itertools.pairwise(path):
        lifecycle = lifecycle.fold(move(stage(before), stage(after)))
    holder = lifecycle.holder("s")
    assert holder is not None
    assert holder.seed_id == "s.1"
    assert lifecycle.next_seed_id("s") == "s.2"
    for before, after in (("EMBARGOED", "RESETTING"), ("RESETTING", "DORMANT")):
        lifecycle = lifecycle.fold(move(stage(before), stage(after)))
    assert lifecycle.holder("s") is None
    assert lifecycle.events == 6, "every event is counted"
    assert lifecycle.fold(ly.GateEvaluated()).fold(ly.SeedMoveRejected()).events == 8
