"""Any commands in any order, with faults and silence between them: one outcome an epoch, and a record that repeats."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esper.leyline import messages as ly
from esper.tolaria import ReturnPoints
from tests.campaigns import WHOLE
from tests.tolaria.grafting import Kept
from tests.tolaria.small import Policy, command
from tests.tolaria.test_rollback import Lived, adjustment, asked, live, rollback, successor, verified

EPOCHS = 12


def seed(operation: ly.SeedOperation) -> ly.AdaptationCommand:
    wish = ly.AdaptationCommand(command_type=ly.COMMAND_SEED)
    wish.seed_operation.operation = operation
    if operation == ly.SEED_OP_GERMINATE:
        wish.seed_operation.blueprint_id = "BYPASS"
    return wish


def growth(kind: ly.CommandType, **payload: object) -> ly.AdaptationCommand:
    return ly.AdaptationCommand(command_type=kind, **payload)  # type: ignore[arg-type]


GERMINATE, GRAFT = seed(ly.SEED_OP_GERMINATE), seed(ly.SEED_OP_START_GRAFTING)
WISHES: dict[str, ly.AdaptationCommand | None] = {
    "silence": None,
    "continue": growth(ly.COMMAND_CONTINUE),
    "germinate": GERMINATE,
    "graft": GRAFT,
    "stabilize": seed(ly.SEED_OP_STABILIZE),
    "cull": seed(ly.SEED_OP_CULL),
    "pause": growth(ly.COMMAND_PAUSE),
    "pause for two": growth(ly.COMMAND_PAUSE, pause=ly.CommandPause(epochs=2)),
    "resume": growth(ly.COMMAND_PAUSE, pause=ly.CommandPause(resume=True)),
    "open": growth(
        ly.COMMAND_CIRCUIT_BREAKER, circuit_breaker=ly.CommandCircuitBreaker(desired_state=ly.CIRCUIT_STATE_OPEN)
    ),
    "close": growth(
        ly.COMMAND_CIRCUIT_BREAKER, circuit_breaker=ly.CommandCircuitBreaker(desired_state=ly.CIRCUIT_STATE_CLOSED)
    ),
    "emergency": growth(ly.COMMAND_EMERGENCY),
    "rollback": rollback(),
    "rollback to 2": rollback(2),
    "slower": adjustment(learning_rate_factor=0.5),
    "wrong": adjustment("lion", learning_rate_factor=0.5),
    "prune": growth(ly.COMMAND_STRUCTURAL_PRUNING),
}


def told(script: list[str]) -> Policy:
    """Return a policy that says these, epoch by epoch, of the newest seed and the first slot."""

    def answer(packet: ly.SystemStatePacket) -> ly.AdaptationCommand | None:
        wish = WISHES[script[packet.current_epoch - 1]] if packet.current_epoch <= len(script) else None
        if wish is None:
            return None
        made = command(packet, wish.command_type)
        made.MergeFrom(wish)
        made.meta.source = "cli"
        if wish.command_type == ly.COMMAND_SEED and wish.seed_operation.operation == ly.SEED_OP_GERMINATE:
            made.seed_operation.slot = packet.slots[0].slot
        elif wish.command_type == ly.COMMAND_SEED:
            made.target_seed_id = packet.seed_states[-1].seed_id if packet.seed_states else "nobody"
        return made

    return answer


def facts(lived: Lived) -> None:
    """Hold a run against what every run keeps."""
    outcomes, packets = lived.journal.outcomes, lived.journal.packets
    assert [one.epoch for one in outcomes] == [one.current_epoch for one in packets] == list(range(1, EPOCHS + 1))
    for outcome in outcomes:
        silent = outcome.result == ly.COMMAND_RESULT_NONE
        assert silent == (not outcome.HasField("command"))
        assert bool(outcome.reason) == (outcome.result != ly.COMMAND_RESULT_APPLIED), outcome
        returned = outcome.result == ly.COMMAND_RESULT_APPLIED and outcome.command_type == ly.COMMAND_ROLLBACK
        assert outcome.HasField("rolled_back") == (returned or outcome.reason.startswith("fault:"))
    ids = [event.meta.event_id for event in lived.journal.seed_events]
    assert len(ids) == len(set(ids))
    stages: dict[str, ly.SeedLifecycleStage] = {}
    for event in lived.journal.seed_events:
        if isinstance(event, ly.SeedStageChanged):
            assert event.from_stage == stages.get(event.seed_id, ly.SEED_STAGE_DORMANT), event
            stages[event.seed_id] = event.to_stage
    assert lived.result is not None
    assert {one.seed_id: one.stage for one in lived.result.seeds} == stages


SCRIPTS = st.lists(st.sampled_from(sorted(WISHES)), min_size=EPOCHS, max_size=EPOCHS)


@settings(
    max_examples=200 if WHOLE else 5,
    deadline=None,
    derandomize=not WHOLE,
    suppress_health_check=list(HealthCheck),
)
@given(script=SCRIPTS, host=st.sampled_from(["mlp", "fragile_nan", "fragile_spike"]), cut=st.integers(1, EPOCHS - 1))
def test_every_epoch_has_one_outcome_whatever_is_said(script: list[str], host: str, cut: int) -> None:
    """Goal: nothing that is said leaves a run without an outcome, with two, or with a record that does not repeat.
    Method: random scripts on hosts that hold and that are spoilt; the run is verified, and taken over at a random
    epoch from its beginning."""
    wish = asked(host)
    wish.epochs = EPOCHS
    lived = live(wish, told(["germinate", *script][:EPOCHS]), kept=Kept(), points=ReturnPoints())
    facts(lived)
    verified(lived)
    with successor(lived, 0, cut) as trainer:
        assert trainer.run() == lived.result


def test_the_script_reaches_every_kind_of_outcome() -> None:
    """Goal: the campaign is not empty. Method: one script in which every order is applied once."""
    script = ["germinate", "pause", "resume", "open", "close", "slower", "rollback", "germinate", "emergency", "resume"]
    wish = asked("mlp")
    wish.epochs = EPOCHS
    lived = live(wish, told(script))
    facts(lived)
    kinds = {outcome.command_type for outcome in lived.journal.outcomes if outcome.result == ly.COMMAND_RESULT_APPLIED}
    assert kinds == {
        ly.COMMAND_SEED,
        ly.COMMAND_PAUSE,
        ly.COMMAND_CIRCUIT_BREAKER,
        ly.COMMAND_OPTIMIZER,
        ly.COMMAND_ROLLBACK,
        ly.COMMAND_EMERGENCY,
    }
    verified(lived)
