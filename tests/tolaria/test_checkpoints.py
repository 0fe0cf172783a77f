"""Checkpoints: from the end of any epoch, training goes on bit for bit; what is damaged or foreign is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from esper.core.checkpoint import Saved, read_checkpoint, write_checkpoint
from esper.core.errors import IntegrityError
from esper.kasmina import KasminaSeedManager
from esper.kasmina.testing import InMemoryRuntime, bypass
from esper.leyline import messages as ly
from esper.tolaria import (
    MemoryJournal,
    Recording,
    ResumingJournal,
    TolariaTrainer,
    TrainingSetup,
    digest_in,
    prepared,
    weights_in,
)
from tests.tolaria.grafting import Kept, Lived, seed_manager
from tests.tolaria.small import request, scheduled

EPOCHS = 12
#: One seed from the soil to the host, in whatever epochs the gates let it pass.
MOVES = {
    1: ly.SEED_OP_GERMINATE,
    3: ly.SEED_OP_START_GRAFTING,
    6: ly.SEED_OP_STABILIZE,
    7: ly.SEED_OP_EVALUATE,
    8: ly.SEED_OP_FOSSILIZE,
}


schedule = scheduled(MOVES)


#: A kernel that draws random numbers, so that a stream that stands elsewhere shows.
RUNTIME = InMemoryRuntime({"BYPASS": bypass(width=16, dropout=0.25)})


def manager(setup: TrainingSetup) -> KasminaSeedManager:
    return seed_manager(setup, RUNTIME)


@pytest.fixture(scope="module")
def lived() -> Lived:
    """An undisturbed run of the small task: a host with batch norm and dropout, on which a seed grows."""
    journal, kept = MemoryJournal(policy=schedule), Kept()
    with prepared(request(epochs=EPOCHS)) as setup:
        result = TolariaTrainer(setup, manager(setup), journal, checkpoints=kept).run()
    applied = [outcome.epoch for outcome in journal.outcomes if outcome.result == ly.COMMAND_RESULT_APPLIED]
    assert applied == list(range(1, EPOCHS + 1)), [outcome.reason for outcome in journal.outcomes]
    assert [seed.stage for seed in result.seeds] == [ly.SEED_STAGE_FOSSILIZED]
    return Lived(result, journal, kept.checkpoints)


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_training_goes_on_from_any_epoch_as_if_nothing_had_been(lived: Lived, epoch: int) -> None:
    """Goal: a checkpoint holds everything. Method: go on from each epoch, in every stage of a seed; each later
    checkpoint, which holds the whole state, and the end are byte-equal to those of the undisturbed run."""
    live, kept = MemoryJournal(policy=schedule), Kept()
    recording = Recording.of(lived.journal.packets[:epoch], lived.journal.outcomes[:epoch])
    torch.rand(3)  # Elsewhere in the random stream than the first attempt was.
    with prepared(request(epochs=EPOCHS), attempt=2) as setup:
        trainer = TolariaTrainer(setup, manager(setup), ResumingJournal(recording, live), checkpoints=kept)
        trainer.resume(lived.checkpoints[epoch].content, recording.packets[epoch])
        assert trainer.epochs_finished == epoch
        assert trainer.run() == lived.result
    assert kept.checkpoints == {later: lived.checkpoints[later] for later in range(epoch + 1, EPOCHS + 1)}
    assert [packet.weights_digest for packet in live.packets] == [
        packet.weights_digest for packet in lived.journal.packets[epoch:]
    ]
    again = [event.meta.event_id for event in live.seed_events]
    assert again == [event.meta.event_id for event in lived.journal.seed_events][-len(again) :] or not again


def test_a_checkpoint_holds_the_weights_that_the_packet_names(lived: Lived) -> None:
    """Goal: weights without building anything. Method: the digest of the file's own tensors, against each packet."""
    for packet in lived.journal.packets:
        checkpoint = lived.checkpoints[packet.current_epoch]
        assert digest_in(checkpoint.content) == checkpoint.weights_digest == packet.weights_digest
    assert "body.1:body.0.weight" in weights_in(lived.checkpoints[2].content)
    assert not any(":" in name for name in weights_in(lived.checkpoints[EPOCHS].content))


