"""The worker on the real broker: requests become runs, runs get an end, and no end of a worker loses one."""

from __future__ import annotations

import threading

import pytest
from confluent_kafka import Producer

from esper.core.errors import BrokerUnavailable, EsperError, OperationFailed
from esper.core.ids import derive_id, new_run_id
from esper.core.numerics import code_version, data_digest
from esper.core.ports import GraftController, KernelUnavailable
from esper.leyline import messages as ly
from esper.oona import Fabric, list_dead_letters
from esper.tolaria import ClaimBook, MemoryJournal, TolariaTrainer, TrainingSetup, claim, prepared, re_execute
from tests.tolaria.live import WORKER, Log, ask, eventually, neighbour, nudging, responder, worker
from tests.tolaria.small import NudgingController, request, rings, scripted

CONTINUE, SEED = ly.COMMAND_CONTINUE, ly.COMMAND_SEED


def in_memory(asked: ly.TrainingRunRequested, *types: ly.CommandType | None) -> list[str]:
    """Return the digests of the same request under the same commands, without a broker."""
    journal = MemoryJournal(policy=scripted(*types))
    with prepared(asked) as setup:
        TolariaTrainer(setup, nudging(setup), journal).run()
    return [packet.weights_digest for packet in journal.packets]


def test_a_request_becomes_a_finished_run(fabric: Fabric) -> None:
    """Goal: the whole life of a run is in the log. Method: request, answer each packet, read everything back."""
    asked = ask(fabric)
    log = Log(fabric, asked.run_id)
    types = {1: SEED, 2: CONTINUE, 3: ly.COMMAND_ROLLBACK}
    with responder(fabric, asked.run_id, lambda packet: types[packet.current_epoch]), worker(fabric):
        finished = log.finished()
    (claimed,), (started,) = log.of(ly.TrainingRunClaimed), log.of(ly.TrainingRunStarted)
    assert (claimed.attempt, claimed.worker, claimed.request_event_id) == (1, WORKER, asked.meta.event_id)
    assert (started.attempt, started.worker, started.resumed_epochs) == (1, WORKER, 0)
    assert (started.code_version, started.data_digest) == (code_version(), data_digest(rings().arrays()))
    assert started.numerics.threads == 1
    assert started.numerics.deterministic_algorithms
    packets, outcomes = log.of(ly.SystemStatePacket), log.of(ly.CommandOutcome)
    assert [packet.weights_digest for packet in packets] == in_memory(asked, SEED, CONTINUE, ly.COMMAND_ROLLBACK)
    assert [(outcome.epoch, outcome.result, outcome.reason) for outcome in outcomes] == [
        (1, ly.COMMAND_RESULT_APPLIED, ""),
        (2, ly.COMMAND_RESULT_APPLIED, ""),
        (3, ly.COMMAND_RESULT_REJECTED, "rollback_unavailable:no_checkpoint"),
    ]
    assert [outcome.meta.causation_id for outcome in outcomes] == [outcome.command_event_id for outcome in outcomes]
    assert all(0 < outcome.latency_ms < 10_000 for outcome in outcomes)
    assert (finished.epochs, finished.attempt, finished.parameters) == (3, 1, packets[-1].parameters)
    assert 0 <= finished.accuracy <= 1
    seeds = log.events("seed-events")
    assert [event.meta.source for event in seeds] == ["kasmina", "kasmina"]
    assert [event.meta.event_id for event in seeds] == [derive_id(asked.run_id, "seed", 1, n) for n in (1, 2)]
    assert re_execute(asked, outcomes, packets, nudging, finished=finished).equal


def test_without_a_controller_the_run_goes_on_and_says_so(fabric: Fabric) -> None:
    """Goal: training outlives Tamiyo. Method: nobody answers; two timeouts, then no more waiting."""
    asked = ask(fabric, epochs=4, decision_wait_seconds=0.05)
    log = Log(fabric, asked.run_id)
    with worker(fabric):
        log.finished()
    assert [outcome.reason for outcome in log.of(ly.CommandOutcome)] == ["timeout", "timeout"] + ["breaker_open"] * 2
    assert all(outcome.result == ly.COMMAND_RESULT_NONE for outcome in log.of(ly.CommandOutcome))


