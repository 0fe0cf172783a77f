"""How decisions turn out: windows, outcomes, rewards and what was measured with the seed off."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.core.ids import RunId, derive_id
from esper.leyline import messages as ly
from esper.tamiyo import FieldReportStore, RunState, decide, fold
from esper.tamiyo._due import packet_to_decide, reports_due
from tests.tamiyo.scripted_run import ScriptedRun
from tests.tamiyo.strategies import RUN, packet_sequences


def played(run: ScriptedRun, *, deaf: tuple[int, ...] = (), stop_after: int | None = None) -> FieldReportStore:
    """Play a run, in a failure after `stop_after` epochs if given, and return its reports as a store."""
    store = FieldReportStore()
    state = fold(RunState(run.run_id), run.request())

    def close(state: RunState) -> RunState:
        for report in reports_due(state):
            assert store.fold(report), "each decision is closed once"
            state = fold(state, report)
        return state

    for _ in range(stop_after or run.epochs):
        state = fold(state, run.next_packet())
        packet = packet_to_decide(state)
        assert packet is not None
        decision = decide(state, packet)
        state = fold(fold(state, decision.made), decision.command)
        state = close(fold(state, run.apply(None if run.epoch in deaf else decision.command)))
    close(fold(state, run.failed() if stop_after else run.finished()))
    return store


def of(store: FieldReportStore, run: ScriptedRun, epoch: int) -> ly.FieldReport:
    """Return the report of one epoch's decision."""
    return next(report for report in store.of_run(RunId(run.run_id)) if report.epoch == epoch)


def test_every_decision_is_closed_once() -> None:
    """Forty decisions, forty reports with derived ids, found by run and by decision."""
    run = ScriptedRun("run-closed", epochs=40)
    store = played(run)
    reports = store.of_run(RunId("run-closed"))
    assert [report.epoch for report in reports] == list(range(1, 41))
    for report in reports:
        state_event = derive_id("run-closed", "state", report.epoch)
        decision_id = derive_id("run-closed", "decision", state_event)
        assert report.decision_id == decision_id
        assert report.report_id == report.meta.event_id == derive_id("run-closed", "report", decision_id)
        assert store.of_decision(decision_id) is report
        assert report.episode_id == report.training_run_id == "run-closed"


def test_most_windows_last_one_epoch() -> None:
    """A CONTINUE is judged by the next packet: its loss, its reward parts, the id to learn on from."""
    run = ScriptedRun("run-window", epochs=40)
    report = of(played(run), run, 2)
    assert report.command_type == ly.COMMAND_CONTINUE
    assert report.command_result == ly.COMMAND_RESULT_APPLIED
    assert (report.observation_window_begin_epoch, report.observation_window_epochs) == (2, 1)
    assert report.next_state_event_id == derive_id("run-window", "state", 3)
    assert not report.terminated
    assert not report.truncated
    assert report.reward_parts["validation_gain"] == pytest.approx(2.0 * (0.97**2 - 0.97**3))
    assert report.reward_parts["parameter_rent"] == 0.0
    assert report.reward_parts["compute"] == pytest.approx(-1 / 40)
    assert not report.HasField("counterfactual_gain")
    assert report.outcome == ly.FIELD_REPORT_OUTCOME_SUCCESS, "the loss fell by three per cent"


def test_a_germination_is_judged_when_its_seed_is_settled() -> None:
    """Its window lasts to the packet that shows the seed FOSSILIZED; the gain is the counterfactual one."""
    run = ScriptedRun("run-grown", epochs=40, gain=0.2)
    report = of(played(run), run, 4)
    assert report.seed_operation == ly.SEED_OP_GERMINATE
    assert (report.seed_id, report.blueprint_id) == ("hidden.1", "BP021")
    assert report.observation_window_epochs == 11 - 4
    assert report.next_state_event_id == derive_id("run-grown", "state", 11)
    assert report.counterfactual_gain == pytest.approx(2.0 * 0.97**11 * 0.2)
    assert report.metrics["loss_seed_off"] - report.metrics["loss_seed_on"] == report.counterfactual_gain
    assert report.reward_parts["parameter_rent"] == pytest.approx(-(3400 / 400 - 1) * 7 / 40)
    assert report.outcome == ly.FIELD_REPORT_OUTCOME_SUCCESS


def test_a_germination_whose_seed_was_culled_is_closed_then() -> None:
    """The window ends with the cull, and the shadow's counterfactual says that it was a bad seed."""
    run = ScriptedRun("run-culled", epochs=40, gain=-0.2)
    store = played(run)
    report = of(store, run, 4)
    cull = next(report for report in store.of_run(RunId("run-culled")) if report.seed_operation == ly.SEED_OP_CULL)
    assert report.observation_window_epochs == cull.epoch + 1 - 4
    assert report.counterfactual_gain < 0.0
    assert report.outcome == ly.FIELD_REPORT_OUTCOME_REGRESSION
    assert cull.seed_id == "hidden.1"


