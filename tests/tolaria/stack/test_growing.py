"""A stack whose members graft, against the same runs one at a time."""

from __future__ import annotations

import pytest

from esper.leyline import messages as ly
from esper.tolaria.stack import RecordedStackJournal, StackTrainer, prepared_stack
from esper.weatherlight._stack_grafting import stacked_controller
from tests.kasmina.kernels import RealKernels
from tests.tolaria.stack.growing import Impatient, grow_alone, grow_stack, schedule
from tests.tolaria.stack.stacked import requests

_MOVES = (ly.SeedStageChanged, ly.GateEvaluated, ly.SeedMoveRejected)


def _differing(members: int, *, epochs: int) -> list[ly.TrainingRunRequested]:
    """Return a stack whose members graft at other epochs, with other kernels, or not at all."""
    asked = requests(members, epochs=epochs)
    plans = [
        schedule(blueprint=21),
        schedule(blueprint=9, germinate=2, graft=4),
        schedule(blueprint=21, germinate=2, graft=4, blend=3, cull=6),
        schedule(germinate=epochs + 1),
    ]
    for index, request in enumerate(asked):
        request.policy_parameters.update(plans[index % len(plans)])
    return asked


def test_members_grow_as_they_would_alone() -> None:
    """Every move, gate and figure of a member is that of its lone run; losses agree while rounding has not grown."""
    asked = _differing(4, epochs=12)
    journal, _, grafts = grow_stack(asked)
    for index, request in enumerate(asked):
        lone = grow_alone(request)
        mine = [packet for packet in journal.packets if packet.training_run_id == request.run_id]
        for stacked, single in zip(mine, lone.packets, strict=True):
            early = stacked.current_epoch <= 4
            assert stacked.training_loss == pytest.approx(single.training_loss, rel=1e-5 if early else 1e-2)
            assert stacked.validation_loss == pytest.approx(single.validation_loss, rel=1e-5 if early else 1e-2)
            for name in ("parameters", "multiply_adds_per_sample", "multiply_adds"):
                assert getattr(stacked, name) == getattr(single, name), (index, stacked.current_epoch, name)
            assert list(stacked.slots) == list(single.slots)
            assert len(stacked.seed_states) == len(single.seed_states)
            for ours, theirs in zip(stacked.seed_states, single.seed_states, strict=True):
                for name in ("seed_id", "stage", "slot", "blueprint_id", "age_epochs", "stage_epochs", "layer_depth"):
                    assert getattr(ours, name) == getattr(theirs, name), name
                assert ours.alpha == theirs.alpha
                assert ours.learning_rate == pytest.approx(theirs.learning_rate)
                assert ours.HasField("gradient_norm") == theirs.HasField("gradient_norm")
                assert dict(ours.metrics) == pytest.approx(dict(theirs.metrics), rel=1e-4 if early else 0.2, abs=1e-3)
        ours = [event for event in journal.seed_events if event.run_id == request.run_id]  # type: ignore[attr-defined]  # all name it
        theirs = [event for event in lone.seed_events if isinstance(event, _MOVES)]
        assert [_told(event) for event in ours] == [_told(event) for event in theirs]
        outcomes = [outcome for outcome in journal.outcomes if outcome.run_id == request.run_id]
        for one, other in zip(outcomes, lone.outcomes, strict=True):
            assert (one.result, one.reason, one.seed_id, one.kernel_digest) == (
                other.result,
                other.reason,
                other.seed_id,
                other.kernel_digest,
            )
            assert dict(one.gate_verdicts) == dict(other.gate_verdicts)
    stages = [[seed.stage for seed in member.summaries()] for member in grafts.members()]
    assert stages[0] == [ly.SEED_STAGE_FOSSILIZED]
    assert stages[2] == [ly.SEED_STAGE_DORMANT]
    assert "faded_out" in {getattr(event, "reason", "") for event in journal.seed_events}
    assert stages[3] == []


def test_a_fall_is_shortened_in_a_stack_as_it_is_alone() -> None:
    """Moves, outcomes and alphas of a member whose fall is shortened are those of its lone run."""
    asked = _differing(4, epochs=10)
    journal, _, _ = grow_stack(asked, decider=Impatient)
    request = asked[2]
    lone = grow_alone(request, decider=Impatient)
    mine = [event for event in journal.seed_events if event.run_id == request.run_id]  # type: ignore[attr-defined]  # all name it
    assert [_told(event) for event in mine] == [_told(event) for event in lone.seed_events if isinstance(event, _MOVES)]
    moves = [event for event in mine if isinstance(event, ly.SeedStageChanged)]
    falls = [event for event in moves if event.to_stage == ly.SEED_STAGE_CULLED]
    assert [event.from_stage == event.to_stage for event in falls] == [False, True]
    assert falls[1].metrics["fall_steps"] == 3.0
    assert moves[-1].reason == "faded_out"
    ours = [packet for packet in journal.packets if packet.training_run_id == request.run_id]
    for stacked, single in zip(ours, lone.packets, strict=True):
        assert [seed.alpha for seed in stacked.seed_states] == [seed.alpha for seed in single.seed_states]
    ends = [outcome for outcome in journal.outcomes if outcome.run_id == request.run_id]
    assert [dict(one.choices) for one in ends] == [dict(one.choices) for one in lone.outcomes]


def _told(event: object) -> tuple[object, ...]:
    names = ("seed_id", "epoch", "from_stage", "to_stage", "gate", "passed", "reason", "command_id")
    return (type(event).__name__, *(getattr(event, name, None) for name in names))


def test_a_member_depends_on_nothing_of_its_neighbours() -> None:
    """Other seeds beside it, with the same schedules, leave a member's digests as they are."""
    first, _, _ = grow_stack(_differing(4, epochs=9))
    asked = _differing(4, epochs=9)
    for index in (0, 2, 3):
        asked[index].seed = 70 + index
    other, _, _ = grow_stack(asked)
    one, two = ([p.weights_digest for p in journal.packets if p.seed == 2] for journal in (first, other))
    assert one == two
    assert len(set(one)) == 9


def test_a_stack_repeats_bit_for_bit() -> None:
    """Computed again from requests and outcomes, every packet and verdict of every member comes out as recorded."""
    asked = _differing(4, epochs=12)
    kernels = RealKernels()
    journal, _, _ = grow_stack(asked, kernels)
    with prepared_stack(asked) as setup:
        again = StackTrainer(setup, stacked_controller(setup, kernels), RecordedStackJournal(journal.recordings(asked)))
        results = again.run()
        assert again.epochs_finished == 12
        assert again.digests() == [result.digest for result in results if result is not None]


def test_a_repeat_that_strays_is_caught() -> None:
    """A recorded loss that was altered is named with its member."""
    from esper.tolaria import NotRepeated

    asked = _differing(2, epochs=3)
    kernels = RealKernels()
    journal, _, _ = grow_stack(asked, kernels)
    journal.packets[3].validation_loss += 1e-7
    recordings = journal.recordings(asked)
    with prepared_stack(asked) as setup:
        again = StackTrainer(setup, stacked_controller(setup, kernels), RecordedStackJournal(recordings))
        with pytest.raises(NotRepeated) as caught:
            again.run()
    assert caught.value.run_id == asked[1].run_id
    assert caught.value.difference.field == "validation_loss"