@pytest.mark.parametrize(
    ("fields", "reason", "words"),
    [
        ({"task": "mnist2d"}, "task_unusable", "the shipped tasks are charlm, digits, mnist1d, spirals"),
        ({"host": "huge"}, "task_unusable", "it has breaking, deaf, doomed, exploding, failing"),
        ({"hyperparameters": {"momentum": 1.0}}, "task_unusable", "there is no hyperparameter 'momentum'"),
        ({"task": "tests.tolaria.small:failing"}, "task_unusable", "ZeroDivisionError: in the user's factory"),
        ({"host": "exploding"}, "diverged", "the held-out loss is nan"),
        ({"host": "breaking"}, "crashed", "RuntimeError: the host broke"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unusable_request_fails_with_its_cause(
    fabric: Fabric, fields: dict[str, object], reason: str, words: str
) -> None:
    """Goal: no request crashes a worker. Method: a bad one, then a good one for the same worker."""
    bad = ask(fabric, **fields)
    with worker(fabric):
        failed = Log(fabric, bad.run_id).failed()
        good = ask(fabric, epochs=1, decision_wait_seconds=0.05)
        assert Log(fabric, good.run_id).finished().epochs == 1
    assert (failed.reason, failed.attempt, failed.epochs) == (reason, 1, 0)
    assert words in failed.detail


def test_an_interrupted_run_is_finished_by_the_next_life(fabric: Fabric) -> None:
    """Goal: SIGTERM loses nothing. Method: stop while epoch 3 waits; a second life repeats and goes on."""
    asked = ask(fabric, epochs=5, decision_wait_seconds=60)
    log = Log(fabric, asked.run_id)
    answering = threading.Event()
    expected = in_memory(asked, SEED, CONTINUE, SEED)

    def answers(packet: ly.SystemStatePacket) -> ly.CommandType | None:
        if packet.current_epoch == 3:
            answering.wait(60)
        return SEED if packet.current_epoch in (1, 3) else CONTINUE

    with responder(fabric, asked.run_id, answers):
        with worker(fabric):
            eventually(lambda: len(log.of(ly.SystemStatePacket)) == 3, what="three packets")
        assert log.end() is None
        assert len(log.of(ly.CommandOutcome)) == 2
        answering.set()
        with worker(fabric):
            finished = log.finished()
    assert finished.attempt == 2
    assert [claimed.attempt for claimed in log.of(ly.TrainingRunClaimed)] == [1, 2]
    assert [(started.attempt, started.resumed_epochs) for started in log.of(ly.TrainingRunStarted)] == [(1, 0), (2, 2)]
    packets, outcomes = log.of(ly.SystemStatePacket), log.of(ly.CommandOutcome)
    assert [packet.weights_digest for packet in packets] == expected
    assert [packet.attempt for packet in packets] == [1, 1, 1, 2, 2]
    assert [(outcome.epoch, outcome.attempt) for outcome in outcomes] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]
    assert all(outcome.result == ly.COMMAND_RESULT_APPLIED for outcome in outcomes)
    assert [event.epoch for event in log.of(ly.SeedStageChanged)] == [1, 3]


@pytest.mark.parametrize("otherwise", [False, True], ids=["alike", "otherwise"])
def test_an_attempt_that_goes_on_says_again_what_befell_seeds(fabric: Fabric, otherwise: bool) -> None:
    """Goal: what counts of an epoch is of the attempt that finished it. Method: a fault moves a seed at the edge of
    epoch 2, the worker stops before the outcome; its successor appends the move as its own, and under another id where
    it is another move, as when a kernel is no longer at hand."""

    def faulty(setup: TrainingSetup) -> NudgingController:
        controller = NudgingController(setup, faults=frozenset({2}))
        return _Renaming(setup, faults=controller.faults) if otherwise and setup.attempt == 2 else controller

    asked = ask(fabric, epochs=3, decision_wait_seconds=60)
    log = Log(fabric, asked.run_id)
    with (
        responder(fabric, asked.run_id, lambda packet: None if packet.current_epoch == 2 else CONTINUE),
        worker(fabric, controller_factory=faulty),
    ):
        eventually(lambda: len(log.of(ly.SystemStatePacket)) == 2, what="two packets")
    with responder(fabric, asked.run_id, lambda _: CONTINUE), worker(fabric, controller_factory=faulty):
        log.finished()
    first = derive_id(asked.run_id, "seed", 2, 1)
    second = derive_id(first, "attempt", 2) if otherwise else first
    moves = [(event.meta.event_id, event.message) for event in log.events("seed-events")]
    assert [(event_id, move.attempt, move.blueprint_id) for event_id, move in moves] == [
        (first, 1, ""),
        (second, 2, "BP999" if otherwise else ""),
    ]


class _Renaming(NudgingController):
    """Tells of another blueprint."""

    def _move(self, epoch: int, reason: str) -> ly.SeedStageChanged:
        moved = super()._move(epoch, reason)
        moved.blueprint_id = "BP999"
        return moved


def test_a_successor_that_does_not_repeat_fails_the_run(fabric: Fabric) -> None:
    """Goal: nothing is built on a state that is not the log's. Method: a recorded digest that no run gives."""
    asked = ask(fabric, epochs=2)
    run_id = asked.run_id
    with fabric.publisher("tolaria") as publisher:
        book = ClaimBook(fabric)
        assert claim(book, publisher, asked, worker=WORKER, attempt=1) is not None
        packet = ly.SystemStatePacket(training_run_id=run_id, current_epoch=1, weights_digest="0" * 64, attempt=1)
        publisher.publish(packet, key=run_id, event_id=derive_id(run_id, "state", 1))
        outcome = ly.CommandOutcome(run_id=run_id, epoch=1, attempt=1, result=ly.COMMAND_RESULT_NONE)
        publisher.publish(outcome, key=run_id, event_id=derive_id(run_id, "outcome", 1))
    with worker(fabric):
        failed = Log(fabric, run_id).failed()
    assert (failed.reason, failed.attempt) == ("digest_mismatch", 2)
    assert "weights_digest" in failed.detail


def test_after_three_lost_attempts_a_run_is_given_up(fabric: Fabric) -> None:
    """Goal: a run that kills its worker does not do so for ever. Method: three claims without an end."""
    asked = ask(fabric)
    with fabric.publisher("tolaria") as publisher:
        book = ClaimBook(fabric)
        for attempt in (1, 2, 3):
            assert claim(book, publisher, asked, worker=WORKER, attempt=attempt) is not None
    with worker(fabric):
        failed = Log(fabric, asked.run_id).failed()
    assert (failed.reason, failed.attempt) == ("worker_lost", 3)


def test_the_run_of_a_dead_worker_falls_to_another_of_its_home(fabric: Fabric) -> None:
    """Goal: no run waits for a worker that never returns. Method: a member that does not live claimed it; so did one
    of another home, whose run is left alone.
    """
    ours, theirs = (ask(fabric, epochs=1, decision_wait_seconds=0.05) for _ in range(2))
    with fabric.publisher("tolaria") as publisher:
        for asked, home_id in ((ours, fabric.home.home_id), (theirs, "f" * 32)):
            book = ClaimBook(fabric)
            assert claim(book, publisher, asked, worker="tolaria-7", attempt=1, home_id=home_id) is not None
    with worker(fabric):
        assert Log(fabric, ours.run_id).finished().attempt == 2
    assert Log(fabric, theirs.run_id).end() is None


def test_what_is_not_this_workers_to_train_is_left_alone(fabric: Fabric) -> None:
    """Goal: one worker a run. Method: a run claimed elsewhere, a user's own loop, then a request of ours."""
    elsewhere = ask(fabric)
    own_loop = ask(fabric, run_id=neighbour(fabric, elsewhere.run_id), re_executable=False)
    ours = ask(fabric, run_id=neighbour(fabric, elsewhere.run_id), epochs=1, decision_wait_seconds=0.05)
    with fabric.publisher("tolaria") as publisher:
        assert claim(ClaimBook(fabric), publisher, elsewhere, worker="tolaria-elsewhere", attempt=1) is not None
    with worker(fabric):
        # Requests of one partition keep their order: when the last is done, the others were seen.
        Log(fabric, ours.run_id).finished()
    assert Log(fabric, elsewhere.run_id).end() is None
    assert [claimed.worker for claimed in Log(fabric, elsewhere.run_id).of(ly.TrainingRunClaimed)] == [
        "tolaria-elsewhere"
    ]
    assert Log(fabric, own_loop.run_id).events("runs") == []


@pytest.mark.parametrize("decided", ["alike", "otherwise"])
def test_half_an_edge_is_completed(fabric: Fabric, decided: str) -> None:
    """Goal: what counts of an edge is of the attempt that finished it. Method: die between seed events and outcome."""
    asked = ask(fabric, epochs=2, decision_wait_seconds=60)
    run_id = asked.run_id
    journal = MemoryJournal(policy=scripted(SEED))
    with prepared(asked) as setup:
        TolariaTrainer(setup, nudging(setup), journal).run_epoch(1)
    if decided == "otherwise":
        for event in journal.seed_events:
            event.seed_id = "body.2"  # type: ignore[attr-defined]
    with fabric.publisher("tolaria") as publisher, fabric.publisher("kasmina") as seed_publisher:
        assert claim(ClaimBook(fabric), publisher, asked, worker=WORKER, attempt=1) is not None
        publisher.publish(journal.packets[0], key=run_id)
        for event in journal.seed_events:
            seed_publisher.publish(event, key=run_id)
    log = Log(fabric, run_id)
    with responder(fabric, run_id, lambda packet: SEED if packet.current_epoch == 1 else CONTINUE):
        eventually(lambda: log.events("adaptation-commands"), what="a command before the successor starts")
        with worker(fabric):
            assert log.finished().attempt == 2
    packets, outcomes = log.of(ly.SystemStatePacket), log.of(ly.CommandOutcome)
    assert [packet.attempt for packet in packets] == [1, 2]
    assert [outcome.result for outcome in outcomes] == [ly.COMMAND_RESULT_APPLIED] * 2
    ids = [event.meta.event_id for event in log.events("seed-events")]
    moves = [derive_id(run_id, "seed", 1, n) for n in (1, 2)]
    assert ids == moves + (moves if decided == "alike" else [derive_id(one, "attempt", 2) for one in moves])
    assert [move.attempt for move in log.of(ly.SeedStageChanged)] == [1, 2]
    assert re_execute(asked, outcomes, packets, nudging).equal


def test_a_claim_whose_request_is_lost_is_given_up(fabric: Fabric) -> None:
    """Goal: a hole in the log stops no worker. Method: claim a run that was never requested, then ask for another."""
    orphan = request(str(new_run_id()))
    with fabric.publisher("tolaria") as publisher:
        assert claim(ClaimBook(fabric), publisher, orphan, worker=WORKER, attempt=1) is not None
    with worker(fabric):
        failed = Log(fabric, orphan.run_id).failed()
    assert failed.reason == "request_lost"
    assert "does not hold its request" in failed.detail


def test_a_worker_that_loses_the_broker_leaves_its_run_to_its_next_life(fabric: Fabric) -> None:
    """Goal: a passing fault ends the process, not the run. Method: the first life meets one, the second does not."""
    asked = ask(fabric, epochs=1, decision_wait_seconds=0.05)

    def unreachable(_: TrainingSetup) -> GraftController:
        raise BrokerUnavailable("the broker is away")

    with pytest.raises(BrokerUnavailable), worker(fabric, controller_factory=unreachable):
        eventually(lambda: Log(fabric, asked.run_id).of(ly.TrainingRunClaimed), what="a claim")
    assert Log(fabric, asked.run_id).end() is None
    with worker(fabric):
        assert Log(fabric, asked.run_id).finished().attempt == 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KernelUnavailable("no kernel", reason="not_found"), "kernel_unavailable"),
        (OperationFailed("something else"), "failed"),
    ],
)
def test_what_a_controller_cannot_do_ends_the_run(fabric: Fabric, error: EsperError, reason: str) -> None:
    """Goal: each lasting fault has its word. Method: a controller that cannot be made."""
    asked = ask(fabric)

    def failing(_: TrainingSetup) -> GraftController:
        raise error

    with worker(fabric, controller_factory=failing):
        assert Log(fabric, asked.run_id).failed().reason == reason


