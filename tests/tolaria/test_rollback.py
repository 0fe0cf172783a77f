"""Returns to a checkpoint: byte for byte, said in the log, repeated and taken over like everything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from esper.core.checkpoint import Saved, read_checkpoint
from esper.core.ids import sha256_hex
from esper.core.kernel import BlobStore, DirectoryBlobStore
from esper.leyline import messages as ly
from esper.tolaria import (
    Checkpoint,
    MemoryJournal,
    Recording,
    ResumingJournal,
    TolariaTrainer,
    TrainingDiverged,
    TrainingResult,
    prepared,
    re_execute,
)
from esper.tolaria.record._checkpoint import Position, capture_run
from esper.tolaria.record._points import ReturnPoints
from tests.tolaria.grafting import Kept
from tests.tolaria.small import Policy, command, request, scheduled
from tests.tolaria.test_checkpoints import manager

EPOCHS = 9
#: With this seed the fragile hosts are spoilt in epoch 6 and in no other of the first 14.
SEED, SPOILT = 15, 6
GROWTH: Mapping[str, Mapping[int, ly.SeedOperation]] = {
    "bare": {},
    "training": {2: ly.SEED_OP_GERMINATE},
    "blending": {1: ly.SEED_OP_GERMINATE, 4: ly.SEED_OP_START_GRAFTING},
}


def asked(host: str, **hyperparameters: float) -> ly.TrainingRunRequested:
    made = request(host=host, epochs=EPOCHS, hyperparameters=hyperparameters)
    made.seed = SEED
    return made


def orders(growth: str = "bare", **at: ly.AdaptationCommand) -> Policy:
    """Return a policy that grows as `growth` says and gives the commands of `at` ("e7") at their epochs."""
    usual = scheduled(GROWTH[growth])

    def answer(packet: ly.SystemStatePacket) -> ly.AdaptationCommand | None:
        wish = at.get(f"e{packet.current_epoch}")
        if wish is None:
            return usual(packet)
        made = command(packet, wish.command_type)
        made.MergeFrom(wish)
        return made

    return answer


def rollback(epoch: float | None = None) -> ly.AdaptationCommand:
    wish = ly.AdaptationCommand(command_type=ly.COMMAND_ROLLBACK)
    if epoch is not None:
        wish.rollback_payload.update({"to_epoch": epoch})
    return wish


def adjustment(optimizer: str = "host", **values: float) -> ly.AdaptationCommand:
    return ly.AdaptationCommand(
        command_type=ly.COMMAND_OPTIMIZER,
        optimizer_adjustment=ly.CommandOptimizerAdjustment(optimizer_id=optimizer, hyperparameters=values),
    )


@dataclass
class Lived:
    """A run in memory, with the checkpoint of every epoch that had none of a fault, and how it stood after a return."""

    asked: ly.TrainingRunRequested
    journal: MemoryJournal
    kept: Kept = field(default_factory=Kept)
    stood: dict[int, Saved] = field(default_factory=dict)
    result: TrainingResult | None = None

    @property
    def recording(self) -> Recording:
        return Recording.of(self.journal.packets, self.journal.outcomes)

    @property
    def saved(self) -> list[ly.CheckpointSaved]:
        return [
            ly.CheckpointSaved(epoch=one.epoch, blob_digest=sha256_hex(one.content), weights_digest=one.weights_digest)
            for one in self.kept.checkpoints.values()
        ]


def standing(trainer: TolariaTrainer, epoch: int) -> Saved:
    """Return all that the trainer consists of now."""
    return read_checkpoint(capture_run(trainer._state, Position(epoch, trainer._edge.seed_events)))


def live(
    wish: ly.TrainingRunRequested, policy: Policy, *, kept: Kept | None = None, points: ReturnPoints | None = None
) -> Lived:
    """Train a run to its end and look at it after every return."""
    lived = Lived(wish, MemoryJournal(policy=policy), kept or Kept())
    with prepared(wish) as setup:
        trainer = TolariaTrainer(setup, manager(setup), lived.journal, checkpoints=lived.kept, points=points)
        for epoch in range(1, wish.epochs + 1):
            if trainer.run_epoch(epoch).HasField("rolled_back"):
                lived.stood[epoch] = standing(trainer, epoch)
        lived.result = trainer.result()
    assert [outcome.epoch for outcome in lived.journal.outcomes] == list(range(1, wish.epochs + 1))
    return lived


def same(found: Saved, kept: Checkpoint) -> None:
    """Hold what stands against a checkpoint: every tensor, and what facts no return leaves as they are."""
    expected = read_checkpoint(kept.content)
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        there, here = (one.contiguous().reshape(-1).view(torch.uint8) for one in (tensor, found.tensors[name]))
        assert torch.equal(there, here), name
    for name in ("seeds", "isolation"):
        facts = [one["controller"].get(name) for one in (found.facts, expected.facts)]
        if name == "isolation" and facts[0] is not None:
            facts = [{key: value for key, value in one.items() if key != "epoch"} for one in facts]
        assert facts[0] == facts[1]


def verified(lived: Lived, wish: ly.TrainingRunRequested | None = None) -> None:
    """Compute the run again from its record, checkpoints and end too."""
    result = lived.result
    assert result is not None
    finished = ly.TrainingRunFinished(digest=result.digest, accuracy=result.test.accuracy, loss=result.test.loss)
    comparison = re_execute(
        wish or lived.asked,
        lived.journal.outcomes,
        lived.journal.packets,
        manager,
        finished=finished,
        checkpoints=lived.saved,
    )
    assert comparison.equal, comparison.first_difference


@contextmanager
def successor(lived: Lived, start: int, until: int) -> Iterator[TolariaTrainer]:
    """Take a run over that was cut off after `until` epochs, from the checkpoint of `start` (0: from its beginning)."""
    recording = lived.recording.until(until)
    points = ReturnPoints(recorded=recording.returns(), repeated_epochs=until)
    if start:
        for epoch, one in lived.kept.checkpoints.items():
            if epoch < start:
                points.keep(one)
    journal = ResumingJournal(recording, MemoryJournal(policy=lived.journal.policy))
    torch.rand(5)
    with prepared(lived.asked, attempt=2) as setup:
        trainer = TolariaTrainer(setup, manager(setup), journal, checkpoints=Kept(), points=points)
        if start:
            trainer.resume(lived.kept.checkpoints[start].content, recording.packets[start], past=recording)
        yield trainer


CASES = [
    (host, growth, bfloat16)
    for host in ("fragile_nan", "fragile_spike")
    for growth in GROWTH
    for bfloat16 in ((False, True) if growth != "training" else (False,))
]


@pytest.mark.parametrize(("host", "growth", "bfloat16"), CASES)
def test_a_fault_is_answered_by_a_return_that_is_byte_equal_and_says_so(host: str, growth: str, bfloat16: bool) -> None:
    """Goal: the issue's own test. Method: a host that is spoilt in epoch 6, as NaN and as a spike, with no seed, one in
    TRAINING and one in BLENDING; all tensors after the return are the checkpoint's, the log says which, the run ends on
    its feet, and it is verified."""
    lived = live(asked(host, bfloat16=float(bfloat16)), orders(growth))
    outcome = lived.journal.outcomes[SPOILT - 1]
    reason = "fault:loss_not_finite" if host == "fragile_nan" else "fault:loss_spike"
    target = lived.kept.checkpoints[SPOILT - 1]
    assert SPOILT not in lived.kept.checkpoints, "what is spoilt is never kept"
    assert (outcome.result, outcome.reason) == (ly.COMMAND_RESULT_REJECTED, reason)
    (event,) = lived.journal.returns
    assert event == outcome.rolled_back
    assert (event.from_epoch, event.to_epoch, event.reason) == (SPOILT, SPOILT - 1, reason)
    assert (event.rate_factor, event.faults) == (0.5, 1)
    assert event.digest_before == lived.journal.packets[SPOILT - 1].weights_digest
    assert event.digest_after == target.weights_digest == lived.journal.packets[SPOILT - 2].weights_digest
    assert event.checkpoint_digest == sha256_hex(target.content)
    same(lived.stood[SPOILT], target)
    after, before = lived.journal.packets[SPOILT], lived.journal.packets[SPOILT - 2]
    assert after.validation_loss < 2 * before.validation_loss
    assert after.current_epoch == SPOILT + 1
    stages = [[seed.stage for seed in packet.seed_states] for packet in (before, after)]
    wanted = {"bare": [], "training": [ly.SEED_STAGE_TRAINING], "blending": [ly.SEED_STAGE_BLENDING]}[growth]
    assert stages == [wanted, wanted]
    verified(lived)


@pytest.mark.parametrize(("start", "until"), [(0, 5), (0, 6), (0, 7), (3, 6), (5, 6), (5, 8), (7, 8), (8, 8)])
def test_a_run_is_taken_over_before_at_and_after_its_return(start: int, until: int) -> None:
    """Goal: a successor goes where the record went. Method: cut the run off around its return and begin again from the
    start and from checkpoints on both sides; the end is the undisturbed run's."""
    lived = live(asked("fragile_nan"), orders("blending"))
    with successor(lived, start, until) as trainer:
        assert trainer.run() == lived.result


