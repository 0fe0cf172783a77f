"""Orders about a whole run on the real broker: a return that a successor repeats, and an emergency that is heard."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.tolaria import MemoryJournal, ReturnPoints, TolariaTrainer, prepared, re_execute
from tests.tolaria.grafting import Kept
from tests.tolaria.live import Log, ask, eventually, responder, worker
from tests.tolaria.test_checkpoints import manager
from tests.tolaria.test_rollback import EPOCHS, SEED, SPOILT, orders, rollback


@pytest.fixture
def keeping(fabric: Fabric) -> Iterator[Fabric]:
    """The broker's fabric, with a checkpoint every two epochs."""
    opened = Fabric.open(fabric.settings.model_copy(update={"checkpoint_every_epochs": 2}), member="test-returns")
    try:
        yield opened
    finally:
        opened.close()


class Even(Kept):
    """Keeps the checkpoints that a worker keeps."""

    def wants(self, epoch: int) -> bool:
        return epoch % 2 == 0


def test_a_return_is_in_the_log_and_is_taken_over(keeping: Fabric) -> None:
    """Goal: a run that went back is anybody's to finish and to verify. Method: a host that is spoilt in epoch 6 with a
    seed in BLENDING, an order to go back to epoch 2 at epoch 8; the worker is stopped after each of the two; the end is
    that of a run without a broker, and the record repeats."""
    asked = ask(keeping, host="fragile_nan", epochs=EPOCHS + 2, seed=SEED, decision_wait_seconds=60.0)
    log, policy = Log(keeping, asked.run_id), orders("blending", e8=rollback(2))

    def until(epoch: int) -> None:
        """Let a life of the worker go on to the packet of `epoch`, and stop it there."""
        answers = responder(keeping, asked.run_id, lambda one: policy(one) if one.current_epoch < epoch else None)
        with answers, worker(keeping, controller_factory=manager):
            eventually(lambda: len(log.of(ly.SystemStatePacket)) == epoch, what=f"the packet of epoch {epoch}")

    until(SPOILT + 1)
    until(9)
    with responder(keeping, asked.run_id, policy), worker(keeping, controller_factory=manager):
        finished = log.finished()
    returns = log.of(ly.RunRolledBack)
    assert [(one.from_epoch, one.to_epoch, one.reason) for one in returns] == [
        (SPOILT, 4, "fault:loss_not_finite"),
        (8, 2, "command"),
    ]
    outcomes, packets = log.of(ly.CommandOutcome), log.of(ly.SystemStatePacket)
    assert [outcome.epoch for outcome in outcomes] == list(range(1, EPOCHS + 3))
    assert [outcome.rolled_back.to_epoch for outcome in outcomes if outcome.HasField("rolled_back")] == [4, 2]
    assert finished.digest == alone(asked)
    comparison = re_execute(
        asked, outcomes, packets, manager, finished=finished, checkpoints=log.of(ly.CheckpointSaved)
    )
    assert comparison.equal, comparison.first_difference


def alone(asked: ly.TrainingRunRequested) -> str:
    """Return the end's digest of the same run without a broker, which holds all it keeps in memory."""
    policy = orders("blending", e8=rollback(2))
    points = ReturnPoints(recorded={8: ly.RunRolledBack(from_epoch=8, to_epoch=2)})
    with prepared(asked) as setup:
        trainer = TolariaTrainer(setup, manager(setup), MemoryJournal(policy=policy), checkpoints=Even(), points=points)
        return trainer.run().digest


def test_a_halt_on_the_topic_emergency_is_heeded_once(fabric: Fabric) -> None:
    """Goal: an emergency is heard before the policy and said in the outcome. Method: raise HALT for the run while it
    waits; its seed goes in that edge, growth is halted until an operator resumes, a restart does not halt it again."""
    asked = ask(fabric, epochs=8, seed=SEED, decision_wait_seconds=60.0)
    log, policy = Log(fabric, asked.run_id), orders("training")

    def raised(packet: ly.SystemStatePacket) -> ly.AdaptationCommand | None:
        if packet.current_epoch == 4:
            with fabric.publisher("cli") as publisher:
                publisher.raise_emergency(ly.EMERGENCY_LEVEL_HALT, "smoke", run_id=asked.run_id)
        return policy(packet) if packet.current_epoch < 7 else None

    with responder(fabric, asked.run_id, raised), worker(fabric, controller_factory=manager):
        eventually(lambda: len(log.of(ly.SystemStatePacket)) == 7, what="the packet of epoch 7")
    with responder(fabric, asked.run_id, policy), worker(fabric, controller_factory=manager):
        finished = log.finished()
    heeded = [one for one in log.of(ly.CommandOutcome) if one.command_type == ly.COMMAND_EMERGENCY]
    (outcome,) = heeded
    assert outcome.result == ly.COMMAND_RESULT_APPLIED
    assert outcome.epoch in (4, 5)
    assert outcome.command.annotations["reason"] == "smoke"
    assert outcome.meta.priority == ly.MESSAGE_PRIORITY_CRITICAL
    (seed,) = finished.seeds
    assert seed.stage in (ly.SEED_STAGE_EMBARGOED, ly.SEED_STAGE_DORMANT)
    assert log.of(ly.SystemStatePacket)[-1].growth.halted
    with fabric.reader({("emergency", 0): "begin"}) as reader:
        signals = [event.message for event in reader.read_to_end() if event.message.run_id == asked.run_id]  # type: ignore[attr-defined]
    assert [one.level for one in signals] == [ly.EMERGENCY_LEVEL_HALT, ly.EMERGENCY_LEVEL_ELEVATED]
    assert signals[1].origin_event_id == outcome.meta.event_id
    packets = log.of(ly.SystemStatePacket)
    assert re_execute(asked, log.of(ly.CommandOutcome), packets, manager, finished=finished).equal