def test_a_fenced_worker_appends_nothing_more(fabric: Fabric) -> None:
    """Goal: one attempt at a time. Method: another worker claims attempt 2 while the first waits for a command."""
    asked = ask(fabric, decision_wait_seconds=60)
    log = Log(fabric, asked.run_id)
    with worker(fabric), fabric.publisher("tolaria") as other:
        eventually(lambda: log.of(ly.SystemStatePacket), what="a packet")
        assert claim(ClaimBook(fabric), other, asked, worker="tolaria-other", attempt=2) is not None
        after = ask(fabric, epochs=1, decision_wait_seconds=0.05)
        Log(fabric, after.run_id).finished()
    assert log.end() is None
    assert log.of(ly.CommandOutcome) == []
    assert len(log.of(ly.SystemStatePacket)) == 1


def test_of_two_claims_the_lower_offset_wins(fabric: Fabric) -> None:
    """Goal: exactly one winner. Method: two workers with books that know of no claim yet claim one attempt."""
    asked = ask(fabric)
    with fabric.publisher("tolaria") as first, fabric.publisher("tolaria") as second:
        books = ClaimBook(fabric), ClaimBook(fabric)
        winner = claim(books[0], first, asked, worker="one", attempt=1)
        loser = claim(books[1], second, asked, worker="two", attempt=1)
        assert winner is not None
        assert loser is None
        assert claim(books[0], first, asked, worker="one", attempt=1) == winner
        run = books[1].run(asked.run_id)
        assert run is not None
        assert (run.worker, run.attempt) == ("one", 1)
        first.publish(ly.TrainingRunFailed(run_id=asked.run_id, attempt=1, reason="test"), key=asked.run_id)
        books[1].catch_up()
        assert claim(books[1], second, asked, worker="two", attempt=2) is None