@dataclass
class Stored(Kept):
    """Keeps them in a store as well, as a worker does."""

    store: BlobStore | None = None

    def keep(self, checkpoint: Checkpoint) -> None:
        super().keep(checkpoint)
        assert self.store is not None
        self.store.put(checkpoint.content)


def test_a_return_by_command_goes_to_the_named_epoch(tmp_path: Path) -> None:
    """Goal: an operator goes back further, over a graft. Method: from BLENDING to a seed in TRAINING, and, later, to
    where no seed was; ids are not used again, ages go on, and the seed's moves say what happened."""
    policy = orders("blending", e6=rollback(3), e8=rollback(1))
    store = DirectoryBlobStore(tmp_path)
    lived = live(asked("mlp"), policy, kept=Stored(store=store), points=ReturnPoints(store=store))
    first, second = lived.journal.returns
    assert [(one.from_epoch, one.to_epoch, one.reason) for one in (first, second)] == [
        (6, 3, "command"),
        (8, 1, "command"),
    ]
    assert (first.rate_factor, first.faults, first.command_id) == (1.0, 0, "command-6")
    assert [lived.journal.outcomes[epoch - 1].result for epoch in (6, 8)] == [ly.COMMAND_RESULT_APPLIED] * 2
    for event in (first, second):
        same(lived.stood[event.from_epoch], lived.kept.checkpoints[event.to_epoch])
    follows = {packet.current_epoch: packet.follows_epoch for packet in lived.journal.packets if packet.follows_epoch}
    assert follows == {7: 3, 9: 1}
    (restored,) = lived.journal.packets[6].seed_states
    assert (restored.stage, restored.age_epochs) == (
        ly.SEED_STAGE_TRAINING,
        lived.journal.packets[2].seed_states[0].age_epochs + 1,
    )
    assert list(lived.journal.packets[8].seed_states) == []
    back = [
        (event.seed_id, event.from_stage, event.to_stage)
        for event in lived.journal.seed_events
        if isinstance(event, ly.SeedStageChanged) and event.reason.startswith("rollback:")
    ]
    assert back == [
        ("body.1", ly.SEED_STAGE_BLENDING, ly.SEED_STAGE_TRAINING),
        ("body.1", ly.SEED_STAGE_TRAINING, ly.SEED_STAGE_DORMANT),
    ]
    ids = [event.meta.event_id for event in lived.journal.seed_events]
    assert len(ids) == len(set(ids))
    assert lived.result is not None
    assert [(seed.seed_id, seed.stage) for seed in lived.result.seeds] == [("body.1", ly.SEED_STAGE_DORMANT)]
    verified(lived)


