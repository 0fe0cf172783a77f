"""Conditions on fields: what they find, and what they refuse by name."""

from __future__ import annotations

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st

from esper.core.errors import UsageError
from esper.leyline import EVENT_TYPES, full_name
from esper.leyline import messages as ly
from esper.oona.reading._where import Where

COMMAND = full_name("AdaptationCommand")
STATE = full_name("SystemStatePacket")
BLUEPRINT = full_name("BlueprintRegistered")
REPORT = full_name("FieldReport")


def command() -> ly.AdaptationCommand:
    """Return a command with a payload, a map, a time and defaults."""
    made = ly.AdaptationCommand(
        training_run_id="run-1",
        command_type=ly.COMMAND_SEED,
        seed_operation=ly.CommandSeedOperation(
            operation=ly.SEED_OP_GERMINATE, blueprint_id="BP001", parameters={"depth": 2.0, "a.b": 0.5}
        ),
        annotations={"why": "x=y"},
    )
    made.issued_at.FromJsonString("2026-09-21T10:00:00Z")
    return made


@pytest.mark.parametrize(
    ("condition", "met"),
    [
        ("training_run_id=run-1", True),
        ("training_run_id=run-2", False),
        ("command_type=COMMAND_SEED", True),
        ("command_type=COMMAND_PAUSE", False),
        ("seed_operation.operation=SEED_OP_GERMINATE", True),
        ("seed_operation.parameters.depth=2", True),
        ("seed_operation.parameters.a.b=0.5", True),
        ("seed_operation.parameters.width=2", False),
        ("annotations.why=x=y", True),
        ("issued_at=2026-09-21T12:00:00+02:00", True),
        # Fields without presence compare by their default; what is absent equals nothing.
        ("epoch=0", True),
        ("target_seed_id=", True),
        ("optimizer_adjustment.optimizer_id=", False),
        ("meta.source=", True),
    ],
)
def test_a_condition_is_met_as_it_reads(condition: str, met: bool) -> None:
    """Every kind of field of one command: compile a condition, ask the command."""
    message = command()
    message.meta.event_id = "e"
    assert Where.compile([condition], [COMMAND])(message) is met


def test_lists_match_by_any_entry_or_by_index() -> None:
    """A list is met by any of its entries, an index picks one: ask for stages of two seeds."""
    packet = ly.SystemStatePacket(
        seed_states=[ly.SeedState(stage=ly.SEED_STAGE_TRAINING), ly.SeedState(stage=ly.SEED_STAGE_CULLED)],
        slots=[ly.SlotState(in_shape=[3, 5])],
    )
    for condition, met in {
        "seed_states.stage=SEED_STAGE_CULLED": True,
        "seed_states.0.stage=SEED_STAGE_CULLED": False,
        "seed_states.1.stage=SEED_STAGE_CULLED": True,
        "seed_states.7.stage=SEED_STAGE_CULLED": False,
        "seed_states.gradient_norm=0": False,
        "slots.in_shape=5": True,
        "slots.0.in_shape.0=5": False,
    }.items():
        assert Where.compile([condition], [STATE])(packet) is met, condition


def test_a_map_of_messages_is_looked_into_and_left_alone() -> None:
    """Asking must not change what is asked: look for a key that a map of messages lacks."""
    message = ly.BlueprintRegistered()
    message.descriptor.allowed_parameters["depth"].max_value = 4.0
    assert Where.compile(["descriptor.allowed_parameters.depth.max_value=4"], [BLUEPRINT])(message)
    assert not Where.compile(["descriptor.allowed_parameters.width.max_value=4"], [BLUEPRINT])(message)
    assert list(message.descriptor.allowed_parameters) == ["depth"]


def test_all_conditions_must_hold() -> None:
    """Conditions are joined by and: one that fails is enough."""
    assert Where.compile(["epoch=0", "training_run_id=run-1"], [COMMAND])(command())
    assert not Where.compile(["epoch=1", "training_run_id=run-1"], [COMMAND])(command())
    assert Where.compile([], [COMMAND])(command())


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("no_such_field=1", r"there is no field 'no_such_field': AdaptationCommand has meta, version, command_id"),
        ("seed_operation.colour=red", r"there is no field 'seed_operation.colour': CommandSeedOperation has operation"),
        ("seed_operation=1", "seed_operation is a CommandSeedOperation; name one of its fields"),
        ("annotations=1", "annotations is a map; name one of its keys"),
        ("epoch.x=1", "epoch has no fields of its own"),
        ("rollback_payload=1", "rollback_payload is a Struct"),
        ("epoch=three", r"'three' is no value of field 'epoch'"),
        ("command_type=GROW", r"'GROW' is no value of field 'command_type': CommandType has COMMAND_UNKNOWN"),
        ("issued_at=tomorrow", "'tomorrow' is no value of field 'issued_at'"),
        ("epoch", "it is not of the form FIELD=VALUE"),
        ("=1", "it is not of the form FIELD=VALUE"),
    ],
)
def test_what_the_contract_does_not_have_is_refused_by_name(condition: str, said: str) -> None:
    """A slip of the pen must not look like an empty answer: compile what cannot be met, read the error."""
    with pytest.raises(UsageError, match=said):
        Where.compile([condition], [COMMAND])


def test_conditions_choose_the_types_that_have_the_fields() -> None:
    """Of several types only those with every field take part: compile against the whole contract."""
    assert Where.compile(["gate_verdicts.SEED_GATE_G0_SANITY=true"], EVENT_TYPES).types == {full_name("CommandOutcome")}
    assert Where.compile(["training_run_id=x", "current_epoch=1"], EVENT_TYPES).types == {STATE}
    with pytest.raises(UsageError, match="'maybe' is no value of field 'passed': it is true or false"):
        Where.compile(["passed=maybe"], EVENT_TYPES)
    with pytest.raises(UsageError, match="there is no field 'colour': none of"):
        Where.compile(["colour=red"], EVENT_TYPES)
    with pytest.raises(UsageError, match="no event has all of worker, gate"):
        Where.compile(["worker=x", "gate=SEED_GATE_G0_SANITY"], EVENT_TYPES)


@given(
    epoch=st.integers(0, 2**32 - 1),
    gain=st.none() | st.floats(allow_nan=False),
    notes=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])),
)
def test_what_cat_shows_can_be_asked_for(epoch: int, gain: float | None, notes: str) -> None:
    """Values are written as they are shown: show a report by the JSON form, ask for each plain field of it."""
    report = ly.FieldReport(epoch=epoch, notes=notes)
    if gain is not None:
        report.counterfactual_gain = gain
    shown = MessageToDict(report, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    for name in ("epoch", "notes", "outcome", "terminated"):
        text = str(shown[name]).lower() if isinstance(shown[name], bool) else str(shown[name])
        assert Where.compile([f"{name}={text}"], [REPORT])(report)
    if gain is not None:
        assert Where.compile([f"counterfactual_gain={gain!r}"], [REPORT])(report)
