"""Re-execution: the same request and the recorded outcomes give the same states, or an integrity error."""

from __future__ import annotations

import pytest

from esper.core.digest import module_state, state_digest
from esper.core.errors import IntegrityError
from esper.core.ports import KernelUnavailable
from esper.kasmina.testing import InMemoryRuntime
from esper.leyline import messages as ly
from tests.kasmina.support import FACTORIES, RUN_ID, Loop, mlp, outcome_of, seed_command, seeded

EPOCHS, STEPS = 12, 20
#: What is ordered after each epoch; the third is refused (too early), the fifth names a blueprint nobody has.
SCRIPT: dict[int, tuple[ly.SeedOperation, dict[str, object]]] = {
    1: (ly.SEED_OP_GERMINATE, {"slot": "1", "blueprint": "DROPPING"}),
    2: (ly.SEED_OP_START_GRAFTING, {"seed_id": "1.1"}),
    4: (ly.SEED_OP_START_GRAFTING, {"seed_id": "1.1"}),
    5: (ly.SEED_OP_GERMINATE, {"slot": "2", "blueprint": "NOBODY"}),
    6: (ly.SEED_OP_STABILIZE, {"seed_id": "1.1"}),
    7: (ly.SEED_OP_GERMINATE, {"slot": "2", "blueprint": "BYPASS"}),
    8: (ly.SEED_OP_EVALUATE, {"seed_id": "1.1"}),
    9: (ly.SEED_OP_FOSSILIZE, {"seed_id": "1.1"}),
    11: (ly.SEED_OP_CULL, {"seed_id": "2.1"}),
}


def digest(loop: Loop) -> str:
    """Return the digest of host and seeds."""
    return state_digest({**module_state(loop.model), **loop.manager.state()})


def states(loop: Loop) -> bytes:
    """Return what a packet shows of seeds and slots."""
    packet = ly.SystemStatePacket(seed_states=loop.manager.seed_states(), slots=loop.manager.slot_states())
    packet.multiply_adds = loop.manager.multiply_adds
    return packet.SerializeToString(deterministic=True)


def fresh(runtime: InMemoryRuntime) -> Loop:
    """Return a run that has not begun."""
    return Loop(seeded(mlp, 3), ["1", "2"], runtime=runtime)


def record(runtime: InMemoryRuntime) -> tuple[Loop, list[ly.CommandOutcome], list[tuple[str, bytes]]]:
    """Run the script; return the run, its outcomes and each epoch's digest and states."""
    loop, outcomes, trail = fresh(runtime), [], []
    for epoch in range(1, EPOCHS + 1):
        loop.train_epoch(STEPS)
        trail.append((digest(loop), states(loop)))
        if epoch in SCRIPT:
            operation, fields = SCRIPT[epoch]
            loop.order(operation, **fields)
            outcomes.append(loop.outcomes[-1])
        else:
            loop.manager.decide(None, epoch=epoch)
            outcomes.append(
                ly.CommandOutcome(run_id=RUN_ID, epoch=epoch, result=ly.COMMAND_RESULT_NONE, reason="timeout")
            )
    return loop, outcomes, trail


def replay(runtime: InMemoryRuntime, outcomes: list[ly.CommandOutcome]) -> tuple[Loop, list[tuple[str, bytes]]]:
    """Re-execute a run from its outcomes alone."""
    loop, trail = fresh(runtime), []
    for epoch, outcome in enumerate(outcomes, 1):
        loop.train_epoch(STEPS)
        trail.append((digest(loop), states(loop)))
        decision = loop.manager.decide(None, epoch=epoch, recorded=outcome)
        assert (decision.result, decision.reason) == (outcome.result, outcome.reason)
        for event in decision.events:
            loop.log.append(event)
            loop.manager.fold(event)
    return loop, trail


@pytest.fixture(scope="module")
def runtime() -> InMemoryRuntime:
    """One store of kernels for record and replay."""
    return InMemoryRuntime(FACTORIES)


@pytest.fixture(scope="module")
def recorded(runtime: InMemoryRuntime) -> tuple[Loop, list[ly.CommandOutcome], list[tuple[str, bytes]]]:
    """A recorded run that fossilised one seed and culled another."""
    return record(runtime)