def test_a_seed_still_on_its_way_at_the_end_truncates_its_window() -> None:
    """The run finished before the seed was settled: terminated and truncated, judged by what there is."""
    run = ScriptedRun("run-cut", epochs=12, refuse=(ly.SEED_OP_FOSSILIZE,))
    report = of(played(run), run, 1)
    assert report.seed_operation == ly.SEED_OP_GERMINATE
    assert report.terminated
    assert report.truncated
    assert report.observation_window_epochs == 11
    assert report.next_state_event_id == derive_id("run-cut", "state", 12)


def test_the_last_decision_has_nothing_after_it() -> None:
    """No packet follows: no next state, no reward, NEUTRAL, and the episode is marked as over."""
    run = ScriptedRun("run-last", epochs=3, policy="noop")
    report = of(played(run), run, 3)
    assert report.next_state_event_id == ""
    assert report.observation_window_epochs == 0
    assert dict(report.reward_parts) == {}
    assert report.terminated
    assert report.truncated
    assert report.outcome == ly.FIELD_REPORT_OUTCOME_NEUTRAL


def test_a_failed_run_aborts_what_it_cut_short() -> None:
    """The failure is no verdict on the decision, and the episode is cut, not over."""
    run = ScriptedRun("run-lost", epochs=40)
    store = played(run, stop_after=6)
    last, germination = of(store, run, 6), of(store, run, 4)
    for report in (last, germination):
        assert report.outcome == ly.FIELD_REPORT_OUTCOME_ABORTED
        assert report.truncated
        assert not report.terminated
        assert "failed" in report.notes
    assert of(store, run, 2).outcome == ly.FIELD_REPORT_OUTCOME_SUCCESS


def test_what_was_not_carried_out_is_aborted() -> None:
    """A rejected order and a command that came too late: one-epoch windows, the reason in the notes."""
    run = ScriptedRun("run-refused", epochs=12, refuse=(ly.SEED_OP_GERMINATE,))
    store = played(run, deaf=(2,))
    rejected, missed = of(store, run, 1), of(store, run, 2)
    assert rejected.seed_operation == ly.SEED_OP_GERMINATE
    assert rejected.command_result == ly.COMMAND_RESULT_REJECTED
    assert rejected.notes == "gate:SEED_GATE_TEST"
    assert missed.command_result == ly.COMMAND_RESULT_NONE
    assert missed.notes == "timeout"
    for report in (rejected, missed):
        assert report.outcome == ly.FIELD_REPORT_OUTCOME_ABORTED
        assert report.observation_window_epochs == 1


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        (1.0, 0.98, ly.FIELD_REPORT_OUTCOME_SUCCESS),
        (1.0, 0.995, ly.FIELD_REPORT_OUTCOME_NEUTRAL),
        (1.0, 1.005, ly.FIELD_REPORT_OUTCOME_NEUTRAL),
        (1.0, 1.02, ly.FIELD_REPORT_OUTCOME_REGRESSION),
        (1.0, math.nan, ly.FIELD_REPORT_OUTCOME_REGRESSION),
        (math.inf, 1.0, ly.FIELD_REPORT_OUTCOME_SUCCESS),
        (math.nan, math.nan, ly.FIELD_REPORT_OUTCOME_REGRESSION),
    ],
)
def test_outcomes_follow_the_neutral_band(before: float, after: float, outcome: ly.FieldReportOutcome) -> None:
    """One per cent either way is noise; a loss that is no number is never a success to end on."""
    run = ScriptedRun("run-band", epochs=2, policy="noop")
    state = RunState("run-band")
    for loss in (before, after):
        packet = run.next_packet()
        packet.validation_loss = loss
        state = fold(state, packet)
        decision = decide(state, state.packets[run.epoch])
        state = fold(fold(state, decision.made), run.apply(decision.command))
    (report,) = reports_due(state)
    assert report.outcome == outcome
    assert all(map(math.isfinite, [*report.metrics.values(), *report.reward_parts.values()]))
    assert ("validation_gain" in report.reward_parts) == (math.isfinite(before) and math.isfinite(after))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_odd_packets_yield_finite_reports(data: st.DataObject) -> None:
    """Whatever the packets hold, at the end of the run each decision has one report, without NaN or infinity."""
    state = RunState(RUN)
    results = st.sampled_from([ly.COMMAND_RESULT_APPLIED, ly.COMMAND_RESULT_REJECTED, ly.COMMAND_RESULT_NONE])
    packets = data.draw(packet_sequences())
    for packet in packets:
        state = fold(state, packet)
        decision = decide(state, state.packets[packet.current_epoch])
        state = fold(state, decision.made)
        result, seed_id = data.draw(results), data.draw(st.sampled_from(["", "a.1", "b.1"]))
        state = fold(state, ly.CommandOutcome(epoch=packet.current_epoch, result=result, seed_id=seed_id))
    state = fold(state, ly.TrainingRunFinished(attempt=1, epochs=packets[-1].current_epoch))
    reports = reports_due(state)
    assert [report.epoch for report in reports] == [packet.current_epoch for packet in packets]
    for report in reports:
        assert report.outcome != ly.FIELD_REPORT_OUTCOME_UNSPECIFIED
        assert all(map(math.isfinite, [*report.metrics.values(), *report.reward_parts.values()]))
        assert math.isfinite(report.counterfactual_gain)


