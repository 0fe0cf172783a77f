"""Which commands a run may apply."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.core.errors import IntegrityError
from esper.kasmina import COMMAND_REASONS, CommandVerifier, NonceLedger, RunCommandVerifier
from esper.leyline import messages as ly

RUN, WINDOW_SECONDS = "run-1", 60.0
ISSUED_MS = 1_700_000_000_000
VERIFIER = CommandVerifier(WINDOW_SECONDS)


def packet(epoch: int, *, run: str = RUN) -> ly.SystemStatePacket:
    """Return the state packet of an epoch."""
    message = ly.SystemStatePacket(training_run_id=run, current_epoch=epoch)
    message.meta.event_id = f"packet-{epoch}"
    return message


def outcome(epoch: int, command: ly.AdaptationCommand | None = None, *, run: str = RUN) -> ly.CommandOutcome:
    """Return an epoch's outcome, naming the command that it was decided on."""
    message = ly.CommandOutcome(run_id=run, epoch=epoch, state_event_id=f"packet-{epoch}")
    if command is not None:
        message.command_id, message.command_event_id = command.command_id, command.meta.event_id
    return message


def command(cause: str, *, name: str = "c", run: str = RUN, timed: bool = True) -> ly.AdaptationCommand:
    """Return a command that answers `cause` ("packet-EPOCH"), issued at ISSUED_MS."""
    epoch = cause.removeprefix("packet-")
    message = ly.AdaptationCommand(command_id=name, training_run_id=run, epoch=int(epoch) if epoch.isdigit() else 0)
    message.meta.event_id = f"event-{name}"
    message.meta.causation_id = cause
    if timed:
        message.meta.time.FromMilliseconds(ISSUED_MS)
    return message


def refusal(ledger: NonceLedger, given_command: ly.AdaptationCommand, *, delay_ms: int = 5) -> str:
    """Return the reason for which a command appended `delay_ms` after its issue is refused, or "ok"."""
    verdict = VERIFIER.verify(given_command, ledger, append_time_ms=ISSUED_MS + delay_ms)
    assert verdict.applicable == (verdict.reason == "ok")
    return verdict.reason


def ledger_of(*events: ly.SystemStatePacket | ly.CommandOutcome) -> NonceLedger:
    """Fold events into a new ledger."""
    ledger = NonceLedger(RUN)
    for event in events:
        ledger = ledger.fold(event)
    return ledger


def test_the_answer_to_the_latest_packet_is_applicable_once() -> None:
    """Goal: one command per packet. Method: the answer before and after the packet has its outcome."""
    ledger, answer = ledger_of(packet(1)), command("packet-1")
    assert refusal(ledger, answer) == "ok"
    ledger = ledger.fold(outcome(1, answer))
    assert refusal(ledger, answer) == "nonce_replayed"
    assert refusal(ledger, command("packet-1", name="d")) == "late_command", "another answer comes too late"


@pytest.mark.parametrize(
    ("given_command", "reason"),
    [
        (command("packet-2", run="run-2"), "foreign_run"),
        (command("packet-2", name=""), "missing_command_id"),
        (command("packet-2", timed=False), "missing_timestamp"),
        (command("packet-1", name="used"), "nonce_replayed"),
        (command("packet-2", name="used"), "nonce_replayed"),
        (command("packet-9"), "unknown_packet"),
        (command(""), "unknown_packet"),
        (command("packet-1"), "late_command"),
    ],
)
def test_each_refusal_has_its_name(given_command: ly.AdaptationCommand, reason: str) -> None:
    """Goal: late, replayed and foreign commands are told apart. Method: one of each against epoch 2 of a run."""
    assert reason in COMMAND_REASONS
    assert (
        refusal(ledger_of(packet(1), outcome(1, command("packet-1", name="used")), packet(2)), given_command) == reason
    )


def test_a_slow_producer_is_refused_and_uses_nothing_up() -> None:
    """Goal: the window holds, and a stale command does not burn its id. Method: at, past and again within it."""
    ledger, answer = ledger_of(packet(1)), command("packet-1")
    assert refusal(ledger, answer, delay_ms=60_001) == "stale_command"
    assert refusal(ledger, answer, delay_ms=60_000) == "ok"
    assert refusal(ledger, answer, delay_ms=-3_600_000) == "ok", "a fast clock of the producer decides nothing"


def test_the_first_packet_and_outcome_of_an_epoch_bind() -> None:
    """Goal: a second attempt cannot re-open an epoch. Method: doubled packets and outcomes."""
    first, second = command("packet-1", name="a"), command("packet-1", name="b")
    twin = packet(1)
    twin.meta.event_id = "packet-1-again"
    ledger = ledger_of(packet(1), twin, outcome(1, first), outcome(1, second))
    assert dict(ledger.packets) == {"packet-1": 1}
    assert ledger.latest_packet == "packet-1"
    assert dict(ledger.outcomes) == {"packet-1": "event-a"}
    assert ledger.command_ids == {"a"}


def test_foreign_events_are_not_folded() -> None:
    """Goal: a ledger is one run's. Method: another run's packet and outcome."""
    for event in (packet(1, run="run-2"), outcome(1, run="run-2")):
        with pytest.raises(IntegrityError, match="run-2"):
            NonceLedger(RUN).fold(event)


@dataclass
class Model:
    """What a run remembers, told a second time without any fold: for comparison."""

    epoch: int = 0
    answered: bool = True

    def expects(self, cause: str) -> bool:
        """Whether a fresh, timely command with this cause may be applied."""
        return self.epoch > 0 and not self.answered and cause == f"packet-{self.epoch}"