def test_the_script_does_what_it_says(
    recorded: tuple[Loop, list[ly.CommandOutcome], list[tuple[str, bytes]]],
) -> None:
    """Goal: the comparison below compares something. Method: results, reasons and last stages of the recorded run."""
    loop, outcomes, _ = recorded
    assert {outcome.epoch: outcome.reason for outcome in outcomes if outcome.result == ly.COMMAND_RESULT_REJECTED} == {
        2: "gate:SEED_GATE_G2_STABILITY",
        5: "kernel_unavailable:unknown_blueprint",
    }
    assert [summary.stage for summary in loop.manager.summaries()] == [
        ly.SEED_STAGE_FOSSILIZED,
        ly.SEED_STAGE_EMBARGOED,
    ]


def test_re_execution_gives_identical_states(
    runtime: InMemoryRuntime, recorded: tuple[Loop, list[ly.CommandOutcome], list[tuple[str, bytes]]]
) -> None:
    """Goal: a run is a function of its request and outcomes. Method: digests, seed states and event ids of every epoch
    of a re-execution against the recorded run; kernels come by digest only.
    """
    loop, outcomes, trail = recorded
    requests = len(runtime.requests)
    again, trail_again = replay(runtime, outcomes)
    assert trail_again == trail
    assert [event.meta.event_id for event in again.log] == [event.meta.event_id for event in loop.log]
    assert len(runtime.requests) == requests, "no kernel was asked for anew"


@pytest.mark.parametrize(
    ("epoch", "change", "cause"),
    [
        (2, {"gate_verdicts": {"SEED_GATE_G2_STABILITY": True}}, "SEED_GATE_G2_STABILITY is False now and True"),
        (4, {"gate_verdicts": {}}, "SEED_GATE_G2_STABILITY is True now and None"),
        (2, {"reason": "gate:SEED_GATE_G4_SYSTEM_IMPACT"}, "the reason is 'gate:SEED_GATE_G2_STABILITY' now"),
        (4, {"result": ly.COMMAND_RESULT_REJECTED}, "the result is 'COMMAND_RESULT_APPLIED' now"),
        (1, {"kernel_digest": ""}, "a kernel is needed now"),
    ],
)
def test_a_record_that_does_not_repeat_is_an_integrity_error(
    runtime: InMemoryRuntime,
    recorded: tuple[Loop, list[ly.CommandOutcome], list[tuple[str, bytes]]],
    epoch: int,
    change: dict[str, object],
    cause: str,
) -> None:
    """Goal: a false record is found. Method: alter one field of one outcome and re-execute."""
    outcomes = []
    for outcome in recorded[1]:
        copied = ly.CommandOutcome()
        copied.CopyFrom(outcome)
        if outcome.epoch == epoch:
            for name in change:
                copied.ClearField(name)
            copied.MergeFrom(ly.CommandOutcome(**change))  # type: ignore[arg-type]
        outcomes.append(copied)
    with pytest.raises(IntegrityError, match=cause):
        replay(runtime, outcomes)


def test_a_lost_kernel_stops_a_re_execution(
    recorded: tuple[Loop, list[ly.CommandOutcome], list[tuple[str, bytes]]],
) -> None:
    """Goal: no other kernel is taken instead. Method: an empty store."""
    with pytest.raises(KernelUnavailable):
        replay(InMemoryRuntime(FACTORIES), recorded[1])


def test_a_refusal_by_the_verifier_is_taken_from_the_record() -> None:
    """Goal: what depends on append times binds as recorded. Method: an outcome that a verifier refused."""
    loop = fresh(InMemoryRuntime(FACTORIES))
    loop.train_epoch(2)
    command = seed_command(ly.SEED_OP_GERMINATE, slot="1", blueprint="BYPASS")
    outcome = outcome_of(loop.manager.decide(None, epoch=1), command, epoch=2)
    outcome.result, outcome.reason = ly.COMMAND_RESULT_REJECTED, "stale_command"
    decision = loop.manager.decide(command, epoch=2, recorded=outcome)
    assert (decision.result, decision.reason, list(decision.events)) == (outcome.result, outcome.reason, [])


def test_another_seed_gives_another_run() -> None:
    """Goal: digests tell runs apart. Method: the first epochs of two hosts of different seeds, and of equal ones."""
    digests = []
    for seed in (3, 3, 4):
        loop = Loop(seeded(mlp, seed), ["1"])
        loop.germinate("1")
        loop.train_epoch(10)
        digests.append(digest(loop))
    assert digests[0] == digests[1] != digests[2]