def test_the_last_checkpoint_that_verifies_serves_where_none_is_named() -> None:
    """Goal: damage is passed over. Method: the newest at hand is spoilt in memory; the one before is taken."""
    lived = Lived(asked("mlp"), MemoryJournal(policy=orders(e6=rollback())))
    points = ReturnPoints()
    with prepared(lived.asked) as setup:
        trainer = TolariaTrainer(setup, manager(setup), lived.journal, checkpoints=lived.kept, points=points)
        for epoch in range(1, 6):
            trainer.run_epoch(epoch)
        points._held[5] = points._held[5][:-1] + b"x"
        trainer.run_epoch(6)
    (event,) = lived.journal.returns
    assert event.to_epoch == 4


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        (rollback(9), "rollback_unavailable:not_in_the_past"),
        (rollback(6), "rollback_unavailable:not_in_the_past"),
        (rollback(1), "rollback_unavailable:no_checkpoint"),
        (rollback(0), "malformed_command:rollback_epoch"),
        (rollback(2.5), "malformed_command:rollback_epoch"),
        (rollback(float("nan")), "malformed_command:rollback_epoch"),
        (
            ly.AdaptationCommand(command_type=ly.COMMAND_ROLLBACK, pause=ly.CommandPause()),
            "malformed_command:payload",
        ),
    ],
    ids=str,
)
def test_a_return_that_cannot_be_is_refused_by_its_reason(wish: ly.AdaptationCommand, reason: str) -> None:
    """Goal: nothing is half gone back. Method: targets that are not there, ahead, or no epochs; the run is the same
    as without the order, and verified."""
    lived, without = live(asked("mlp"), orders("training", e6=wish)), live(asked("mlp"), orders("training"))
    outcome = lived.journal.outcomes[5]
    assert (outcome.result, outcome.reason) == (ly.COMMAND_RESULT_REJECTED, reason)
    assert not outcome.HasField("rolled_back")
    assert lived.result == without.result
    verified(lived)