def test_forged_commands_are_set_aside_and_change_nothing(fabric: Fabric) -> None:
    """Goal: only authentic commands count. Method: junk and an unsigned command, then a true one."""
    asked = ask(fabric, epochs=2, decision_wait_seconds=30)
    log = Log(fabric, asked.run_id)
    place = ("adaptation-commands", fabric.partition_of("adaptation-commands", asked.run_id))
    forged = ly.AdaptationCommand(command_id="f", command_type=SEED, training_run_id=asked.run_id, epoch=1)
    forged.meta.causation_id = derive_id(asked.run_id, "state", 1)
    raw = Producer({"bootstrap.servers": fabric.bootstrap})
    with worker(fabric):
        eventually(lambda: log.of(ly.SystemStatePacket), what="a packet to forge an answer to")
        for value in (b"junk", b"", forged.SerializeToString()):
            raw.produce(*place[:1], partition=place[1], key=asked.run_id.encode(), value=value)
        assert raw.flush(30) == 0
        with responder(fabric, asked.run_id, lambda _: CONTINUE):
            log.finished()
    outcomes = log.of(ly.CommandOutcome)
    assert [outcome.command_type for outcome in outcomes] == [CONTINUE, CONTINUE]
    assert all(outcome.result == ly.COMMAND_RESULT_APPLIED and not outcome.late_commands for outcome in outcomes)
    rows = [row for row in list_dead_letters(fabric) if (row.topic, row.key) == (place[0], asked.run_id)]
    assert len(rows) == 3


def test_telemetry_of_each_epoch_is_in_the_log(fabric: Fabric) -> None:
    """Goal: the figures of the brief are emitted. Method: one run of two epochs; look for its packets."""
    asked = ask(fabric, epochs=2, decision_wait_seconds=0.05)
    with worker(fabric):
        Log(fabric, asked.run_id).finished()
    with fabric.reader({("telemetry", 0): "begin"}) as reader:
        packets = [event.message for event in reader.read_to_end() if event.meta.correlation_id == asked.run_id]
    assert len(packets) == 2
    for packet in packets:
        assert isinstance(packet, ly.TelemetryPacket)
        assert "tolaria.epoch_hook.latency_ms" in {point.name for point in packet.metrics}