@given(st.lists(st.tuples(st.sampled_from(["packet", "none", "command", "replay"]), st.integers(0, 6)), max_size=40))
def test_exactly_one_command_per_epoch_is_ever_applied(script: list[tuple[str, int]]) -> None:
    """Goal: applicable iff it answers the latest packet, which has no outcome. Method: random interleavings of
    packets, silent outcomes, new commands with any cause and replays of used ones, against a second model; a
    ledger folded anew from the log (a restart) must agree at every step.
    """
    log: list[ly.SystemStatePacket | ly.CommandOutcome] = []
    model, applied, used = Model(), [], []
    for index, (kind, number) in enumerate(script):
        if kind == "packet" and model.answered:
            model.epoch, model.answered = model.epoch + 1, False
            log.append(packet(model.epoch))
        elif kind == "none" and not model.answered:
            log.append(outcome(model.epoch))
            model.answered = True
        elif kind == "command":
            answer = command(f"packet-{number}", name=f"c{index}")
            verdict = refusal(ledger_of(*log), answer)
            assert (verdict == "ok") == model.expects(f"packet-{number}")
            if verdict == "ok":
                log.append(outcome(model.epoch, answer))
                applied.append(model.epoch)
                used.append(answer)
                model.answered = True
        elif kind == "replay" and used:
            assert refusal(ledger_of(*log), used[number % len(used)]) == "nonce_replayed"
    assert len(applied) == len(set(applied))


def test_an_answer_that_names_another_epoch_is_refused() -> None:
    """Goal: what a command says of itself is true. Method: the right cause with another packet's epoch."""
    answer = command("packet-1")
    answer.epoch = 77
    assert refusal(ledger_of(packet(1)), answer) == "wrong_epoch"


def test_the_run_verifier_says_what_its_ledger_says() -> None:
    """Goal: the trainer's judge is the same fold. Method: packet, answer, outcome through its two methods."""
    judge, answer = RunCommandVerifier(RUN, window_seconds=WINDOW_SECONDS), command("packet-1")
    assert judge.refusal(answer, append_time_ms=ISSUED_MS) == "unknown_packet"
    judge.fold(packet(1))
    assert judge.refusal(answer, append_time_ms=ISSUED_MS) == ""
    judge.fold(outcome(1, answer))
    assert judge.refusal(answer, append_time_ms=ISSUED_MS) == "nonce_replayed"


def order(first: int, last: int, *, name: str = "o", source: str = "cli") -> ly.AdaptationCommand:
    """Return an operator's command for the epochs from `first` to `last`."""
    message = ly.AdaptationCommand(command_id=name, training_run_id=RUN, first_epoch=first, last_epoch=last)
    message.meta.event_id = f"event-{name}"
    message.meta.source = source
    message.meta.time.FromMilliseconds(ISSUED_MS)
    return message


def test_an_operator_s_command_is_applicable_within_its_epochs_once() -> None:
    """Goal: run and epochs name where an order counts. Method: epochs 2 to 3 of a run, before, within, after."""
    ordered = order(2, 3)
    ledger = ledger_of()
    assert refusal(ledger, ordered) == "not_yet", "the run has no packet yet"
    ledger = ledger.fold(packet(1))
    assert refusal(ledger, ordered) == "not_yet"
    ledger = ledger.fold(outcome(1)).fold(packet(2))
    assert refusal(ledger, ordered) == "ok"
    unused = ledger.fold(outcome(2))
    assert refusal(unused, ordered) == "not_yet", "this edge is over, the next is named too"
    unused = unused.fold(packet(3))
    assert refusal(unused, ordered) == "ok"
    assert refusal(unused.fold(outcome(3)), ordered) == "late_command"
    used = ledger.fold(outcome(2, ordered)).fold(packet(3))
    assert refusal(used, ordered) == "nonce_replayed"
    assert refusal(used, order(2, 3, name="another")) == "ok"


@pytest.mark.parametrize(
    ("ordered", "delay_ms", "reason"),
    [
        (order(1, 4, source="tamiyo"), 5, "not_an_operator"),
        (order(4, 1), 5, "bad_epochs"),
        (order(0, 4), 5, "bad_epochs"),
        (order(1, 0), 5, "bad_epochs"),
        (order(1, 1), 5, "late_command"),
        (order(1, 4), 60_001, "stale_command"),
        (order(3, 4), 60_001, "stale_command"),
        (order(3, 4), 60_000, "not_yet"),
        (order(1, 2), 5, "ok"),
    ],
)
def test_an_operator_s_command_is_refused_by_name(ordered: ly.AdaptationCommand, delay_ms: int, reason: str) -> None:
    """Goal: every refusal of an order has its reason. Method: one of each at the edge of epoch 2."""
    ledger = ledger_of(packet(1), outcome(1), packet(2))
    assert reason in (*COMMAND_REASONS, "ok")
    assert refusal(ledger, ordered, delay_ms=delay_ms) == reason


def test_neither_packet_nor_cause_lets_an_answer_pass_as_an_order() -> None:
    """Goal: the epochs decide which rule holds. Method: an answer's cause beside epochs that are over."""
    ledger = ledger_of(packet(1), outcome(1), packet(2))
    both = order(1, 1)
    both.meta.causation_id = "packet-2"
    both.epoch = 2
    assert refusal(ledger, both) == "late_command"