def test_the_store_keeps_the_first_and_drops_whole_episodes() -> None:
    """A second report of one decision changes nothing; forgetting a run leaves none of its reports."""
    store = FieldReportStore()
    first = ly.FieldReport(decision_id="d1", training_run_id="r1", epoch=2, notes="first")
    assert store.fold(first)
    assert not store.fold(ly.FieldReport(decision_id="d1", training_run_id="r1", epoch=2, notes="second"))
    assert store.fold(ly.FieldReport(decision_id="d0", training_run_id="r1", epoch=1))
    assert store.fold(ly.FieldReport(decision_id="d2", training_run_id="r2", epoch=1))
    assert [report.decision_id for report in store.of_run(RunId("r1"))] == ["d0", "d1"]
    assert store.of_decision(derive_id("nobody")) is None
    assert store.runs() == ("r1", "r2")
    assert len(store) == len(list(store)) == 3
    store.drop_run(RunId("r1"))
    store.drop_run(RunId("r9"))
    assert [report.decision_id for report in store] == ["d2"]


def report(run: str, epoch: int, seconds: float) -> ly.FieldReport:
    """Return a report that was written at a time."""
    made = ly.FieldReport(decision_id=f"{run}-{epoch}", training_run_id=run, epoch=epoch)
    made.issued_at.FromNanoseconds(int(seconds * 1e9))
    return made


def test_retention_counts_whole_episodes() -> None:
    """A store of two episodes: the one that was silent longest goes as a whole, and comes back by no late report."""
    store = FieldReportStore(episodes_max=2)
    for run, epoch in (("a", 1), ("b", 1), ("a", 2)):
        assert store.fold(report(run, epoch, 0.0))
    assert store.fold(report("c", 1, 0.0))
    assert store.runs() == ("a", "c"), "b was heard before a was heard again"
    assert not store.fold(report("b", 2, 0.0))
    assert len(store) == 3


def test_age_is_that_of_an_episode_against_the_newest_report() -> None:
    """An hour to live: an episode that goes on keeps its old reports, one that fell silent loses all of them."""
    store = FieldReportStore(ttl_seconds=3_600.0)
    for run, epoch, seconds in (("long", 1, 0.0), ("short", 1, 10.0), ("long", 2, 3_000.0), ("new", 1, 3_610.0)):
        assert store.fold(report(run, epoch, seconds))
    assert store.runs() == ("long", "short", "new"), "exactly an hour is not too old"
    assert store.fold(report("new", 2, 3_611.0))
    assert store.runs() == ("long", "new")
    assert [kept.epoch for kept in store.of_run(RunId("long"))] == [1, 2]
    assert not store.fold(report("old", 1, 5.0)), "what is too old when it comes leaves nothing"
    assert store.runs() == ("long", "new")


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 200)), max_size=60))
def test_no_episode_is_kept_in_part(written: list[tuple[str, int]]) -> None:
    """Any order of reports: what a kept episode ever brought is there, and reading the same log again ends alike."""
    stores = [FieldReportStore(episodes_max=3, ttl_seconds=50.0) for _ in range(2)]
    for store in stores:
        for number, (run, seconds) in enumerate(written):
            store.fold(report(run, number, float(seconds)))
    first, second = stores
    assert list(first) == list(second)
    assert len(first.runs()) <= 3
    for run in first.runs():
        assert len(first.of_run(run)) == sum(name == run for name, _ in written)


def test_stability_is_the_worst_step_of_a_window() -> None:
    """A long window in which the loss falls, leaps by a half and falls again: minus a half; where it only falls, 0."""
    run = ScriptedRun("run-steps", epochs=10, policy="noop")
    state = fold(RunState(run.run_id), run.request())
    for loss in (2.0, 1.0, 1.5, 0.5):
        packet = run.next_packet()
        packet.validation_loss = loss
        state = fold(state, packet)
        decision = decide(state, state.packets[run.epoch])
        state = fold(fold(fold(state, decision.made), decision.command), run.apply(decision.command))
    parts = {each.epoch: each.reward_parts["stability"] for each in reports_due(state)}
    assert parts == {1: 0.0, 2: pytest.approx(-0.5), 3: 0.0}