def test_checkpoints_change_nothing(lived: Lived) -> None:
    """Goal: taking one is no part of training. Method: the same run without any."""
    journal = MemoryJournal(policy=schedule)
    with prepared(request(epochs=EPOCHS)) as setup:
        assert TolariaTrainer(setup, manager(setup), journal).run() == lived.result
    assert [packet.weights_digest for packet in journal.packets] == [
        packet.weights_digest for packet in lived.journal.packets
    ]


def test_another_epochs_checkpoint_is_refused(lived: Lived) -> None:
    """Goal: what is restored is held against the record. Method: epoch 4's file beside epoch 5's packet, and a
    packet whose held-out loss is another although the weights are right."""
    recording = Recording.of(lived.journal.packets[:5], lived.journal.outcomes[:5])
    with prepared(request(epochs=EPOCHS)) as setup:
        trainer = TolariaTrainer(setup, manager(setup), ResumingJournal(recording, MemoryJournal()))
        with pytest.raises(IntegrityError, match="it is not epoch 5 as the log has it"):
            trainer.resume(lived.checkpoints[4].content, recording.packets[5])
    packet = ly.SystemStatePacket.FromString(recording.packets[5].SerializeToString())
    packet.validation_loss += 1e-9
    with prepared(request(epochs=EPOCHS)) as setup:
        trainer = TolariaTrainer(setup, manager(setup), ResumingJournal(recording, MemoryJournal()))
        with pytest.raises(IntegrityError, match="validation_loss"):
            trainer.resume(lived.checkpoints[5].content, packet)


def _without(content: bytes, *, tensor: str = "", fact: str = "") -> bytes:
    saved = read_checkpoint(content)
    tensors = {name: kept for name, kept in saved.tensors.items() if name != tensor}
    return write_checkpoint(Saved({name: kept for name, kept in saved.facts.items() if name != fact}, tensors))


def _narrow(content: bytes) -> bytes:
    saved = read_checkpoint(content)
    return write_checkpoint(Saved(saved.facts, {**saved.tensors, "weights/head.weight": torch.zeros(2, 7)}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-1], "SafetensorError"),
        (lambda _: b"", "SafetensorError"),
        (lambda content: _without(content, tensor="weights/head.bias"), r"missing \['head.bias'\]"),
        (lambda content: _without(content, tensor="rng/order"), "its facts are not as this version writes them"),
        (lambda content: _without(content, tensor="transient/body.esper_body_1.sound"), "the buffers differ"),
        (lambda content: _without(content, fact="seed_events"), "its facts are not as this version writes them"),
        (lambda content: _without(content, fact="controller"), "its facts are not as this version writes them"),
        (_narrow, r"head.weight of the weights is torch.float32 \(2, 7\) there and torch.float32 \(2, 8\) here"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_what_is_wrong(lived: Lived, damage: object, words: str) -> None:
    """Goal: no half restored network trains on. Method: cut the file, and take one part after another out of it."""
    assert callable(damage)
    recording = Recording.of(lived.journal.packets[:5], lived.journal.outcomes[:5])
    with prepared(request(epochs=EPOCHS)) as setup:
        trainer = TolariaTrainer(setup, manager(setup), ResumingJournal(recording, MemoryJournal()))
        with pytest.raises(IntegrityError, match=words):
            trainer.resume(damage(lived.checkpoints[5].content), recording.packets[5])


def test_tied_weights_and_odd_dtypes_survive() -> None:
    """Goal: any state that has a digest has a checkpoint. Method: shared memory, NaN payloads, -0.0, bool, bfloat16."""
    tied = nn.Linear(2, 2).weight
    strange = torch.tensor([float("nan"), -0.0, float("inf")])
    strange.view(torch.int32)[0] = 0x7FC00001
    tensors = {
        "a": tied,
        "b": tied,
        "strange": strange,
        "flag": torch.tensor(True),
        "half": torch.ones(3, 2, dtype=torch.bfloat16).t(),
        "empty": torch.empty(0, 4),
    }
    saved = read_checkpoint(write_checkpoint(Saved({"loss": float("nan"), "third": 1 / 3}, tensors)))
    assert saved.facts["third"] == 1 / 3
    assert saved.facts["loss"] != saved.facts["loss"]
    for name, kept in tensors.items():
        found = saved.tensors[name]
        assert (found.shape, found.dtype) == (kept.shape, kept.dtype)
        assert found.contiguous().reshape(-1).view(torch.uint8).equal(kept.contiguous().reshape(-1).view(torch.uint8))