def test_a_run_that_diverges_again_and_again_ends() -> None:
    """Goal: no computation is repeated for ever. Method: a host that is doomed; three returns, each at half the rate,
    then the run fails as diverged. With no return allowed it fails at once."""
    wish = asked("doomed")
    journal = MemoryJournal(policy=orders())
    with prepared(wish) as setup, pytest.raises(TrainingDiverged, match="after 3 returns to a checkpoint"):
        TolariaTrainer(setup, manager(setup), journal, checkpoints=Kept()).run()
    assert [(one.from_epoch, one.to_epoch, one.rate_factor) for one in journal.returns] == [
        (4, 3, 0.5),
        (5, 3, 0.25),
        (6, 3, 0.125),
    ]
    rates = [packet.training_metrics["learning_rate"] for packet in journal.packets]
    assert rates[4] < 0.6 * rates[3]
    for name, value in (("rollbacks_max", 0.0), ("rollbacks_max", 3.0)):
        with prepared(asked("doomed", **{name: value})) as setup, pytest.raises(TrainingDiverged, match="in epoch 4"):
            TolariaTrainer(setup, manager(setup), MemoryJournal(policy=orders())).run()


def test_a_record_of_another_return_is_not_repeated() -> None:
    """Goal: a repeat is held against what the log says of a return. Method: alter each thing that it says."""
    lived = live(asked("fragile_nan"), orders())
    for name, value in (("digest_after", "0" * 64), ("digest_before", "1" * 64), ("rate_factor", 0.25)):
        outcomes = [ly.CommandOutcome.FromString(one.SerializeToString()) for one in lived.journal.outcomes]
        setattr(outcomes[SPOILT - 1].rolled_back, name, value)
        difference = re_execute(lived.asked, outcomes, lived.journal.packets, manager).first_difference
        assert difference is not None
        assert (difference.epoch, difference.field) == (SPOILT, f"rolled_back.{name}")


def test_a_host_that_holds_is_never_taken_back() -> None:
    """Goal: the default changes no run that has no fault. Method: limits as they are, and none at all."""
    assert live(asked("mlp"), orders("blending")).result == (
        live(asked("mlp", rollbacks_max=0.0), orders("blending")).result
    )


def test_what_was_set_of_the_optimiser_is_taken_back_too() -> None:
    """Goal: OPTIMIZER after the checkpoint is undone, before it is not. Method: both, then a return between them."""
    policy = orders(
        e2=adjustment(weight_decay=0.01), e5=adjustment(learning_rate_factor=0.1, beta1=0.5), e6=rollback(4)
    )
    lived = live(asked("mlp"), policy)
    (before,), (after,) = (
        lived.stood[6].facts["groups"],
        read_checkpoint(lived.kept.checkpoints[7].content).facts["groups"],
    )
    for group in (before, after):
        assert (group["weight_decay"], group["betas"][0]) == (0.01, 0.9)
        assert "learning_rate_factor" not in group
    verified(lived)


def test_setup_of_a_return_is_the_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: what does not stand byte for byte is never trained on. Method: a restore that forgets one buffer."""
    from esper.core.errors import IntegrityError
    from esper.tolaria.loop import _run_orders

    whole = _run_orders.restore_run

    def careless(content: bytes, state: object, *, again: bool = False) -> Position:
        position = whole(content, state, again=again)  # type: ignore[arg-type]
        next(iter(state.model.buffers())).add_(1.0)  # type: ignore[attr-defined]
        return position

    monkeypatch.setattr(_run_orders, "restore_run", careless)
    with prepared(asked("fragile_nan")) as setup, pytest.raises(IntegrityError, match="byte for byte"):
        TolariaTrainer(setup, manager(setup), MemoryJournal(policy=orders()), checkpoints=Kept()).run()
