"""The fold of an evaluation's runs: whose word counts, and what is passed over."""

from __future__ import annotations

from esper.leyline import EventMessage, Record
from esper.leyline import messages as ly
from esper.oona import Event
from esper.simic.trials import Place, TrialLog

DIGEST = "a" * 64
PLACE = Place("spirals", "mlp:3", 7, "static")


class _Topic:
    """Events of one run, in their order, as a reader gives them."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, message: EventMessage, *, producer: str = "p1", run_id: str = "run-1", ms: int = 0) -> None:
        message.meta.subject, message.meta.producer_id = run_id, producer
        record = Record("runs", 0, len(self.events), run_id.encode(), b"", (), ms)
        self.events.append(Event(record, message.meta, message))


def _begun(*, label: str | None = None) -> _Topic:
    topic = _Topic()
    asked = ly.TrainingRunRequested(
        run_id="run-1", seed=7, experiment_name=PLACE.label(DIGEST) if label is None else label
    )
    topic.add(asked)
    topic.add(ly.TrainingRunClaimed(run_id="run-1", attempt=1, producer_id="p1"))
    topic.add(ly.TrainingRunStarted(run_id="run-1", attempt=1, initial_digest="i", data_digest="d"), ms=1_000)
    return topic


def _packet(epoch: int, accuracy: float, *, attempt: int = 1) -> ly.SystemStatePacket:
    return ly.SystemStatePacket(
        training_run_id="run-1", current_epoch=epoch, validation_accuracy=accuracy, attempt=attempt
    )


def _folded(topic: _Topic) -> TrialLog:
    log = TrialLog(DIGEST)
    log.see(topic.events)
    return log


def test_a_run_is_what_its_events_say() -> None:
    """Request, packets, decisions, kernels and end come together under the place that the request names."""
    topic = _begun()
    topic.add(_packet(1, 0.5))
    topic.add(ly.DecisionMade(run_id="run-1", epoch=1, policy="fixed", policy_version="1", policy_digest="x"))
    topic.add(ly.CommandOutcome(run_id="run-1", epoch=1, seed_id="s1", kernel_digest="k1"))
    topic.add(ly.TrainingRunFinished(run_id="run-1", attempt=1, epochs=1, accuracy=0.25), ms=3_500)
    (run,) = _folded(topic).runs()
    assert (run.status, run.place, run.end.accuracy, run.seconds) == ("finished", PLACE, 0.25, 2.5)
    assert [(epoch.epoch, epoch.val_accuracy) for epoch in run.curve] == [(1, 0.5)]
    assert run.kernels == {"s1": "k1"}
    assert [decider.policy for decider in run.deciders] == ["fixed"]


def test_runs_of_other_plans_and_none_are_passed_over() -> None:
    """Only what names this plan counts."""
    for label in ("", "mine", PLACE.label("b" * 64)):
        log = _folded(_begun(label=label))
        assert log.runs() == []
        assert log.run_ids == frozenset()


def test_a_fenced_attempt_says_nothing() -> None:
    """An end, a start or a packet of an attempt that a later claim fenced, or of who never held the run, is no word."""
    topic = _begun()
    topic.add(_packet(1, 0.1))
    topic.add(ly.TrainingRunClaimed(run_id="run-1", attempt=2, producer_id="p2"), producer="p2")
    topic.add(ly.TrainingRunFinished(run_id="run-1", attempt=1, accuracy=0.99))
    topic.add(ly.TrainingRunFinished(run_id="run-1", attempt=2, accuracy=0.98), producer="stranger")
    topic.add(ly.TrainingRunFailed(run_id="run-1", attempt=1, reason="late"))
    topic.add(_packet(1, 0.2, attempt=2), producer="p2")
    topic.add(_packet(2, 0.9, attempt=2), producer="stranger")
    (run,) = _folded(topic).runs()
    assert run.status == "open"
    assert [epoch.val_accuracy for epoch in run.curve] == [0.2]
    topic.add(ly.TrainingRunFinished(run_id="run-1", attempt=2, accuracy=0.5), producer="p2")
    (run,) = _folded(topic).runs()
    assert run.end.accuracy == 0.5


def test_the_first_end_counts() -> None:
    """A second end, whatever it says, changes nothing; one of two claims of an attempt does, the lower offset."""
    topic = _begun()
    topic.add(ly.TrainingRunClaimed(run_id="run-1", attempt=1, producer_id="p9"), producer="p9")
    topic.add(ly.TrainingRunFailed(run_id="run-1", attempt=0, reason="cancelled"))
    topic.add(ly.TrainingRunFinished(run_id="run-1", attempt=1, accuracy=0.9))
    (run,) = _folded(topic).runs()
    assert (run.status, run.reason, run.lost) == ("failed", "cancelled", True)
