"""Takeover on the real broker: a successor begins at the last checkpoint that is what the log says of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.core.ids import sha256_hex
from esper.leyline import messages as ly
from esper.oona import Event, Fabric
from tests.tolaria.live import Log, ask, eventually, responder, worker
from tests.tolaria.small import request
from tests.tolaria.test_worker import in_memory

EPOCHS, EVERY, CUT = 7, 2, 6
TYPES = {epoch: ly.COMMAND_SEED if epoch in (1, 4, 5) else ly.COMMAND_CONTINUE for epoch in range(1, EPOCHS + 1)}


@pytest.fixture
def keeping(fabric: Fabric) -> Iterator[Fabric]:
    """The broker's fabric, with a checkpoint every two epochs."""
    settings = fabric.settings.model_copy(update={"checkpoint_every_epochs": EVERY})
    opened = Fabric.open(settings, member="test-checkpoints")
    try:
        yield opened
    finally:
        opened.close()


def interrupted(fabric: Fabric) -> ly.TrainingRunRequested:
    """Train a run until its worker is stopped while it waits for the command of epoch `CUT`; return its request."""
    asked = ask(fabric, epochs=EPOCHS, decision_wait_seconds=60.0)
    log = Log(fabric, asked.run_id)

    def all_but_the_last(packet: ly.SystemStatePacket) -> ly.CommandType | None:
        return TYPES[packet.current_epoch] if packet.current_epoch < CUT else None

    with responder(fabric, asked.run_id, all_but_the_last), worker(fabric):
        eventually(lambda: len(log.of(ly.SystemStatePacket)) == CUT, what=f"the packet of epoch {CUT}")
    return asked


def blob(fabric: Fabric, saved: ly.CheckpointSaved) -> Path:
    return fabric.home.blobs / saved.blob_digest[:2] / saved.blob_digest


def takeover(fabric: Fabric, run_id: str) -> dict[str, float]:
    """Return what the successor told of where it began."""
    with fabric.reader({("telemetry", 0): "begin"}) as reader:
        told = [event for event in reader.read_to_end() if event.meta.correlation_id == run_id]
    (packet,) = [event.message for event in told if _is_takeover(event)]
    assert isinstance(packet, ly.TelemetryPacket)
    assert packet.meta.priority == ly.MESSAGE_PRIORITY_HIGH, "it is not sampled away while others press"
    return {point.name.removeprefix("tolaria.takeover."): point.value for point in packet.metrics}


def _is_takeover(event: Event) -> bool:
    packet = event.message
    return isinstance(packet, ly.TelemetryPacket) and any("takeover" in point.name for point in packet.metrics)


@pytest.mark.parametrize(
    ("damaged", "missing", "restored"),
    [((), (), 4), ((4,), (), 2), ((), (4,), 2), ((2, 4), (), 0)],
    ids=["whole", "damaged", "missing", "none-left"],
)
def test_a_successor_begins_at_the_last_checkpoint_that_holds(
    keeping: Fabric, damaged: tuple[int, ...], missing: tuple[int, ...], restored: int
) -> None:
    """Goal: a takeover costs the epochs since a checkpoint, and never a wrong network. Method: stop a worker in epoch
    6, damage or remove blobs, let the next life finish; the digests are those of a run without a broker, what could
    not be used is told of, and what was damaged is whole again."""
    asked = interrupted(keeping)
    log = Log(keeping, asked.run_id)
    before = {saved.epoch: saved for saved in log.of(ly.CheckpointSaved)}
    assert sorted(before) == [2, 4]
    for epoch in damaged:
        path = blob(keeping, before[epoch])
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    for epoch in missing:
        blob(keeping, before[epoch]).unlink()
    with responder(keeping, asked.run_id, lambda packet: TYPES[packet.current_epoch]), worker(keeping):
        log.finished()
    expected = in_memory(request(epochs=EPOCHS), *TYPES.values())
    assert [packet.weights_digest for packet in log.of(ly.SystemStatePacket)] == expected
    assert [started.resumed_epochs for started in log.of(ly.TrainingRunStarted)] == [0, CUT - 1]
    assert takeover(keeping, asked.run_id) == {
        "restored_epochs": restored,
        "repeated_epochs": CUT - 1 - restored,
        "unused_checkpoints": len(damaged) + len(missing),
    }
    kept = log.of(ly.CheckpointSaved)
    assert [(saved.epoch, saved.attempt) for saved in kept] == [(2, 1), (4, 1), (6, 2)]
    assert all(sha256_hex(blob(keeping, saved).read_bytes()) == saved.blob_digest for saved in kept)
    assert [saved.weights_digest for saved in kept] == [expected[epoch - 1] for epoch in (2, 4, 6)]


def test_checkpoints_can_be_switched_off(fabric: Fabric) -> None:
    """Goal: nobody must keep any. Method: 0 epochs; the log names none and the run ends the same."""
    settings = fabric.settings.model_copy(update={"checkpoint_every_epochs": 0})
    off = Fabric.open(settings, member="test-no-checkpoints")
    asked = ask(off, epochs=3)
    log = Log(off, asked.run_id)
    with responder(off, asked.run_id, lambda packet: TYPES[packet.current_epoch]), worker(off):
        log.finished()
    assert log.of(ly.CheckpointSaved) == []
    assert [packet.weights_digest for packet in log.of(ly.SystemStatePacket)] == in_memory(asked, *TYPES.values())[:3]
    off.close()
